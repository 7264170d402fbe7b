"""What an answer over HTTP means that is no capture."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from ddump_common.answers import Problem
from ddump_common.api import (
    MEDIA_TYPE_PCAP,
    MEDIA_TYPE_PCAPNG,
    MEDIA_TYPE_PROBLEM,
    WINDOW_HEADER,
)
from ddump_common.errors import RefusedError, UsageError
from ddump_common.units import SECONDS
from ddump_common.window import WindowReport

from .failure import one_line
from .rejection import told_rejection
from .window import told_outside

if TYPE_CHECKING:
    import aiohttp

    from .certificate import Certificate
    from .target import HttpTarget

__all__ = ["check_type", "field", "media_type", "refusal"]

# By what a server asks for it (RFC 7617, RFC 6750); a certificate it cannot ask for.
_OPTIONS = {"basic": "--user", "bearer": "--token-file"}

# The title of what nginx/ddump.conf answers to a certificate that it does not take.
_NOT_ACCEPTED = "The client certificate is not accepted"

# What servers call a capture. A server without a table of types sends none or octets.
_CAPTURE_TYPES = {MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG, "application/octet-stream", ""}


def media_type(response: aiohttp.ClientResponse) -> str:
    """Return what an answer calls itself, without parameters; empty when nothing."""
    content_type = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower()


def field(response: aiohttp.ClientResponse, name: str) -> str:
    """Return the value of a header that is a dictionary, empty when there is none."""
    # RFC 9651, 4.2: several lines are one field.
    return ", ".join(response.headers.getall(name, []))


def check_type(response: aiohttp.ClientResponse) -> None:
    """Refuse an answer that does not call itself a capture."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise RefusedError(
            f"the answer is encoded as {one_line(encoding)}, which was not asked for",
            status=response.status,
        )
    called = media_type(response)
    if called not in _CAPTURE_TYPES:
        raise RefusedError(
            f"the answer is {one_line(called)}, not a capture",
            status=response.status,
            hint="is the path right? a worker has /capture and /ring",
        )


def refusal(
    response: aiohttp.ClientResponse,
    body: bytes,
    target: HttpTarget,
    *,
    own: Certificate | None = None,
) -> RefusedError:
    """Return what an answer other than 200 means, to who showed ``own``."""
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
            hint=_redirected(location, target),
        )
    hint = _hint(response, target)
    problem = _problem(response, body)
    if problem is not None:
        return RefusedError(
            f"{status}: {_told_problem(problem, own) or reason}",
            status=status,
            hint=_joined(one_line(problem.hint), hint, status=status),
            retry_after_ns=retry_after_ns,
        )
    return RefusedError(reason, status=status, hint=hint, retry_after_ns=retry_after_ns)


def _redirected(location: str, target: HttpTarget) -> str:
    """Return what to do about a redirect; nginx asks so for the slash of a prefix."""
    path = re.sub("[a-z]+://[^/]*", "", location.partition("?")[0], count=1)
    if path == f"{target.path}/":
        return f"a proxy's prefix ends in /: {target.origin}{target.path}/"
    return "name that URL instead, if it is trusted"


def _told_problem(problem: Problem, own: Certificate | None) -> str:
    if own is not None and problem.title == _NOT_ACCEPTED:
        return told_rejection(problem.detail, own)
    parts = [problem.title, problem.detail]
    if problem.parameter and not problem.detail.startswith(problem.parameter):
        parts.insert(0, problem.parameter)
    return ": ".join(one_line(part) for part in parts if part)


def _joined(theirs: str, ours: str, *, status: int) -> str:
    """Return what the server says may help; it knows not by which option that is given."""
    if theirs and status != HTTPStatus.UNAUTHORIZED:
        return theirs
    return "; ".join(filter(None, (theirs, ours)))


def _hint(response: aiohttp.ClientResponse, target: HttpTarget) -> str:
    """Return what may help, when the server does not say it."""
    match response.status:
        case HTTPStatus.UNAUTHORIZED if target.authorization is not None:
            return f"is the {target.authorization.secret} right?"
        case HTTPStatus.UNAUTHORIZED:
            asked = " ".join(response.headers.getall("WWW-Authenticate", [])).lower()
            options = [
                option
                for scheme, option in _OPTIONS.items()
                if scheme in asked or not asked
            ]
            return f"see {' and '.join(options)}" if options else ""
        case HTTPStatus.FORBIDDEN:
            return "the credentials are not enough"
        case HTTPStatus.NOT_FOUND:
            return "is the path right? a worker has /capture and /ring"
        case _:
            return ""


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
        report = WindowReport.parse(field(response, WINDOW_HEADER))
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
    if media_type(response) != MEDIA_TYPE_PROBLEM:
        return None
    try:
        return msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        return None


def _phrase(status: int, reason: str | None) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = one_line(reason or "")
    return f"{status} {phrase}".rstrip()


def _without_userinfo(location: str) -> str:
    return one_line(re.sub(r"//[^/]*@", "//", location))
