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

from ddump_common.answers import Health, InterfaceInfo, Memory, Status, StreamState
from ddump_common.api import MEDIA_TYPE_PCAP, STREAM_HEADER, CaptureQuery
from ddump_common.errors import DdumpError, ParameterError, UsageError
from ddump_common.pcap import PcapHeader
from ddump_common.text import printable
from ddump_common.units import SECONDS

from . import __version__
from .body import Body
from .connections import Connection
from .core import Core
from .interfaces import capturable, interfaces

if TYPE_CHECKING:
    from .capture import EndReason, LiveCapture
    from .core import Plan
    from .streams import Stream

__all__ = [
    "CORE",
    "capture",
    "client_of",
    "health",
    "interface_list",
    "metrics",
    "status",
]

CORE = web.AppKey("CORE", Core)

_log = logging.getLogger(__name__)

_MAX_PARAMETERS = 256


async def capture(request: web.Request) -> web.StreamResponse:
    """``GET`` and ``HEAD /capture``."""
    if isinstance(request.protocol, Connection):
        request.protocol.deaf = True
        if request.protocol.ended:
            raise UsageError(
                "the client has closed its side of the connection",
                hint="keep it open for as long as packets are wanted",
            )
    core = request.app[CORE]
    query = _query(request)
    plan = await core.plan(query, client=request.remote or "")
    if request.method == hdrs.METH_HEAD:
        return _response()
    return await _stream(request, core, query, plan)


def _query(request: web.Request) -> CaptureQuery:
    # Not request.query: that passes bytes that are not UTF-8 on as they are.
    try:
        pairs = parse_qsl(
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
    return CaptureQuery.parse(pairs)


def _response() -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: MEDIA_TYPE_PCAP,
            hdrs.CACHE_CONTROL: "no-store",
            "X-Accel-Buffering": "no",  # nginx shall pass packets on as they come
        }
    )
    response.force_close()
    return response


async def _stream(
    request: web.Request, core: Core, query: CaptureQuery, plan: Plan
) -> web.StreamResponse:
    stream = core.streams.open(
        client=client_of(request),
        query=query,
        started_ns=time.time_ns(),
        interfaces=plan.host,
        chosen=plan.chosen,
    )
    live: LiveCapture | None = None
    end = "failed"
    try:
        live = await core.captures.open(query, plan.program)
        stream.run(live)
        response = _response()
        response.headers[STREAM_HEADER] = str(stream.number)
        end = await _deliver(request, response, stream, live)
    except (asyncio.CancelledError, ConnectionError):
        end = "cut" if core.streams.stopping else "the client left"
        raise
    except DdumpError as exc:
        end = exc.message
        raise
    finally:
        _finish(core, stream, live, end)
    return response


async def _deliver(
    request: web.Request,
    response: web.StreamResponse,
    stream: Stream,
    live: LiveCapture,
) -> EndReason:
    query = stream.query
    header = PcapHeader(
        link_type=query.link.link_type,
        snaplen=query.snaplen,
        precision=query.precision,
    )
    await response.prepare(request)
    await response.write(header.serialize())
    reason = await live.deliver(
        Body(request, response).write,
        on_draining=lambda: stream.move(StreamState.DRAINING),
    )
    if query.interfaces and (failure := stream.failure(interfaces())) is not None:
        raise failure
    await response.write_eof()
    return reason


def _finish(core: Core, stream: Stream, live: LiveCapture | None, end: str) -> None:
    try:
        stream.refresh(interfaces())
    except DdumpError as exc:
        _log.warning("stream %d: the last counters are missing: %s", stream.number, exc)
    if live is not None:
        live.close()
    info = core.streams.close(stream)
    _log.info(
        'stream %d for %s ended: %s; filter "%s", %d packets, %d bytes, %d dropped by '
        "the kernel, %d by interfaces, %d undelivered, %.3f s",
        info.id,
        info.client,
        end,
        printable(info.filter),
        info.packets,
        info.bytes,
        info.dropped,
        info.interface_dropped,
        info.undelivered,
        (time.time_ns() - info.started_ns) / SECONDS,
    )


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
