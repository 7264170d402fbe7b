"""A capture over HTTP: one request, its answer checked, its bytes as they come.

Every exception of the HTTP library becomes one of ``ddump_common.errors`` here, with a
line that says what is wrong and, where there is something to do, a hint. Nothing that
the other side sends is trusted: redirects are named and not followed, what is not a
capture is refused by its type, errors are read to a limit and never decompressed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from yarl import URL

from ddump_common.answers import Problem
from ddump_common.api import (
    HOST_HEADER,
    MEDIA_TYPE_PCAP,
    MEDIA_TYPE_PCAPNG,
    MEDIA_TYPE_PROBLEM,
    STREAM_HEADER,
    WINDOW_HEADER,
)
from ddump_common.errors import (
    BrokenStreamError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from ddump_common.text import printable
from ddump_common.units import SECONDS, format_duration
from ddump_common.window import WindowReport

from . import __version__
from .resolver import Resolver
from .skew import Stopwatch, tracing
from .window import told_outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import AddrInfoType

    from .skew import Skew
    from .target import HttpTarget

__all__ = ["HttpSource", "fetch", "open_session"]

logger = logging.getLogger(__name__)

# What a connection may break with; the last is not a ClientError.
_BROKEN = (aiohttp.ClientError, OSError, aiohttp.http.HttpProcessingError)

# pcapng carries heartbeats; a server that has only the other is as welcome.
_ACCEPT = f"{MEDIA_TYPE_PCAPNG}, {MEDIA_TYPE_PCAP};q=0.5"

# What servers call a capture. A server without a table of types sends none or octets.
_CAPTURE_TYPES = {MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG, "application/octet-stream", ""}

# An error's body is for people; whoever sends more is not explaining anything.
_MAX_ERROR_BYTES = 64 * 1024

# aiohttp stops reading a connection that has twice this unread; the kernel's and the
# worker's buffers take the rest. See "Backpressure" in README.rst for the measurement.
_READ_BUFFER_BYTES = 256 * 1024


# What aiohttp's parsers say, with Python's way to write what they read.
_TOO_LONG = re.compile(r"Got more than ([0-9]+) bytes")
_QUOTED_BYTES = re.compile(r"""['"]?\bb['"].*""", re.DOTALL)

# A silent stream is asked after 10 s whether it lives, and is given up after 40.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def open_session(context: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Return a session without aiohttp's own limits on connections and time.

    Args:
        context: for https targets; ``None`` when there are none.

    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            force_close=True,
            ssl=True if context is None else context,
            resolver=Resolver(),
            socket_factory=_socket,
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
        headers={"User-Agent": f"ddump/{__version__}", "Accept-Encoding": "identity"},
        trace_configs=[tracing()],
    )


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket that notices when the other side is gone without a word."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):  # not every system lets it be chosen
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


