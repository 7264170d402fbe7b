"""Very many clients at once: those that ask for more streams than there are."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import aiohttp

__all__ = ["cut_at_end", "fill_all_streams"]

REQUESTS = 1000
STREAMS = 8  # what a worker has at once, by default


async def fill_all_streams(
    http: aiohttp.ClientSession,
    packet_sockets: Callable[[], int],
    *,
    leave: Callable[[aiohttp.ClientResponse], object] = lambda _: None,
) -> None:
    """Ask for ``REQUESTS`` streams at once: as many as there are run, the others are told.

    ``packet_sockets`` returns how many the worker has. In the end ``leave`` is called
    with each answer that is a stream, before it is closed.
    """
    statuses: Counter[int] = Counter()
    enough = asyncio.Event()

    async def ask() -> None:
        async with http.get("/capture", params={"filter": "udp port 1"}) as answer:
            statuses[answer.status] += 1
            if answer.status == 503:
                assert answer.headers["Retry-After"]
                assert "streams" in (await answer.json(content_type=None))["detail"]
            if statuses.total() == REQUESTS:
                enough.set()
            await enough.wait()
            if answer.status == 200:
                leave(answer)

    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        for _ in range(REQUESTS):
            tasks.create_task(ask())
        await enough.wait()
        assert packet_sockets() == STREAMS
    assert statuses == {200: STREAMS, 503: REQUESTS - STREAMS}


@contextlib.asynccontextmanager
async def cut_at_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Lend a connection; at the end it is cut."""
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
