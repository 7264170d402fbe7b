"""Waiting for a window: its worker may look through gigabytes and find nothing to send.

Silence of a window says nothing by itself, and the clock does not move it. When it was
silent for long, its worker is asked how far it has read: as long as it goes on, there is
more to come. A window that is followed has caught up when it has been read to the
worker's present: from then on it is a live stream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ddump_common.errors import BrokenStreamError, PeerError
from ddump_common.units import MILLISECONDS, SECONDS, format_duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .account import Account
    from .lane import Lane

    # Asks a lane's worker; ``None`` when it tells nobody. Raises PeerError.
    Ask = Callable[[Lane], Awaitable[Account | None]]

__all__ = ["Scan", "catch_up"]

# A recorder's batches are this late at most, and so is what follows them.
_PRESENT_NS = SECONDS

# Nobody is asked more often.
_LEAST_PAUSE_NS = 100 * MILLISECONDS

# It is asked so often within a timeout, to see whether it goes on.
_SILENCES = 2

# The process itself slept when a timer is this late, in seconds: it has not listened.
_LATEST_TIMER = 0.5


async def catch_up(lane: Lane, ask: Ask, *, pause_ns: int) -> None:
    """Ask every ``pause_ns`` until the lane's worker has read to its present.

    One that does not tell is taken for a live stream at once.
    """
    while True:
        await asyncio.sleep(max(pause_ns, _LEAST_PAUSE_NS) / SECONDS)
        try:
            account = await ask(lane)
        except PeerError:
            continue
        if account is None or not account.stream.window:
            return
        position_ns = account.stream.position_ns  # None: it has not begun
        if position_ns is not None and position_ns >= account.time_ns - _PRESENT_NS:
            return


class Scan:
    """One window as it is waited for; ``ask`` is how its worker is asked."""

    def __init__(self, lane: Lane, ask: Ask, *, timeout_ns: int) -> None:
        self._lane = lane
        self._ask = ask
        self._timeout_ns = timeout_ns
        self._patience = timeout_ns / _SILENCES / SECONDS
        self._was_asked = False
        self._position_ns: int | None = None

    async def read(self) -> bytes | None:
        """Return the next bytes, none at the end; ``None`` when it has become live.

        Cancelling it loses none.

        Raises:
            BrokenStreamError: as the source's; also when nothing came for so long, and
                the worker did not say that it goes on.

        """
        loop = asyncio.get_running_loop()
        silences = 0
        while True:
            due = loop.time() + self._patience
            try:
                async with asyncio.timeout_at(due):
                    return await self._lane.source.read()
            except TimeoutError:
                if data := self._lane.source.arrived():
                    return data
            if self._lane.live:
                return None
            if loop.time() - due > _LATEST_TIMER:
                continue
            silences = 0 if await self._goes_on() else silences + 1
            if silences == _SILENCES:
                silence = format_duration(self._timeout_ns)
                raise BrokenStreamError(
                    f"nothing came for {silence}", hint="see --timeout"
                )

    async def _goes_on(self) -> bool:
        """Ask the worker whether it has read on since it was asked before."""
        try:
            account = await self._ask(self._lane)
        except PeerError:
            return False
        if account is None or not account.stream.window:
            return False
        before_ns, self._position_ns = self._position_ns, account.stream.position_ns
        was_asked, self._was_asked = self._was_asked, True
        return was_asked and self._position_ns != before_ns