class HttpSource:
    """The stream that one worker answers with.

    What the answer tells is known once it is open. ``trusted`` is whether it promises
    heartbeats, ``bounded`` whether it said how long it is. ``host`` is what the worker
    calls itself, ``sample`` what its answer tells of its clock, ``window`` what of the
    window that was asked for it has.
    """

    def __init__(
        self,
        target: HttpTarget,
        session: aiohttp.ClientSession,
        *,
        connect_timeout_ns: int,
    ) -> None:
        self.target = target
        self.session = session
        self.trusted = False
        self.bounded = False
        self.host = ""
        self.sample: Skew | None = None
        self.window: WindowReport | None = None
        self._connect_timeout_ns = connect_timeout_ns
        self._response: aiohttp.ClientResponse | None = None

    async def open(self) -> None:
        """Connect, ask, and check the answer.

        Raises:
            UnreachableError: no connection, or no answer within the connect timeout.
            RefusedError: the answer is not a capture.

        """
        stopwatch = Stopwatch()
        response = await _get(
            self.target,
            self.target.url,
            self.session,
            accept=_ACCEPT,
            timeout_ns=self._connect_timeout_ns,
            stopwatch=stopwatch,
        )
        try:
            _check_type(response)
        except RefusedError:
            response.close()
            raise
        self._response = response
        self.trusted = _is_trusted(response)
        self.bounded = response.content_length is not None
        self.host = _one_line(response.headers.get(HOST_HEADER, ""))
        self.sample = stopwatch.skew(response)
        self.window = _window_report(response, self.target)
        _watch_connection(response)

    async def read(self) -> bytes:
        """Return the next bytes; none at the end. Cancelling it loses none."""
        if self._response is None:
            return b""
        content = self._response.content
        if content.exception() is not None:
            return self._read_broken(content)
        try:
            return await content.readany()
        except (*_BROKEN, RuntimeError):
            return self._read_broken(content)

    def _read_broken(self, content: aiohttp.StreamReader) -> bytes:
        """Return what came before the connection broke, then raise why it did.

        aiohttp raises at once, whatever it holds; a capture is read to its last byte.
        """
        data = self.arrived()
        if data:
            return data
        exc = content.exception() or aiohttp.ServerDisconnectedError()
        reason, hint = _explain(exc, self.target)
        raise BrokenStreamError(reason, hint=hint) from exc

    def arrived(self) -> bytes:
        """Return what has come and was not read yet, without waiting."""
        if self._response is None:
            return b""
        content = self._response.content
        broken = content.exception()
        content.set_exception(None)  # type: ignore[arg-type]  # lets its bytes be read
        try:
            return content.read_nowait()
        finally:
            content.set_exception(broken)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connection; the worker notices."""
        if self._response is not None:
            self._response.close()
            self._response = None


def _is_trusted(response: aiohttp.ClientResponse) -> bool:
    """Whether a worker of ours answers, with a stream that has heartbeats."""
    number = response.headers.get(STREAM_HEADER, "")
    return _media_type(response) == MEDIA_TYPE_PCAPNG and bool(
        re.fullmatch("[0-9]{1,18}", number, re.ASCII)
    )


def _media_type(response: aiohttp.ClientResponse) -> str:
    content_type = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower()


def _window_report(
    response: aiohttp.ClientResponse, target: HttpTarget
) -> WindowReport | None:
    value = _window_header(response)
    if not value:
        return None
    try:
        return WindowReport.parse(value)
    except UsageError as exc:
        logger.warning(
            "%s: whether the ring has all is not known: its %s is wrong: %s",
            target.name,
            WINDOW_HEADER,
            exc,
        )
        return None


def _window_header(response: aiohttp.ClientResponse) -> str:
    # RFC 9651, 4.2: several lines are one field.
    return ", ".join(response.headers.getall(WINDOW_HEADER, []))


def _watch_connection(response: aiohttp.ClientResponse) -> None:
    """Have the body fail when its connection is lost before its end.

    aiohttp closes the connection when it cannot understand a chunk, and tells that to
    whoever waits for another response, but not to the reader of this one.
    """
    connection = response.connection
    if connection is None or connection.protocol is None:
        return  # the whole body has come already
    protocol, content = connection.protocol, response.content

    def on_closed(closed: asyncio.Future[None]) -> None:
        lost = None if closed.cancelled() else closed.exception()
        if not content.is_eof() and content.exception() is None:
            broken = protocol.exception() or lost
            if not isinstance(broken, aiohttp.http.HttpProcessingError):
                broken = aiohttp.ClientPayloadError("the body is not complete")
            content.set_exception(broken)

    if protocol.closed is not None:
        protocol.closed.add_done_callback(on_closed)


async def fetch(
    target: HttpTarget,
    url: str,
    session: aiohttp.ClientSession,
    *,
    accept: str,
    max_bytes: int,
    timeout_ns: int,
) -> bytes:
    """Return a document of the target's, at most ``max_bytes`` long.

    Raises:
        PeerError: it cannot be had, and why.

    """
    response = await _get(target, url, session, accept=accept, timeout_ns=timeout_ns)
    try:
        with _map_exceptions(target, timeout_ns=timeout_ns):
            async with asyncio.timeout(timeout_ns / SECONDS):
                data = await _read_up_to(response, max_bytes + 1)
    finally:
        response.close()
    if len(data) > max_bytes:
        raise RefusedError("the answer is too long", status=response.status)
    return data


async def _get(
    target: HttpTarget,
    url: str,
    session: aiohttp.ClientSession,
    *,
    accept: str,
    timeout_ns: int,
    stopwatch: Stopwatch | None = None,
) -> aiohttp.ClientResponse:
    """Return a response with status 200, its body unread."""
    headers = {"Accept": accept}
    if target.authorization is not None:
        headers["Authorization"] = target.authorization.header
    with _map_exceptions(target, timeout_ns=timeout_ns):
        async with asyncio.timeout(timeout_ns / SECONDS):
            response = await session.get(
                URL(url, encoded=True),
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=stopwatch,
            )
            if response.status == HTTPStatus.OK:
                return response
            try:
                body = await _read_up_to(response, _MAX_ERROR_BYTES)
            finally:
                response.close()
    raise _refusal(response, body, target)


async def _read_up_to(response: aiohttp.ClientResponse, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := await response.content.read(size - len(data))):
        data += piece
    return bytes(data)


@contextmanager
def _map_exceptions(target: HttpTarget, *, timeout_ns: int) -> Iterator[None]:
    """Turn what the HTTP library and the system raise into ``UnreachableError``."""
    try:
        yield
    except TimeoutError as exc:
        reason, hint = _explain(exc, target)
        if exc.errno is None:  # our own deadline, not the system's
            reason = f"no answer within {format_duration(timeout_ns)}"
        raise UnreachableError(reason, hint=hint) from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        reason, hint = _explain(exc, target)
        raise UnreachableError(reason, hint=hint) from exc


def _explain(exc: BaseException, target: HttpTarget) -> tuple[str, str]:
    """Return what is wrong, and what may help."""
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            return _explain_certificate(exc.certificate_error, target)
        case aiohttp.ClientConnectorDNSError():
            return f"cannot look up {target.host}: {exc.os_error.strerror}", ""
        case aiohttp.ClientResponseError() | aiohttp.http.HttpProcessingError():
            return f"the answer is not HTTP: {_told_parser(exc.message)}", ""
        case aiohttp.ClientPayloadError():
            return "the connection ended before the stream did", ""
        case aiohttp.ServerDisconnectedError():
            hint = (
                "does it want https?"
                if target.scheme == "http"
                else "does it want a client's certificate? see --cert"
            )
            return "the connection was closed without an answer", hint
        case _:
            pass
    tls = _tls_error(exc)
    if tls is not None:
        return _explain_tls(tls)
    if isinstance(exc, OSError) and exc.errno is not None:
        number = exc.errno
        # Some layers make a text of their own: the system's is the shortest.
        return os.strerror(number).lower() if number > 0 else _one_line(str(exc)), ""
    return _one_line(str(exc) or type(exc).__name__), ""


def _told_parser(message: str) -> str:
    """Return the HTTP parser's own words, without what it quotes or draws."""
    if too_long := _TOO_LONG.match(message):
        return f"a line of its header has more than {too_long[1]} bytes"
    reason = message.strip().partition("\n")[0]
    return _one_line(_QUOTED_BYTES.sub("", reason).rstrip(" :"))


