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
    STREAM_HEADER,
    WINDOW_HEADER,
    CaptureQuery,
    RingQuery,
)
from ddump_common.errors import DdumpError, ParameterError, UsageError
from ddump_common.text import printable
from ddump_common.timespec import format_time
from ddump_common.units import SECONDS

from . import __version__
from .accept import prefers_pcapng
from .body import Body
from .connections import Connection
from .core import Core
from .heartbeat import Heartbeat
from .interfaces import capturable, interfaces
from .preamble import pcap_preamble, pcapng_preamble
from .window import NoRingError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ddump_common.note import EndReason

    from .capture import LiveCapture
    from .pull import Pull
    from .streams import Stream

__all__ = [
    "CORE",
    "capture",
    "client_of",
    "health",
    "interface_list",
    "metrics",
    "ring",
    "segments",
    "status",
]

CORE = web.AppKey("CORE", Core)

_log = logging.getLogger(__name__)

_MAX_PARAMETERS = 256


async def capture(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /capture``."""
    _stay_until_the_client_leaves(request)
    core = request.app[CORE]
    query = CaptureQuery.parse(_pairs(request))
    plan = await core.plan(query, client=request.remote or "")
    pcapng = _wants_pcapng(request)
    response = _response(pcapng=pcapng)
    if request.method == hdrs.METH_HEAD:
        return response
    stream = core.streams.open(
        client=client_of(request),
        query=query,
        started_ns=time.time_ns(),
        interfaces=plan.host,
        chosen=plan.chosen,
    )
    opening = core.captures.open(query, plan.program, pcapng=pcapng)
    return await _stream(request, response, stream, opening)


async def ring(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /ring``."""
    now_ns = time.time_ns()
    _stay_until_the_client_leaves(request)
    core = request.app[CORE]
    if core.recording is None:
        raise NoRingError
    query = RingQuery.parse_at(_pairs(request), now_ns=now_ns)
    program, plan = await core.plan_window(
        query, now_ns=now_ns, client=request.remote or ""
    )
    pcapng = _wants_pcapng(request)
    response = _response(pcapng=pcapng)
    response.headers[WINDOW_HEADER] = plan.report.serialize()
    if request.method == hdrs.METH_HEAD:
        return response
    stream = core.streams.open(
        client=client_of(request), query=query, started_ns=time.time_ns()
    )
    opening = core.recording.windows.open(query, plan, program, pcapng=pcapng)
    return await _stream(request, response, stream, opening)


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
    try:
        source = await opening
        stream.run(source)
        response.headers[STREAM_HEADER] = str(stream.number)
        end = await _deliver(request, response, stream, source)
    except (asyncio.CancelledError, ConnectionError):
        end = "cut" if core.streams.stopping else "the client left"
        raise
    except DdumpError as exc:
        end = exc.message
        raise
    finally:
        _finish(core, stream, source, end)
    return response


async def _deliver(
    request: web.Request,
    response: web.StreamResponse,
    stream: Stream,
    source: LiveCapture | Pull,
) -> EndReason:
    query = stream.query
    heartbeat = None
    preamble = pcap_preamble(query)
    if response.content_type == MEDIA_TYPE_PCAPNG:
        heartbeat = Heartbeat(
            started_ns=source.started_ns,
            promised_ns=source.promised_ns,
            tally=stream.tally,
        )
        now = asyncio.get_running_loop().time()
        preamble = pcapng_preamble(query) + heartbeat.block(now)
    await response.prepare(request)
    await response.write(preamble)
    reason = await source.deliver(
        Body(request, response).write,
        heartbeat=heartbeat,
        on_draining=lambda: stream.move(StreamState.DRAINING),
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


def _finish(
    core: Core, stream: Stream, source: LiveCapture | Pull | None, end: str
) -> None:
    _refresh(stream)
    if source is not None:
        source.close()
    info = core.streams.close(stream)
    if isinstance(stream.query, RingQuery):
        kind, bounds = "window", f"{_bounds(stream.query)}, "
        lost = (
            f"{info.dropped} dropped by the kernel in what was read, "
            f"{info.skipped} skipped"
        )
    else:
        kind, bounds = "stream", ""
        lost = (
            f"{info.dropped} dropped by the kernel, {info.interface_dropped} by "
            f"interfaces, {info.undelivered} undelivered"
        )
    _log.info(
        '%s %d for %s ended: %s; %sfilter "%s", %d packets, %d bytes, %s, %.3f s',
        kind,
        info.id,
        info.client,
        end,
        bounds,
        printable(info.filter),
        info.packets,
        info.bytes,
        lost,
        (time.time_ns() - info.started_ns) / SECONDS,
    )


def _bounds(query: RingQuery) -> str:
    since = "the oldest" if query.since_ns is None else format_time(query.since_ns)
    if query.until_ns is None:
        return f"from {since} on" if query.follow else f"from {since} to now"
    return f"from {since} to {format_time(query.until_ns)}"


def client_of(request: web.Request) -> str:
    """Return who asks, as far as the connection tells."""
    peer = request.transport and request.transport.get_extra_info("peername")
    if not peer:
        return "unix"
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
    recording = request.app[CORE].recording
    return _json(
        Segments(
            host=platform.node(),
            time_ns=time.time_ns(),
            ring=None if recording is None else recording.info(),
            segments=[] if recording is None else recording.ring.segment_infos(),
        )
    )


async def interface_list(_: web.Request) -> web.Response:
    """``GET /api/v1/interfaces``."""
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


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``."""
    core = request.app[CORE]
    core.streams.refresh(interfaces())
    return web.Response(
        status=HTTPStatus.OK,
        body=core.metrics.render(),
        headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST},
    )
