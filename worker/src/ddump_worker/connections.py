"""The connections of clients: how many, how long they may take, whether they are alive.

aiohttp's protocol closes a connection that does not bring the headers of a request
within ``HEADER_SECONDS``, the first or a later one. Added here: a bound on their number,
for which hosts compete and not single connections; one on the time that an answer takes;
input during a capture is thrown away (so that reading is never paused, and the client's
leaving always seen), errors in the shape of all other errors, and the end of peers that
vanish while data is under way to them.

TCP_USER_TIMEOUT is not used for the latter: Linux also counts the time in which a
living peer keeps its window shut, and people pause their terminals for longer.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import itertools
import logging
import socket
import struct
import termios
import weakref
from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.http_exceptions import InvalidURLError

from ddump_common.answers import Problem
from ddump_common.api import MAX_FILTER_BYTES, MAX_INTERFACES
from ddump_common.text import printable

from .audit import ENTRY, Entry, ended_by
from .identity import IdentityKind, host_of
from .places import Places
from .problems import problem_response
from .reports import Reports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .identity import Client

__all__ = [
    "HEADER_SECONDS",
    "MAX_WAITING",
    "Claim",
    "Connection",
    "Connections",
    "has_arrived",
    "has_vanished",
]

_log = logging.getLogger(__name__)

HEADER_SECONDS = 10
VANISHED_MS = 40_000
"""How long data may be under way to a peer that says nothing."""
ANSWER_SECONDS = 30
"""How long an answer that is no stream may take, with the client that takes it."""
FRESH_SECONDS = 0.5
"""How long a connection is new, and how long after an answer it is as if that were under way.

A right client has then sent its request: by TLS 1.2 from as far as 250 ms there and back.
"""
SILENT_SECONDS = 0.1
"""How long it is new without a word: the first comes with the end of TCP's handshake."""
MAX_WAITING = 192
"""How many may wait for room; each takes one more file."""

_ROOM_SECONDS = 0.02  # between two looks for somebody to go
_PATIENCE_SECONDS = 2.0  # in all, from when it was accepted

# A request line holds the longest filter with each byte as %XX, and all interfaces.
_MAX_LINE = 3 * MAX_FILTER_BYTES + MAX_INTERFACES * 56 + 1024
_MAX_FIELD = 8190
_WRITE_BUFFER = 65536
# Of what was no request, lines in the log a minute.
_MAX_REPORTS = 30

# linux/tcp.h, struct tcp_info: tcpi_retransmits, tcpi_probes; tcpi_unacked;
# tcpi_last_ack_recv in ms; tcpi_notsent_bytes (Linux 4.6).
_TCP_INFO_BYTES = 148
_COUNTERS = struct.Struct("=xxBB")
_NUMBER = struct.Struct("=I")
_UNACKED_OFFSET, _LAST_ACK_OFFSET, _NOT_SENT_OFFSET = 24, 56, 144


def has_vanished(info: bytes, *, after_ms: int = VANISHED_MS) -> bool:
    """Return whether a ``struct tcp_info`` is that of a peer that is gone.

    It is when what was sent, data or probes of a shut window, had to be sent again,
    and nothing at all has come back for ``after_ms``. A living peer that does not
    read answers the probes.
    """
    retransmits, probes = _COUNTERS.unpack_from(info)
    (silent_ms,) = _NUMBER.unpack_from(info, _LAST_ACK_OFFSET)
    return bool(retransmits or probes) and silent_ms >= after_ms


def has_arrived(info: bytes) -> bool:
    """Return whether the peer of a ``struct tcp_info`` has all that was sent to it.

    Then the transport holds nothing back either: the kernel would have taken it.
    """
    (unacknowledged,) = _NUMBER.unpack_from(info, _UNACKED_OFFSET)
    (not_sent,) = _NUMBER.unpack_from(info, _NOT_SENT_OFFSET)
    return not unacknowledged and not not_sent


class Claim(enum.Enum):
    """What a connection has to say for staying when others want in."""

    NOTHING = enum.auto()
    """No request is under way, nor is one likely to come this moment."""
    NEW = enum.auto()
    """It may bring a request this moment; that passes soon."""
    FIRST = enum.auto()
    """It has brought its first request, just now; that passes soon."""
    ANSWER = enum.auto()
    """It is being answered, or was just now; nobody knows who it is."""
    KNOWN = enum.auto()
    """The same, of somebody who is known."""
    STREAM = enum.auto()
    """Packets run: nothing is cut for others."""