def _tls_error(exc: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that ``exc`` is, or was caused by."""
    while exc is not None:
        if isinstance(exc, aiohttp.ClientConnectorSSLError):
            exc = exc.os_error  # it is one as well, but does not know the reason
        if isinstance(exc, ssl.SSLError):
            return exc
        exc = exc.__cause__
    return None


def _explain_certificate(exc: BaseException, target: HttpTarget) -> tuple[str, str]:
    reason = getattr(exc, "verify_message", "") or str(exc)
    hint = "see --ca" if "issuer" in reason or "self-signed" in reason else ""
    return f"the certificate of {target.host} is not valid: {_one_line(reason)}", hint


def _explain_tls(exc: ssl.SSLError) -> tuple[str, str]:
    reason = (getattr(exc, "reason", None) or str(exc)).replace("_", " ").lower()
    if "certificate required" in reason or "handshake failure" in reason:
        return f"TLS: {reason}", "does it want a client's certificate? see --cert"
    if "wrong version number" in reason or "record layer failure" in reason:
        return f"TLS: {reason}", "the server may not speak https"
    return f"TLS: {_one_line(reason)}", ""


def _check_type(response: aiohttp.ClientResponse) -> None:
    """Refuse an answer that does not call itself a capture."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise RefusedError(
            f"the answer is encoded as {_one_line(encoding)}, which was not asked for",
            status=response.status,
        )
    media_type = _media_type(response)
    if media_type not in _CAPTURE_TYPES:
        raise RefusedError(
            f"the answer is {_one_line(media_type)}, not a capture",
            status=response.status,
            hint="is the path right? a worker has /capture and /ring",
        )


