"""Servers that do to a client whatever a test says, over real sockets and real TLS.

A script is a coroutine that gets one ``Exchange``: the request that came, and ways to
answer it right or wrong, to the byte. Every request is kept for the test to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddump_common.api import HEALTH_PATH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from support.certificates import Authority, Pair

    Script = Callable[["Exchange"], Awaitable[None]]

PCAP = "application/vnd.tcpdump.pcap"
_CLOSED = (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)


@dataclass(slots=True)
class Request:
    """The head of a request."""

    method: str
    target: str
    headers: dict[str, str]


class Exchange:
    """One request, and what is answered."""

    def __init__(self, request: Request, reader, writer) -> None:
        self.request = request
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are; wait while the client does not take them."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: str, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in headers.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def answer(self, status: str, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; ``content_type`` is written as ``Content-Type``."""
        named = {name.replace("_", "-").title(): v for name, v in headers.items()}
        await self.head(status, {**named, "Content-Length": str(len(body))})
        await self.send(body)

    async def begin(self, content_type: str = PCAP) -> None:
        """Begin a stream of chunks."""
        headers = {"Transfer-Encoding": "chunked"}
        if content_type:
            headers["Content-Type"] = content_type
        await self.head("200 OK", headers)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """End a stream as it should."""
        await self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(*_CLOSED):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        """Break the connection without a word."""
        self._writer.transport.abort()


@dataclass(slots=True)
class Server:
    """A server that runs: where it listens, and what it was asked.

    ``health`` are requests for the time, which are answered with 404 and not counted.
    """

    port: int
    scheme: str = "http"
    host: str = "127.0.0.1"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    health: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@contextlib.asynccontextmanager
async def serving(
    script: Script,
    *,
    context: ssl.SSLContext | None = None,
    port: int = 0,
    tells_time: bool = False,
) -> AsyncIterator[Server]:
    """Serve on a port of 127.0.0.1, a free one; a script that fails fails the test.

    One that ``tells_time`` gets the requests for it as well.
    """
    failures: list[BaseException] = []
    tasks: set[asyncio.Task] = set()

    async def handle(reader, writer) -> None:
        tasks.add(asyncio.current_task())
        server.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            request = _parse(head)
            exchange = Exchange(request, reader, writer)
            if request.target.endswith(HEALTH_PATH) and not tells_time:
                server.connections -= 1
                server.health.append(request)
                await exchange.answer("404 Not Found")
                return
            server.requests.append(request)
            await script(exchange)
        except (*_CLOSED, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        except Exception as exc:  # noqa: BLE001  # shown when the server ends
            failures.append(exc)
        finally:
            tasks.discard(asyncio.current_task())
            writer.close()
            with contextlib.suppress(*_CLOSED):
                await writer.wait_closed()

    listener = await asyncio.start_server(handle, "127.0.0.1", port, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    server = Server(port, "http" if context is None else "https")
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.wait(tasks)
        await listener.wait_closed()
    if failures:
        raise ExceptionGroup("the server's script failed", failures)


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = dict(line.split(": ", 1) for line in lines if line)
    return Request(method, target, headers)


def capture(pieces: Iterable[bytes]) -> Script:
    """Return a script that streams ``pieces`` and ends as it should."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        for piece in pieces:
            await exchange.chunk(piece)
        await exchange.end()

    return script


def answer(status: str, body: bytes = b"", **headers: str) -> Script:
    """Return a script that answers so."""

    async def script(exchange: Exchange) -> None:
        await exchange.answer(status, body, **headers)

    return script


def refusing_port() -> int:
    """Return a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def handshakes(context: ssl.SSLContext) -> Iterator[int]:
    """Do TLS handshakes on a port and nothing more.

    OpenSSL tells the client why it refuses one; asyncio's servers keep that to themselves.
    """

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            if ended.is_set():
                connection.close()
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except ssl.SSLError:
                connection.close()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address[1]
        finally:
            ended.set()
            socket.create_connection(address).close()
            thread.join()


def tls(pair: Pair, *, client_authority: Authority | None = None) -> ssl.SSLContext:
    """Return a server's context; with an authority it wants a client's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_authority.cert)
    return context