class _Room(enum.Enum):
    """Whether one more has room."""

    FREE = enum.auto()
    SOON = enum.auto()
    NONE = enum.auto()


class Connections:
    """All connections of clients, the oldest first."""

    def __init__(self, *, limit: int, vanished_ms: int = VANISHED_MS) -> None:
        self.limit = limit
        self.refused = 0
        self.evicted = 0
        self.failed_handshakes = 0
        self.malformed_requests = 0
        self.reports = Reports(most=_MAX_REPORTS)
        self._vanished_ms = vanished_ms
        self._open: dict[Connection, None] = {}
        self._hosts: defaultdict[str, dict[Connection, None]] = defaultdict(dict)
        self._waiting = Places(MAX_WAITING)
        # Those of a host wait in a line of their own, not behind those of others.
        self._turns = weakref.WeakValueDictionary[str, asyncio.Lock]()

    def __len__(self) -> int:
        return len(self._open)

    async def admit(self, connection: Connection) -> bool:
        """Count a new connection in, if there is room for it, or room is made.

        At the limit one goes of the host that has most: who opens very many competes
        with itself. Of that host it is the oldest which has no request under way, else
        the oldest whose answer is; those of known clients go after all others, and
        streams never. One that is new goes at once for a host that has fewer. Else it
        is waited for, for so long as it can be new; where very many wait, not by all.
        Cancelling it changes nothing.
        """
        turn = self._turns.setdefault(connection.host, asyncio.Lock())
        room = _Room.SOON if turn.locked() else self._make_room(connection.host)
        if room is _Room.SOON:
            room = await self._wait(connection, turn)
        if room is _Room.NONE:
            self.refused += 1
            return False
        connection.renew()
        self._open[connection] = None
        self._hosts[connection.host][connection] = None
        return True

    async def _wait(self, connection: Connection, turn: asyncio.Lock) -> _Room:
        host = connection.host
        until = connection.accepted_at + _PATIENCE_SECONDS
        try:
            async with self._waiting.hold(host, until=until), turn:
                while True:
                    room = self._make_room(host)
                    if room is not _Room.SOON:
                        return room
                    await asyncio.sleep(_ROOM_SECONDS)
        except TimeoutError:
            return _Room.NONE

    def _make_room(self, host: str) -> _Room:
        """Have somebody go for ``host``, if need be; return whether there is room."""
        if len(self._open) < self.limit:
            return _Room.FREE
        by_share = sorted(self._hosts.values(), key=len, reverse=True)
        share = len(self._hosts.get(host, ()))
        first = _first_of_greater(by_share, share)
        if first is None:
            first = _first(by_share, _IDLE, _ANSWERS, _PASSING)
            if first is not None and first.claim in _PASSING:
                first = _first(by_share, _IDLE)
                if first is None:
                    return _Room.SOON
        if first is None:
            first = _first(by_share, _KNOWN)
        if first is None:
            return _Room.NONE
        self._evict(first)
        return _Room.FREE

    def _evict(self, connection: Connection) -> None:
        self.evicted += 1
        if connection.claim not in _UNASKED:
            _log.warning(
                "the client %s made room for others, and lost its answer",
                connection.client_address,
            )
        connection.cut_for = "evicted"
        connection.abort()
        self.forget(connection)

    def move(self, connection: Connection, host: str) -> None:
        """Count a connection to another host: that for which a proxy speaks."""
        if connection.host == host or connection not in self._open:
            return
        self._leave(connection)
        connection.host = host
        self._hosts[host][connection] = None

    def exhausted(self) -> Problem:
        """Return what somebody is told who was not admitted."""
        return Problem(
            title="Too many connections",
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            detail=f"all {self.limit} connections are in use",
            hint="try again later",
        )

    def forget(self, connection: Connection) -> None:
        """Count out a connection that is lost; again is harmless."""
        self._open.pop(connection, None)
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        same = self._hosts[connection.host]
        same.pop(connection, None)
        if not same:
            del self._hosts[connection.host]

    def sweep(self) -> None:
        """Cut the connections whose peers have vanished, or keep what is over.

        Also those that do not take their answers, or the rest of the last one. The end
        of a stream waits for its client for as long as that lives.
        """
        for connection in list(self._open):
            if connection.is_stuck:
                _log.warning(
                    "the client %s does not take its answer", connection.client_address
                )
                connection.abort()
            elif (info := connection.tcp_info()) is not None:
                if has_vanished(info, after_ms=self._vanished_ms):
                    _log.warning("the client %s has vanished", connection.address)
                    connection.abort()
                elif connection.is_closing and has_arrived(info):
                    connection.abort()

    def revoke(self, holds: Callable[[Client], bool]) -> int:
        """Cut the connections of clients that do not hold any more; return how many."""
        revoked = [
            each
            for each in self._open
            if each.client is not None and not holds(each.client)
        ]
        for connection in revoked:
            connection.cut_for = "revoked"
            connection.abort()
        return len(revoked)

    def abort(self) -> None:
        """Cut all connections."""
        for connection in list(self._open):
            connection.abort()


