"""The connections of clients: how many, how long they may take, whether they are alive.

aiohttp's protocol closes a connection that does not bring the headers of a request
within ``HEADER_SECONDS``, the first or a later one. Added here: a bound on their number,
input during a capture is thrown away (so that reading is never paused, and the
client's leaving always seen), errors in the shape of all other errors, and the end of
peers that vanish while data is under way to them.

TCP_USER_TIMEOUT is not used for the latter: Linux also counts the time in which a
living peer keeps its window shut, and people pause their terminals for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web

from ddump_common.answers import Problem
from ddump_common.api import MAX_FILTER_BYTES, MAX_INTERFACES
from ddump_common.text import printable

from .problems import problem_response, raw_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .identity import Client

__all__ = ["HEADER_SECONDS", "Connection", "Connections", "has_vanished"]

_log = logging.getLogger(__name__)

HEADER_SECONDS = 10
VANISHED_MS = 40_000
"""How long data may be under way to a peer that says nothing."""

# A request line holds the longest filter with each byte as %XX, and all interfaces.
_MAX_LINE = 3 * MAX_FILTER_BYTES + MAX_INTERFACES * 56 + 1024
_MAX_FIELD = 8190
# Connections over the limit get an answer; so many at once may wait for it to arrive.
_MAX_FAREWELLS = 64
_FAREWELL_SECONDS = 1.0

# linux/tcp.h, struct tcp_info: tcpi_retransmits, tcpi_probes; tcpi_unacked;
# tcpi_last_ack_recv in ms.
_TCP_INFO_BYTES = 104
_COUNTERS = struct.Struct("=xxBB")
_UNACKED = struct.Struct("=I")
_UNACKED_OFFSET, _LAST_ACK_OFFSET = 24, 56


def has_vanished(info: bytes, *, after_ms: int = VANISHED_MS) -> bool:
    """Return whether a ``struct tcp_info`` is that of a peer that is gone.

    It is when what was sent, data or probes of a shut window, had to be sent again,
    and nothing at all has come back for ``after_ms``. A living peer that does not
    read answers the probes.
    """
    retransmits, probes = _COUNTERS.unpack_from(info)
    (silent_ms,) = _UNACKED.unpack_from(info, _LAST_ACK_OFFSET)
    return bool(retransmits or probes) and silent_ms >= after_ms


class Connections:
    """All connections of clients."""

    def __init__(self, *, limit: int, vanished_ms: int = VANISHED_MS) -> None:
        self.limit = limit
        self.refused = 0
        self._vanished_ms = vanished_ms
        self._open: dict[Connection, asyncio.Transport] = {}
        self._farewells = 0

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, server: web.Server) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(
            server,
            connections=self,
            loop=asyncio.get_running_loop(),
        )

    def admit(self, connection: Connection, transport: asyncio.Transport) -> bool:
        """Count a new connection in, or turn it away."""
        if len(self._open) < self.limit:
            self._open[connection] = transport
            return True
        self.refused += 1
        self._turn_away(transport)
        return False

    def _turn_away(self, transport: asyncio.Transport) -> None:
        if self._farewells >= _MAX_FAREWELLS:
            transport.abort()
            return
        problem = Problem(
            title="Too many connections",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            detail=f"all {self.limit} connections are in use",
            hint="try again later",
        )
        transport.write(raw_problem(problem))
        # Closed at once, a request that is still arriving would reset the
        # connection, and the answer with it.
        self._farewells += 1
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._part, transport)

    def _part(self, transport: asyncio.Transport) -> None:
        self._farewells -= 1
        transport.close()

    def forget(self, connection: Connection) -> None:
        """Count out a connection that is lost."""
        self._open.pop(connection, None)

    def sweep(self) -> None:
        """Cut the connections whose peers have vanished."""
        for transport in self._transports():
            sock = transport.get_extra_info("socket")
            if sock is None or sock.family == socket.AF_UNIX:
                continue
            with contextlib.suppress(OSError):
                info = sock.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES
                )
                if has_vanished(info, after_ms=self._vanished_ms):
                    peer = transport.get_extra_info("peername")
                    _log.warning("the client %s has vanished", peer)
                    transport.abort()

    def abort(self) -> None:
        """Cut all connections."""
        for transport in self._transports():
            transport.abort()

    def _transports(self) -> Iterator[asyncio.Transport]:
        return iter(list(self._open.values()))


class Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, with the worker's own rules."""

    __slots__ = ("_admitted", "_connections", "client", "deaf", "ended")

    def __init__(
        self,
        server: web.Server,
        *,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # None switches it off
            keepalive_timeout=HEADER_SECONDS,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            lingering_time=0,
        )
        self._connections = connections
        self._admitted = False
        self.client: Client | None = None
        """Who made the request that came last, if it was admitted."""
        self.deaf = False
        """Whether what the client sends is thrown away."""
        self.ended = False
        """Whether the client has closed its side, and still waits for an answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away."""
        # Not isinstance: uvloop has transports of its own.
        transport = cast("asyncio.Transport", transport)
        self._admitted = self._connections.admit(self, transport)
        if self._admitted:
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._admitted and not self.deaf:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override] # None there
        """Answer what was asked, unless that is a capture: that client has left."""
        self.ended = self._admitted and not self.deaf
        if self.ended:
            # aiohttp's task then waits for a request, or has one.
            self._loop.call_soon(self._end)
        return self.ended

    def _end(self) -> None:
        if self._messages or self._waiter is None:
            self.close()  # after the answer
        elif self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End; a handler that still runs is cancelled."""
        self._connections.forget(self)
        if self._admitted:
            super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never reached a handler."""
        if request.writer.output_size > 0:
            # The connection ends without the final chunk: the client sees it broken.
            raise ConnectionError("the response has begun already")
        detail = ""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request failed", exc_info=exc)
        elif message:
            detail = printable(message.splitlines()[0])
        response = problem_response(
            Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
        )
        response.force_close()
        return response
