"""Programs of filters: those that are being made, and the last that were.

Many ask for the same at once, as one command does for many windows: one helper works
for all of them, and ends when the last of them goes. What it made is kept, for a short
time as names in a filter may stand for other addresses then. A refusal is for those who
wait for it, and is not kept.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ddump_common.units import MEBIBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from ddump_common.pcap import LinkType

__all__ = ["Making", "Programs", "Source"]

MOST = 64
MOST_BYTES = 1 * MEBIBYTES
KEPT_SECONDS = 60.0


class Source(NamedTuple):
    """All that decides what a program is."""

    text: bytes
    link_type: LinkType
    snaplen: int
    stored: bool


class _Kept(NamedTuple):
    program: bytes
    expires: float  # by the loop's clock
    size: int


class Making:
    """A program that is being made, for all who wait for it."""

    def __init__(self, work: Coroutine[Any, Any, bytes]) -> None:
        # No orphan: those who wait for it hold it, and the last of them ends it.
        self.task = asyncio.create_task(work)  # noqa: TID251
        self.abandoned = False
        self._waiting = 0

    async def wait(self) -> bytes:
        """Return the program, or raise why there is none.

        Cancelling leaves it to the others who wait; without others it has ended.
        """
        self._waiting += 1
        try:
            await asyncio.wait([self.task])  # which stays when this is cancelled
            return self.task.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self.abandoned = True
                self.task.cancel()
                await asyncio.wait([self.task])


class Programs:
    """Programs by their source; ``MOST`` of ``MOST_BYTES`` with their sources are kept."""

    def __init__(self) -> None:
        self._making: dict[Source, Making] = {}
        self._kept: dict[Source, _Kept] = {}  # oldest first
        self._kept_bytes = 0

    def kept(self, source: Source) -> bytes | None:
        """Return what was made lately."""
        now = asyncio.get_running_loop().time()
        while self._kept and next(iter(self._kept.values())).expires <= now:
            self._drop_oldest()
        kept = self._kept.get(source)
        return None if kept is None else kept.program

    def under_way(self, source: Source) -> Making | None:
        """Return what is being made for others already."""
        making = self._making.get(source)
        return None if making is None or making.abandoned else making

    def make(
        self,
        source: Source,
        work: Coroutine[Any, Any, bytes],
        *,
        on_end: Callable[[], None],
    ) -> Making:
        """Begin ``work``, to be waited for at once.

        ``on_end`` is called when it has ended, however it did.
        """
        making = self._making[source] = Making(work)
        making.task.add_done_callback(partial(self._ended, source, making, on_end))
        return making

    def _ended(
        self,
        source: Source,
        making: Making,
        on_end: Callable[[], None],
        task: asyncio.Task[bytes],
    ) -> None:
        on_end()
        if self._making.get(source) is making:
            del self._making[source]
        if not task.cancelled() and task.exception() is None:
            self._keep(source, task.result())

    def _keep(self, source: Source, program: bytes) -> None:
        if source in self._kept:
            return
        expires = asyncio.get_running_loop().time() + KEPT_SECONDS
        size = len(source.text) + len(program)
        self._kept[source] = _Kept(program, expires, size)
        self._kept_bytes += size
        while len(self._kept) > MOST or self._kept_bytes > MOST_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._kept_bytes -= self._kept.pop(next(iter(self._kept))).size