_IDLE = frozenset({Claim.NOTHING})
_UNASKED = frozenset({Claim.NOTHING, Claim.NEW})
_PASSING = frozenset({Claim.NEW, Claim.FIRST})
_ANSWERS = frozenset({Claim.ANSWER})
_KNOWN = frozenset({Claim.KNOWN})


def _first_of_greater(
    by_share: Iterable[dict[Connection, None]], share: int
) -> Connection | None:
    """Return who goes at once for a host that has ``share``, of one that has more."""
    greater = itertools.takewhile(lambda same: len(same) > share, by_share)
    for _, equals in itertools.groupby(greater, key=len):
        # Among equals no host's answer goes while another's connection asks nothing.
        joined = list(itertools.chain.from_iterable(equals))
        first = _first([joined], _UNASKED, _ANSWERS)
        if first is not None:
            return first
    return None


def _first(
    by_share: Iterable[Iterable[Connection]], *claims: frozenset[Claim]
) -> Connection | None:
    """Return the oldest of the first host, with the first claims that it has of these."""
    for same, wanted in itertools.product(by_share, claims):
        found = next((each for each in same if each.claim in wanted), None)
        if found is not None:
            return found
    return None


class Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, with the worker's own rules.

    It is there before its transport is: ``give_up`` ends what happens until then.
    """

    __slots__ = (
        "_accepted",
        "_connections",
        "_expiry",
        "_give_up",
        "_lower",
        "_since",
        "accepted_at",
        "address",
        "client",
        "cut_for",
        "deadline",
        "deaf",
        "ended",
        "heard",
        "host",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket,
        address: str,
        give_up: Callable[[], object],
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
        self._accepted = accepted
        self._give_up = give_up
        self._lower: asyncio.Transport | None = None  # aiohttp forgets its own early
        self.accepted_at = loop.time()
        """When it began, by the loop's clock."""
        self._since = self.accepted_at  # or when the last request came, or its answer
        self._expiry: asyncio.TimerHandle | None = None
        self.address = address
        """The other side, as people write it; a proxy's where there is one."""
        self.host = host_of(address)
        """For whom it counts: the address without its port, a proxy's client's if known."""
        self.deadline = self.accepted_at + HEADER_SECONDS
        """When the first request has to be there, by the loop's clock."""
        self.client: Client | None = None
        """Who made the request that came last, if it was admitted."""
        self.heard = False
        """Whether the client has said anything yet."""
        self.deaf = False
        """Whether what the client sends is thrown away."""
        self.ended = False
        """Whether the client has closed its side, and still waits for an answer."""
        self.cut_for = ""
        """Why the worker has cut it: ``evicted``, for others, or ``revoked``."""

    @property
    def client_address(self) -> str:
        """The address of who asked last, else of the other side."""
        return self.address if self.client is None else self.client.address

    @property
    def is_made(self) -> bool:
        """Whether there has been a transport: from then on it ends by itself."""
        return self._lower is not None

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._request_in_progress or bool(self._messages)

    @property
    def is_streaming(self) -> bool:
        """Whether packets run: what a stream of them is asked for is no such thing yet."""
        request = self._current_request
        return self.deaf and request is not None and request.writer.output_size > 0

    @property
    def claim(self) -> Claim:
        """What it has to say for staying when others want in."""
        if self.is_streaming:
            return Claim.STREAM
        is_fresh = self._elapsed < (FRESH_SECONDS if self.heard else SILENT_SECONDS)
        if is_fresh and self._request_count <= 1:
            return Claim.FIRST if self._request_count else Claim.NEW
        if is_fresh or self.is_busy or self.is_closing:
            return Claim.KNOWN if self._is_known else Claim.ANSWER
        return Claim.NEW if self._has_unread() else Claim.NOTHING

    @property
    def _is_known(self) -> bool:
        client = self.client
        return client is not None and client.identity.kind is not IdentityKind.ANONYMOUS

    @property
    def _elapsed(self) -> float:
        return self._loop.time() - self._since

    def _has_unread(self) -> bool:
        count = bytearray(4)
        try:
            fcntl.ioctl(self._accepted, termios.FIONREAD, count)
        except (OSError, ValueError):  # closed meanwhile
            return False
        return any(count)

    @property
    def is_closing(self) -> bool:
        """Whether all was said that will be; some may be under way."""
        return self._lower is not None and self._lower.is_closing()

    @property
    def is_stuck(self) -> bool:
        """Whether an answer, other than a stream, is not taken by the client.

        What is closing was answered: the rest of that is under way.
        """
        return (
            (self.is_busy or self.is_closing)
            and not self.deaf
            and self._elapsed > ANSWER_SECONDS
        )

    @property
    def _is_encrypted(self) -> bool:
        return (
            self._lower is not None
            and self._lower.get_extra_info("sslcontext") is not None
        )

    def tcp_info(self) -> bytes | None:
        """Return the kernel's ``struct tcp_info`` of it, if it is of TCP."""
        lower = self._lower
        sock = None if lower is None else lower.get_extra_info("socket")
        if sock is None or sock.family == socket.AF_UNIX:
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:  # closed meanwhile
            return None
        return cast("bytes", info)

    def abort(self) -> None:
        """Cut it, whatever is under way."""
        if self._lower is None:
            self._give_up()
        else:
            self._lower.abort()

    def renew(self) -> None:
        """Count it as new from now on: it did not have its place before."""
        self._since = self._loop.time()

    def identify(self, client: Client) -> None:
        """Note who makes the request that came last: from then on it counts for them."""
        self.client = client
        self._connections.move(self, client.host)

    def forget(self) -> None:
        """Count it out; it is lost, or has never been one."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._connections.forget(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Not isinstance: uvloop has transports of its own.
        self._lower = cast("asyncio.Transport", transport)
        if self._is_encrypted:
            # As of a plain one: what a stalled client does not take is not to pile up.
            self._lower.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._expiry = self._loop.call_at(self.deadline, self._expire)
        super().connection_made(transport)

    def _expire(self) -> None:
        if self._request_count == 0:
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        self.heard = True
        if not self.deaf:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override] # None there
        """Answer what was asked, unless that is a capture: that client has left.

        What it has not taken of one is not waited for. By TLS it has left in any case:
        nothing can be sent after its goodbye.
        """
        if self._is_encrypted or self.deaf:
            if self.is_busy:
                self._loop.call_soon(self.abort)
            return False
        self.ended = True
        # aiohttp's task then waits for a request, or has one.
        self._loop.call_soon(self._end)
        return True

    def _end(self) -> None:
        if self._messages or self._waiter is None:
            self.close()  # after the answer
        elif self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End; a handler that still runs is cancelled."""
        self.forget()
        super().connection_lost(exc)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        self._since = self._loop.time()
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self._since = self._loop.time()

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
        elif isinstance(exc, InvalidURLError):
            detail = "the target is no URL"  # aiohttp's message is what was sent
        elif message:
            # What follows a colon is what was sent: credentials, or a query.
            detail = printable(message.splitlines()[0].partition(":")[0])
        problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
        if request.get(ENTRY) is None:
            # Not even a request, as far as HTTP goes.
            self._connections.malformed_requests += 1
            if self._connections.reports.allow():
                Entry(
                    address=self.address, status=status, ended=ended_by(problem)
                ).log()
        response = problem_response(problem)
        response.force_close()
        return response
