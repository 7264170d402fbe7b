"""Errors as clients get them: RFC 9457 problem details, never a traceback."""

from __future__ import annotations

import logging
import platform
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from ddump_common.answers import Problem
from ddump_common.api import (
    CAPTURE_PATH,
    HEALTH_PATH,
    HOST_HEADER,
    INTERFACES_PATH,
    MEDIA_TYPE_PROBLEM,
    METRICS_PATH,
    OPENAPI_PATH,
    RING_PATH,
    SEGMENTS_PATH,
    STATUS_PATH,
    TIME_HEADER,
    WINDOW_HEADER,
)
from ddump_common.errors import (
    CaptureError,
    DdumpError,
    FilterError,
    ParameterError,
    PrivilegeError,
)
from ddump_common.text import printable

from . import __version__
from .capacity import ExhaustedError
from .denial import ForbiddenError, MisdirectedError, UnauthorizedError
from .filters import BusyError
from .window import NoRingError, UncoveredError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "common_headers",
    "problem_of",
    "problem_response",
    "raw_problem",
    "reason_of",
]

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5
_PATHS = (
    CAPTURE_PATH,
    RING_PATH,
    HEALTH_PATH,
    STATUS_PATH,
    SEGMENTS_PATH,
    INTERFACES_PATH,
    METRICS_PATH,
    OPENAPI_PATH,
)

_REASONS: dict[type[Exception], str] = {
    UnauthorizedError: "unauthorized",
    ForbiddenError: "forbidden",
    MisdirectedError: "misdirected",
    FilterError: "filter",
    NoRingError: "ring",
    UncoveredError: "window",
    BusyError: "busy",
    PrivilegeError: "privilege",
}


def common_headers() -> dict[str, str]:
    """Return the headers of every answer."""
    return {
        HOST_HEADER: platform.node(),
        TIME_HEADER: str(time.time_ns()),
        "Server": f"ddump-worker/{__version__}",
        # To browsers: nothing here is for the pages of others, nor what it is not.
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


def problem_of(error: Exception) -> tuple[Problem, Mapping[str, str]]:
    """Return what a client is told about ``error``, and the headers for it."""
    match error:
        case UnauthorizedError() | ForbiddenError() | MisdirectedError():
            return _denial(error)
        case ParameterError():
            return _problem("Bad parameter", 400, error, error.parameter), {}
        case FilterError():
            return _problem("The filter does not compile", 400, error, "filter"), {}
        case NoRingError():
            return _problem("There is no ring", 404, error), {}
        case UncoveredError():
            return (
                _problem("The window is outside the ring", 416, error),
                {WINDOW_HEADER: error.report.serialize()},
            )
        case ExhaustedError() | BusyError():
            return (
                _problem("Nothing is free", 503, error),
                {"Retry-After": str(_RETRY_SECONDS)},
            )
        case CaptureError():
            return _problem(_title_of(error), 500, error), {}
        case DdumpError():
            return _problem("Bad request", 400, error), {}
        case web.HTTPException():
            return _http_problem(error)
        case _:
            return Problem(title="Internal error", status=500), {}


def _title_of(error: CaptureError) -> str:
    if isinstance(error, PrivilegeError):
        return "The worker lacks a privilege"
    return "This host cannot capture"


def _denial(
    error: UnauthorizedError | ForbiddenError | MisdirectedError,
) -> tuple[Problem, Mapping[str, str]]:
    headers = {}
    match error:
        case UnauthorizedError():
            # Certificates are no scheme of HTTP, and passwords the proxy's (RFC 9110).
            headers["WWW-Authenticate"] = "Bearer"
            return _problem("Who asks is not known", 401, error), headers
        case ForbiddenError():
            if error.retry_after_seconds:
                headers["Retry-After"] = str(error.retry_after_seconds)
            return _problem("This is not allowed", 403, error), headers
        case MisdirectedError():
            return _problem("This worker has another name", 421, error), headers


def reason_of(error: Exception) -> str:
    """Return one word for the metrics: why packets were refused."""
    match error:
        case ParameterError():
            return "interface" if error.parameter == "interface" else "parameter"
        case ExhaustedError():
            return error.resource
        case _:
            return next(
                (word for kind, word in _REASONS.items() if isinstance(error, kind)),
                "error",
            )


def _problem(
    title: str, status: int, error: DdumpError, parameter: str = ""
) -> Problem:
    return Problem(
        title=title,
        status=status,
        detail=printable(error.message),
        hint=error.hint,
        parameter=printable(parameter),
    )


def _http_problem(error: web.HTTPException) -> tuple[Problem, Mapping[str, str]]:
    hint = ""
    headers: dict[str, str] = {}
    if error.status == HTTPStatus.NOT_FOUND:
        hint = "there are " + ", ".join(_PATHS)
    elif isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        hint = f"there are {headers['Allow']}"
    return Problem(title=error.reason, status=error.status, hint=hint), headers


def problem_response(
    problem: Problem, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the answer that carries ``problem``."""
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem),
        content_type=MEDIA_TYPE_PROBLEM,
        headers={**common_headers(), **(headers or {})},
    )


def raw_problem(problem: Problem) -> bytes:
    """Return a whole HTTP answer, for a connection that gets no other."""
    body = msgspec.json.encode(problem)
    again = (
        [f"Retry-After: {_RETRY_SECONDS}"]
        if problem.status == HTTPStatus.SERVICE_UNAVAILABLE
        else []
    )
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        *(f"{name}: {value}" for name, value in common_headers().items()),
        f"Content-Type: {MEDIA_TYPE_PROBLEM}",
        f"Content-Length: {len(body)}",
        *again,
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
