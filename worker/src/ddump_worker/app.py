"""The HTTP application: which handler answers what, and how errors are told."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from ddump_common.answers import Problem
from ddump_common.api import (
    CAPTURE_PATH,
    HEALTH_PATH,
    INTERFACES_PATH,
    METRICS_PATH,
    OPENAPI_PATH,
    RING_PATH,
    SEGMENTS_PATH,
    STATUS_PATH,
)
from ddump_common.errors import DdumpError, UsageError
from ddump_common.text import printable

from . import handlers
from .audit import ENTRY, Entry, ended_by
from .connections import Connection
from .handlers import CORE
from .problems import common_headers, problem_of, problem_response, reason_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from .core import Core

__all__ = ["create_app"]

_log = logging.getLogger(__name__)

_FORESEEN = (DdumpError, web.HTTPException, ConnectionError)


def create_app(core: Core) -> web.Application:
    """Wire an application that works on ``core``."""
    app = web.Application(middlewares=[_admit])
    app[CORE] = core
    app.on_response_prepare.append(_begin_answer)
    for path, handler in (
        (CAPTURE_PATH, handlers.capture),
        (RING_PATH, handlers.ring),
        (SEGMENTS_PATH, handlers.segments),
        (HEALTH_PATH, handlers.health),
        (STATUS_PATH, handlers.status),
        (INTERFACES_PATH, handlers.interface_list),
        (METRICS_PATH, handlers.metrics),
        (OPENAPI_PATH, handlers.openapi),
    ):
        app.router.add_get(path, handler, expect_handler=_expect)
    return app


async def _expect(request: web.Request) -> web.Response | None:
    # Before any middleware. A body is not taken, so none is asked for with a 100.
    expected = request.headers[hdrs.EXPECT]
    if expected.lower() == "100-continue":
        return None
    problem = Problem(
        title="Expectation failed",
        status=HTTPStatus.EXPECTATION_FAILED,
        detail=f"{printable(expected)} is not known",
    )
    return problem_response(problem)


async def _begin_answer(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(common_headers())
    entry = request.get(ENTRY)
    if entry is None:
        # Refused for what it expects, which comes before all else.
        entry = _entry(request)
        entry.status, entry.ended = response.status, "refused"
        _log_request(request, entry)
    entry.status = response.status


def _entry(request: web.Request) -> Entry:
    return Entry(
        address=request.app[CORE].door.address_of(request),
        method=request.method,
        path=request.path,
    )


@web.middleware
async def _admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[ENTRY] = entry = _entry(request)
    try:
        response = await _answer(request, handler)
        entry.status = response.status
    except asyncio.CancelledError:
        if entry.stream is None:
            entry.ended = handlers.cut_by(request)
        raise
    finally:
        _log_request(request, entry)
    return response


def _log_request(request: web.Request, entry: Entry) -> None:
    if request.app[CORE].door.keeps(entry):
        entry.log()


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    entry = request[ENTRY]
    try:
        entry.client = request.app[CORE].door.admit(request)
        _check_body(request)
        return await handler(request)
    except Exception as exc:  # the top of a request
        if not isinstance(exc, _FORESEEN):
            _log.exception("request for %s failed", printable(request.path))
        if request.writer.output_size > 0:
            # The connection ends without the final chunk, and the client sees that.
            raise
        return _problem(request, exc)


def _check_body(request: web.Request) -> None:
    if request.body_exists:
        raise UsageError("a request with a body is not taken")


def _problem(request: web.Request, exc: Exception) -> web.Response:
    problem, headers = problem_of(exc)
    if request.path in (CAPTURE_PATH, RING_PATH):
        core = request.app[CORE]
        core.streams.refused[reason_of(exc)] += 1
    request[ENTRY].ended = ended_by(problem)
    response = problem_response(problem, headers)
    if request.body_exists or _is_deaf(request):
        # What else the client has sent was not read, or will not be.
        response.force_close()
    return response


def _is_deaf(request: web.Request) -> bool:
    return isinstance(request.protocol, Connection) and request.protocol.deaf
