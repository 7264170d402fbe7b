"""The handlers of HTTP requests: they parse, ask the core, and stream."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from ddump_common.answers import (
    Health,
    InterfaceInfo,
    Memory,
    Segments,
    Status,
    StreamState,
)
from ddump_common.api import (
    MEDIA_TYPE_PCAP,
    MEDIA_TYPE_PCAPNG,
    RING_HEADER,
    STREAM_HEADER,
    WINDOW_HEADER,
    CaptureQuery,
    RingQuery,
)
from ddump_common.errors import DdumpError, ParameterError, UsageError
from ddump_common.note import EndReason
from ddump_common.units import SECONDS

from . import __version__
from .accept import prefers_pcapng
from .access import Order, Permission
from .audit import ENTRY
from .body import Body
from .connections import Connection
from .core import Core
from .door import CLIENT
from .heartbeat import Heartbeat
from .interfaces import capturable, interfaces
from .openapi import document
from .preamble import pcap_preamble, pcapng_preamble
from .window import NoRingError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .access import Grant
    from .capture import LiveCapture
    from .pull import Pull
    from .streams import Stream

__all__ = [
    "CORE",
    "capture",
    "cut_by",
    "health",
    "interface_list",
    "metrics",
    "openapi",
    "ring",
    "segments",
    "status",
]

CORE = web.AppKey("CORE", Core)

_log = logging.getLogger(__name__)

CAP_GRACE_SECONDS = 30
"""How long after a rule's ``max-duration`` what was captured by then may be delivered."""

_MAX_PARAMETERS = 256
_DOCUMENT = document()


async def capture(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /capture``."""
    _stay_until_the_client_leaves(request)
    core, entry = request.app[CORE], request[ENTRY]
    grant = _granted(request, Permission.STREAM)
    entry.query = query = CaptureQuery.parse(_pairs(request))
    entry.order = order = Order.of(request[CLIENT], grant, query)
    plan = await core.plan(order)
    pcapng = _wants_pcapng(request)
    response = _response(pcapng=pcapng)
    if request.method == hdrs.METH_HEAD:
        return response
    stream = core.streams.open(
        order=order,
        started_ns=time.time_ns(),
        interfaces=plan.host,
        chosen=plan.chosen,
    )
    opening = core.captures.open(order.query, plan.program, pcapng=pcapng)
    return await _stream(request, response, stream, opening)


async def ring(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /ring``."""
    now_ns = time.time_ns()
    _stay_until_the_client_leaves(request)
    core, entry = request.app[CORE], request[ENTRY]
    grant = _granted(request, Permission.WINDOW)
    if core.recording is None:
        raise NoRingError
    entry.query = query = RingQuery.parse_at(_pairs(request), now_ns=now_ns)
    if query.follow:
        _granted(request, Permission.STREAM)
    entry.order = order = Order.of(request[CLIENT], grant, query)
    plan, window = await core.plan_window(order, now_ns=now_ns)
    pcapng = _wants_pcapng(request)
    response = _response(pcapng=pcapng)
    response.headers[WINDOW_HEADER] = window.report.serialize()
    response.headers[RING_HEADER] = core.recording.ring.note().serialize()
    if request.method == hdrs.METH_HEAD:
        return response
    stream = core.streams.open(
        order=order,
        started_ns=time.time_ns(),
        interfaces=plan.host,
        chosen=plan.chosen,
    )
    opening = core.recording.windows.open(
        order.query, window, plan.program, pcapng=pcapng
    )
    return await _stream(request, response, stream, opening)


def _granted(request: web.Request, permission: Permission) -> Grant:
    return request.app[CORE].grant(request[CLIENT], permission)


def _stay_until_the_client_leaves(request: web.Request) -> None:
    if isinstance(request.protocol, Connection):
        request.protocol.deaf = True
        if request.protocol.ended:
            raise UsageError(
                "the client has closed its side of the connection",
                hint="keep it open for as long as packets are wanted",
            )


def _pairs(request: web.Request) -> list[tuple[str, str]]:
    # Not request.query: that passes bytes that are not UTF-8 on as they are.
    try:
        return parse_qsl(
            request.rel_url.raw_query_string,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except UnicodeDecodeError as exc:
        raise ParameterError("query", "is not valid UTF-8") from exc
    except ValueError as exc:
        raise ParameterError(
            "query", f"has more than {_MAX_PARAMETERS} parameters"
        ) from exc


def _wants_pcapng(request: web.Request) -> bool:
    return prefers_pcapng(",".join(request.headers.getall(hdrs.ACCEPT, ())))


def _response(*, pcapng: bool) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: MEDIA_TYPE_PCAPNG if pcapng else MEDIA_TYPE_PCAP,
            hdrs.VARY: hdrs.ACCEPT,
            hdrs.CACHE_CONTROL: "no-store",
            "X-Accel-Buffering": "no",  # nginx shall pass packets on as they come
        }
    )
    response.force_close()
    return response


