"""What an exception of the HTTP library or the system means, for who has to act on it.

A line that says what is wrong and, where there is something to do, a hint.
"""

from __future__ import annotations

import os
import re
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp

from ddump_common.errors import PeerError, UnreachableError, UntrustedError
from ddump_common.text import printable
from ddump_common.units import format_duration

from .rejection import REJECTING_ALERTS, told_rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .certificate import Certificate
    from .target import HttpTarget

__all__ = ["explain", "map_exceptions", "one_line"]

_REQUIRED = "certificate required"
_GIVE_ONE = "see --cert and --key"
_ALERT = re.compile("(?:sslv3|tlsv1|tlsv13) alert (.*)")

# What aiohttp's parsers say, with Python's way to write what they read.
_TOO_LONG = re.compile(r"Got more than ([0-9]+) bytes")
_QUOTED_BYTES = re.compile(r"""['"]?\bb['"].*""", re.DOTALL)


@contextmanager
def map_exceptions(
    target: HttpTarget, *, timeout_ns: int, own: Certificate | None = None
) -> Iterator[None]:
    """Turn what the HTTP library and the system raise into errors of ours.

    ``own`` is the certificate that the target was shown.

    Raises:
        UntrustedError: it does not take that, or wants one.
        UnreachableError: anything else.

    """
    try:
        yield
    except TimeoutError as exc:
        reason, hint = explain(exc, target, own)
        if exc.errno is None:  # our own deadline, not the system's
            reason = f"no answer within {format_duration(timeout_ns)}"
        raise UnreachableError(reason, hint=hint) from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        reason, hint = explain(exc, target, own)
        kind: type[PeerError] = UntrustedError if _is_refusal(exc) else UnreachableError
        raise kind(reason, hint=hint) from exc


def explain(
    exc: BaseException, target: HttpTarget, own: Certificate | None = None
) -> tuple[str, str]:
    """Return what is wrong, and what may help."""
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return f"cannot look up {target.host}: {exc.os_error.strerror}", ""
        case aiohttp.ClientResponseError() | aiohttp.http.HttpProcessingError():
            return f"the answer is not HTTP: {_told_parser(exc.message)}", ""
        case aiohttp.ClientPayloadError():
            return "the connection ended before the stream did", ""
        case aiohttp.ServerDisconnectedError():
            hint = "does it want https?" if target.scheme == "http" else _doubt(own)
            return "the connection was closed without an answer", hint
        case _:
            pass
    tls = _tls_error(exc)
    if tls is not None:
        return _explain_tls(tls, own)
    if _is_unfinished(exc):
        hint = "the server may not speak TLS, or not as we do"
        return "the connection was closed in the TLS handshake", hint
    if isinstance(exc, OSError) and exc.errno is not None:
        number = exc.errno
        # Some layers make a text of their own: the system's is the shortest.
        return os.strerror(number).lower() if number > 0 else one_line(str(exc)), ""
    return one_line(str(exc) or type(exc).__name__), ""


def _is_unfinished(exc: BaseException) -> bool:
    """Return whether a connection was closed in its TLS handshake."""
    return (
        isinstance(exc, aiohttp.ClientConnectorError)
        and isinstance(exc.os_error, ConnectionResetError)
        and exc.os_error.errno is None  # else the system's, which says more
    )


def _told_parser(message: str) -> str:
    """Return the HTTP parser's own words, without what it quotes or draws."""
    if too_long := _TOO_LONG.match(message):
        return f"a line of its header has more than {too_long[1]} bytes"
    reason = message.strip().partition("\n")[0]
    return one_line(_QUOTED_BYTES.sub("", reason).rstrip(" :"))


def _tls_error(exc: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that ``exc`` is, or was caused by."""
    while exc is not None:
        if isinstance(exc, aiohttp.ClientConnectorSSLError):
            exc = exc.os_error  # it is one as well, but does not know the reason
        if isinstance(exc, ssl.SSLError):
            return exc
        exc = exc.__cause__
    return None


def _alert(exc: BaseException) -> str:
    """Return what the other side's alert says; empty when there is none."""
    tls = _tls_error(exc)
    found = None if tls is None else _ALERT.fullmatch(_reason(tls))
    return "" if found is None else found[1]


def _is_refusal(exc: BaseException) -> bool:
    alert = _alert(exc)
    return alert == _REQUIRED or alert in REJECTING_ALERTS


def _explain_tls(exc: ssl.SSLError, own: Certificate | None) -> tuple[str, str]:
    reason, alert = _reason(exc), _alert(exc)
    if alert == _REQUIRED:
        return "it wants a client's certificate", _GIVE_ONE
    if alert in REJECTING_ALERTS and own is not None:
        return told_rejection(alert, own), ""
    if alert == "handshake failure" and own is None:
        # Before TLS 1.3 there was no alert of its own for that.
        return "TLS: handshake failure: it may want a client's certificate", _GIVE_ONE
    if alert == "handshake failure":
        return f"TLS: {alert}", _doubt(own)
    if "unsupported protocol" in reason or alert == "protocol version":
        return "it speaks only an old TLS, and we want 1.2 or newer", ""
    if "wrong version number" in reason or "record layer failure" in reason:
        return f"TLS: {reason}", "the server may not speak https"
    return f"TLS: {one_line(reason)}", ""


def _reason(exc: ssl.SSLError) -> str:
    return (getattr(exc, "reason", None) or str(exc)).replace("_", " ").lower()


def _doubt(own: Certificate | None) -> str:
    """Return what may be the matter with a server that does not say what is."""
    if own is None:
        return "does it want a client's certificate? see --cert"
    return f"does it take my certificate, {own.subject}?"


def one_line(text: str) -> str:
    """Return what the other side wrote, for a message."""
    return printable(text.strip(), limit=300)
