"""The gate: what happens to a connection between its beginning and its first request.

Connections are accepted in plain, and counted at once, before anything is done for them.
Those by TCP then shake hands, if the worker serves by TLS, with the context of that
moment: what is reloaded needs no new socket. From the beginning on a connection has
``HEADER_SECONDS`` for all of that and for the header of its first request.

``loop.start_tls()`` would lose what the client has sent already (uvloop), or hand on its
first request before the protocol knows of the connection (asyncio). So a socket becomes a
transport only here, with TLS from the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING

from ddump_common.answers import Problem
from ddump_common.text import printable

from .audit import Entry, ended_by
from .connections import HEADER_SECONDS, Connection
from .farewell import Farewells
from .identity import peer_address
from .problems import raw_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp import web

    from ddump_common.tls import ServerContext

    from .connections import Connections

__all__ = ["MAX_SPARES", "Gate"]

_log = logging.getLogger(__name__)

_HANDSHAKE = b"\x16"  # the first byte of TLS (RFC 8446, 5.1)
_ERROR_PAUSE_SECONDS = 0.1
MAX_SPARES = 256
"""How many handshakes at once can be told why they fail; each takes one more file."""
# How long a client may take to take the rest of an answer. By no time of ours: a plain
# connection has none either, and Connections.sweep() ends what is over or has vanished.
_FLUSH_SECONDS = 30 * 86400


class Gate:
    """Takes connections, and makes requests of them."""

    def __init__(
        self,
        server: web.Server,
        connections: Connections,
        *,
        context: Callable[[], ServerContext | None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Have ``server`` answer what ``connections`` admits.

        ``context`` is asked at each connection by TCP; ``None`` is no TLS. All that goes
        on here is done by ``tasks``, and ends with them.
        """
        self._server = server
        self._connections = connections
        self._context = context
        self._tasks = tasks
        self._farewells = Farewells()
        self._spares = 0

    def open(self, listening: socket.socket) -> None:
        """Accept connections at a socket that listens, which remains the caller's."""
        self._tasks.create_task(self._accept(listening), name="accept")

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as exc:  # of that connection, or nothing is free
                self._report("a connection could not be accepted: %s", exc.strerror)
                await asyncio.sleep(_ERROR_PAUSE_SECONDS)
                continue
            self._tasks.create_task(
                self._receive(accepted, peer_address(peer)), name="connection"
            )
            await asyncio.sleep(0)  # a flood shall not keep the loop

    async def _receive(self, accepted: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine has one
        connection = Connection(
            self._server,
            connections=self._connections,
            loop=loop,
            accepted=accepted,
            address=address,
            give_up=task.cancel,
        )
        is_unix = accepted.family == socket.AF_UNIX
        context = None if is_unix else self._context()
        try:
            if not await self._connections.admit(connection):
                await self._turn_away(connection, accepted, context)
            elif context is None:
                await loop.connect_accepted_socket(lambda: connection, accepted)
            else:
                await self._encrypt(connection, accepted, context)
        except Exception:  # noqa: BLE001 - the top of a connection
            _log.exception("a connection from %s failed", address)
        finally:
            if not connection.is_made:
                connection.forget()
                accepted.close()

    async def _turn_away(
        self,
        connection: Connection,
        accepted: socket.socket,
        context: ServerContext | None,
    ) -> None:
        problem = self._connections.exhausted()
        told = await self._farewells.say(
            accepted, raw_problem(problem), host=connection.host, context=context
        )
        self._report_request(connection, problem, told=told)

    async def _encrypt(
        self, connection: Connection, accepted: socket.socket, context: ServerContext
    ) -> None:
        try:
            async with asyncio.timeout_at(connection.deadline):
                await _readable(accepted)
                connection.heard = True
                first = accepted.recv(1, socket.MSG_PEEK)
                if first == _HANDSHAKE:
                    await self._shake_hands(connection, accepted, context)
                elif first:
                    self._connections.failed_handshakes += 1
                    told = await self._farewells.say(
                        accepted, raw_problem(_PLAIN), host=connection.host
                    )
                    self._report_request(connection, _PLAIN, told=told)
        except TimeoutError:
            self._report_failure(connection, f"it took longer than {HEADER_SECONDS} s")
        except ssl.SSLError as exc:
            self._report_failure(connection, _reason(exc))
        except OSError as exc:
            self._report_failure(connection, exc.strerror or "the client left")

    async def _shake_hands(
        self, connection: Connection, accepted: socket.socket, context: ServerContext
    ) -> None:
        with self._spare(accepted) as spare:
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=context,
                    ssl_handshake_timeout=2 * HEADER_SECONDS,  # ours is over before
                    ssl_shutdown_timeout=_FLUSH_SECONDS,
                )
            except ssl.SSLError as exc:
                if spare is not None:
                    await self._farewells.say(
                        spare, getattr(exc, "alert", b""), host=connection.host
                    )
                raise

    @contextlib.contextmanager
    def _spare(self, accepted: socket.socket) -> Iterator[socket.socket | None]:
        """Lend what remains when the loop closes the socket of a handshake that fails."""
        if self._spares >= MAX_SPARES:
            yield None
            return
        self._spares += 1
        try:
            with accepted.dup() as spare:
                yield spare
        finally:
            self._spares -= 1

    def _report_failure(self, connection: Connection, reason: str) -> None:
        self._connections.failed_handshakes += 1
        self._report(
            "the TLS handshake with %s failed: %s",
            connection.address,
            printable(reason),
        )

    def _report_request(
        self, connection: Connection, problem: Problem, *, told: bool
    ) -> None:
        """Tell of a request that was not read."""
        if self._connections.reports.allow():
            Entry(
                address=connection.address,
                status=problem.status if told else None,
                ended=ended_by(problem),
            ).log()

    def _report(self, text: str, *arguments: object) -> None:
        if self._connections.reports.allow():
            _log.warning(text, *arguments)


_PLAIN = Problem(
    title="This is a port of https",
    status=HTTPStatus.BAD_REQUEST,
    detail="the request came without TLS",
    hint="write https:// instead of http://",
)


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(accepted, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(accepted)


def _reason(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the client's certificate: {exc.verify_message}"
    return (exc.reason or str(exc)).lower().replace("_", " ")