async def _stream(
    request: web.Request,
    response: web.StreamResponse,
    stream: Stream,
    opening: Awaitable[LiveCapture | Pull],
) -> web.StreamResponse:
    core = request.app[CORE]
    source: LiveCapture | Pull | None = None
    end = "failed"
    allowed = asyncio.timeout(None)
    try:
        source = await opening
        stream.run(source)
        response.headers[STREAM_HEADER] = str(stream.number)
        async with allowed:
            allowed.reschedule(_last_moment(stream.order.grant))
            end = await _deliver(request, response, stream, source)
    except (asyncio.CancelledError, ConnectionError):
        end = cut_by(request)
        raise
    except TimeoutError:
        if not allowed.expired():
            raise
        # The client takes nothing, or too slowly: for it too the rule holds.
        end = EndReason.CAP
        _cut(request)
        raise ConnectionAbortedError("the time of the rule is over") from None
    except DdumpError as exc:
        end = exc.message
        raise
    finally:
        _refresh(stream)
        if source is not None:
            source.close()
        entry = request[ENTRY]
        entry.ended, entry.stream = end, core.streams.close(stream)
    return response


def _last_moment(grant: Grant) -> float | None:
    if grant.max_duration_ns is None:
        return None
    seconds = grant.max_duration_ns / SECONDS + CAP_GRACE_SECONDS
    return asyncio.get_running_loop().time() + seconds


def _cut(request: web.Request) -> None:
    if isinstance(request.protocol, Connection):
        request.protocol.abort()


def cut_by(request: web.Request) -> str:
    """Return why a request that was cancelled was cut."""
    if isinstance(request.protocol, Connection) and request.protocol.cut_for:
        return request.protocol.cut_for
    return "cut" if request.app[CORE].streams.stopping else "the client left"


async def _deliver(
    request: web.Request,
    response: web.StreamResponse,
    stream: Stream,
    source: LiveCapture | Pull,
) -> EndReason:
    order, query = stream.order, stream.query
    heartbeat = None
    preamble = pcap_preamble(query)
    if response.content_type == MEDIA_TYPE_PCAPNG:
        heartbeat = Heartbeat(
            started_ns=source.started_ns,
            promised_ns=source.promised_ns,
            tally=stream.tally,
        )
        now = asyncio.get_running_loop().time()
        preamble = pcapng_preamble(query, filter_run=order.filter)
        preamble += heartbeat.block(now)
    await response.prepare(request)
    await response.write(preamble)
    reason = order.end(
        await source.deliver(
            Body(request, response).write,
            heartbeat=heartbeat,
            on_draining=lambda: stream.move(StreamState.DRAINING),
        )
    )
    if query.interfaces and (failure := stream.failure(interfaces())) is not None:
        raise failure
    if heartbeat is not None:
        _refresh(stream)
        await response.write(heartbeat.last_block(reason, ended_ns=time.time_ns()))
    await response.write_eof()
    return reason


def _refresh(stream: Stream) -> None:
    try:
        stream.refresh(interfaces())
    except DdumpError as exc:
        _log.warning("stream %d: the last counters are missing: %s", stream.number, exc)


def _json(value: msgspec.Struct | list[InterfaceInfo]) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )


async def health(_: web.Request) -> web.Response:
    """``GET /api/v1/health``: this process answers."""
    return _json(Health(status="ok", version=__version__))


async def status(request: web.Request) -> web.Response:
    """``GET /api/v1/status``."""
    _granted(request, Permission.STATUS)
    core = request.app[CORE]
    core.streams.refresh(interfaces())
    capacity = core.captures.capacity
    return _json(
        Status(
            host=platform.node(),
            version=__version__,
            started_ns=core.started_ns,
            time_ns=time.time_ns(),
            connections=len(core.connections),
            max_connections=core.connections.limit,
            max_streams=capacity.max_streams,
            memory=Memory(used_bytes=capacity.memory, limit_bytes=capacity.max_memory),
            totals=core.streams.totals(),
            states=core.streams.states(),
            streams=core.streams.infos(),
            ended=list(core.streams.ended),
            ring=None if core.recording is None else core.recording.info(),
        )
    )


async def segments(request: web.Request) -> web.Response:
    """``GET /api/v1/segments``."""
    _granted(request, Permission.STATUS)
    recording = request.app[CORE].recording
    return _json(
        Segments(
            host=platform.node(),
            time_ns=time.time_ns(),
            ring=None if recording is None else recording.info(),
            segments=[] if recording is None else recording.ring.segment_infos(),
        )
    )


async def interface_list(request: web.Request) -> web.Response:
    """``GET /api/v1/interfaces``."""
    _granted(request, Permission.STATUS)
    return _json(
        [
            InterfaceInfo(
                name=each.name,
                index=each.index,
                up=each.up,
                loopback=each.loopback,
                promiscuous=each.promiscuous,
                addresses=[str(address) for address in each.addresses],
            )
            for each in await asyncio.to_thread(capturable)
        ]
    )


async def openapi(_: web.Request) -> web.Response:
    """``GET /api/v1/openapi.json``: what this worker serves."""
    return web.Response(body=_DOCUMENT, content_type="application/json")


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``."""
    _granted(request, Permission.STATUS)
    core = request.app[CORE]
    core.streams.refresh(interfaces())
    return web.Response(
        status=HTTPStatus.OK,
        body=core.metrics.render(),
        headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST},
    )