def _refusal(
    response: aiohttp.ClientResponse, body: bytes, target: HttpTarget
) -> RefusedError:
    """Return what an answer other than 200 means."""
    status = response.status
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and (
        outside := _outside(response, target)
    ):
        return outside
    reason = _phrase(status, response.reason)
    retry_after_ns = _retry_after_ns(response)
    if 300 <= status < 400:
        location = _without_userinfo(response.headers.get("Location", "nowhere"))
        return RefusedError(
            f"{reason}: redirects to {location}, which is not followed",
            status=status,
            hint="name that URL instead, if it is trusted",
        )
    problem = _problem(response, body)
    if problem is not None:
        parts = [problem.title, problem.detail]
        if problem.parameter and not problem.detail.startswith(problem.parameter):
            parts.insert(0, problem.parameter)
        text = ": ".join(_one_line(part) for part in parts if part)
        return RefusedError(
            f"{status}: {text or reason}",
            status=status,
            hint=_one_line(problem.hint),
            retry_after_ns=retry_after_ns,
        )
    hints = {
        401: "see --user and --token-file",
        403: "the credentials are not enough",
        404: "is the path right? a worker has /capture and /ring",
    }
    return RefusedError(
        reason,
        status=status,
        hint=hints.get(status, ""),
        retry_after_ns=retry_after_ns,
    )


def _retry_after_ns(response: aiohttp.ClientResponse) -> int:
    """Return how long a server asks to be left alone; a date (RFC 9110) is not read."""
    value = response.headers.get("Retry-After", "").strip()
    return int(value) * SECONDS if re.fullmatch("[0-9]{1,9}", value, re.ASCII) else 0


def _outside(
    response: aiohttp.ClientResponse, target: HttpTarget
) -> RefusedError | None:
    """Return the refusal of a window in local time, as it was asked for.

    The worker's own words are for who asks with curl, and have UTC.
    """
    try:
        report = WindowReport.parse(_window_header(response))
    except UsageError:
        return None
    if report.covered is not None:
        return None
    return RefusedError(
        told_outside(report, now_ns=time.time_ns()),
        status=response.status,
        hint=f"ddump segments {target.api_url('/')} shows what it has",
    )


def _problem(response: aiohttp.ClientResponse, body: bytes) -> Problem | None:
    if _media_type(response) != MEDIA_TYPE_PROBLEM:
        return None
    try:
        return msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        return None


def _phrase(status: int, reason: str | None) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = _one_line(reason or "")
    return f"{status} {phrase}".rstrip()


def _without_userinfo(location: str) -> str:
    return _one_line(re.sub(r"//[^/]*@", "//", location))


def _one_line(text: str) -> str:
    return printable(text.strip(), limit=300)
