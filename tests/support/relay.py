"""A relay of TCP connections that does to them what networks do.

It stands before one server. A test sets how late each direction is, holds bytes back,
lets connections go dead without a word, cuts them, or has the server believe that its
client takes classic pcap only. Until a connection ends, what is sent arrives in order
and as it was; TCP sees to no less.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.namespaces import Host

_PIECE = 64 << 10
_PIECES = 32  # on the way in one direction; then the sender is pushed back
_ACCEPT = re.compile(rb"(?im)^accept:[^\r\n]*")
_PLAIN = b"Accept: application/vnd.tcpdump.pcap"
_RESET = struct.pack("ii", 1, 0)  # struct linger: to close is to reset


def _gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class Way:
    """One direction: what comes is ``delay`` seconds late, give or take ``jitter``.

    Nothing passes while ``open`` is not set.
    """

    delay: float = 0.0
    jitter: float = 0.0
    open: asyncio.Event = field(default_factory=_gate)


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    alive: asyncio.Event = field(default_factory=_gate)

    def reset(self) -> None:
        for writer in (self.client, self.server):
            opened = writer.get_extra_info("socket")
            if opened.fileno() >= 0:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Relay:
    """Connections that come in at ``url``, in ``host``, go on to ``server``.

    ``plain`` is whether requests are made to ask for classic pcap; ``refuses`` whether
    new connections are reset. ``connections`` is how many there have been.
    """

    def __init__(self, host: Host, server: tuple[str, int], *, seed: int = 1) -> None:
        self.up = Way()
        self.down = Way()
        self.plain = False
        self.refuses = False
        self.connections = 0
        self._host = host
        self._server = server
        self._random = random.Random(seed)  # noqa: S311 (the same delays for a seed)
        self._open: set[_Connection] = set()
        with host.entered():
            self._listener = socket.create_server((host.address, 0))
        self._listener.setblocking(False)
        self.url = f"http://{host.address}:{self._listener.getsockname()[1]}"

    def stall(self) -> None:
        """Hold back what comes, both ways, until ``go_on``."""
        self.up.open.clear()
        self.down.open.clear()

    def go_on(self) -> None:
        """Let pass what was held back."""
        self.up.open.set()
        self.down.open.set()

    def half_open(self) -> None:
        """Let the connections of now go dead: nothing passes, and nothing ends them."""
        for connection in self._open:
            connection.alive.clear()

    def cut(self) -> None:
        """Reset the connections of now, on both sides."""
        for connection in self._open:
            connection.reset()

    async def serve(self) -> None:
        """Relay until cancelled; no connection is left then."""
        loop = asyncio.get_running_loop()
        with self._listener:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    accepted, _ = await loop.sock_accept(self._listener)
                    if self.refuses:
                        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        accepted.close()
                    else:
                        tasks.create_task(self._relay(accepted))

    async def _relay(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with self._host.entered():
            ours = socket.socket()
        ours.setblocking(False)
        try:
            await loop.sock_connect(ours, self._server)
        except OSError:
            accepted.close()
            ours.close()
            return
        from_client, client = await asyncio.open_connection(sock=accepted)
        from_server, server = await asyncio.open_connection(sock=ours)
        connection = _Connection(client, server)
        self._open.add(connection)
        self.connections += 1
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(
                    self._pass(self._requests(from_client), server, self.up, connection)
                )
                ways.create_task(
                    self._pass(_pieces(from_server), client, self.down, connection)
                )
        except* OSError:
            pass  # one side, or the test, has ended it
        finally:
            self._open.discard(connection)
            connection.reset()

    async def _requests(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        if not self.plain:
            async for piece in _pieces(reader):
                yield piece
            return
        # Requests without bodies: each is a head.
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                yield _ACCEPT.sub(_PLAIN, await reader.readuntil(b"\r\n\r\n"))

    async def _pass(
        self,
        pieces: AsyncIterator[bytes],
        writer: asyncio.StreamWriter,
        way: Way,
        connection: _Connection,
    ) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(pieces, late, way))
            tasks.create_task(_give(late, writer, way, connection))

    async def _take(
        self,
        pieces: AsyncIterator[bytes],
        late: asyncio.Queue[tuple[float, bytes]],
        way: Way,
    ) -> None:
        loop = asyncio.get_running_loop()
        async for piece in pieces:
            delay = way.delay + self._random.uniform(-way.jitter, way.jitter)
            await late.put((loop.time() + delay, piece))
        await late.put((loop.time() + way.delay, b""))


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(_PIECE):
        yield piece


async def _give(
    late: asyncio.Queue[tuple[float, bytes]],
    writer: asyncio.StreamWriter,
    way: Way,
    connection: _Connection,
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, piece = await late.get()
        await asyncio.sleep(due - loop.time())
        await way.open.wait()
        await connection.alive.wait()
        if not piece:
            writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()


@contextlib.asynccontextmanager
async def relay(
    host: Host, server: tuple[str, int], *, seed: int = 1
) -> AsyncIterator[Relay]:
    """Run a relay until the body is done."""
    made = Relay(host, server, seed=seed)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(made.serve())
        try:
            yield made
        finally:
            serving.cancel()
