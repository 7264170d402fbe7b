"""A few places for which hosts compete, each held for a while.

Where all are taken, the host that has most loses the one that it has held for longest: so
a newcomer always gets one, and nobody can keep them all from others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Places"]


class Places:
    """At most so many places, and who holds them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[asyncio.Timeout, str] = {}

    @contextlib.asynccontextmanager
    async def hold(self, host: str, *, until: float) -> AsyncIterator[None]:
        """Hold a place for ``host`` until then, by the loop's clock.

        Raises:
            TimeoutError: the time is over, or another has the place.

        """
        if len(self._held) >= self._limit:
            self._clear()
        async with asyncio.timeout_at(until) as time:
            self._held[time] = host
            try:
                yield
            finally:
                self._held.pop(time, None)

    def _clear(self) -> None:
        counts = Counter(self._held.values())
        most = max(counts.values())
        first = next(time for time, host in self._held.items() if counts[host] == most)
        del self._held[first]
        if not first.expired():
            first.reschedule(asyncio.get_running_loop().time())
