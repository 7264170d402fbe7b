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

from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .account import Account
    from .config import Config
    from .lane import Lane

__all__ = ["Scan"]

# A recorder's batches are this late at most, and so is what follows them.
_PRESENT_NS = SECONDS

# Nobody is asked more often.
_LEAST_PATIENCE_NS = 100 * MILLISECONDS

# The process itself slept when a timer is this late, in seconds: it has not listened.
_LATEST_TIMER = 0.5


class Scan:
    """One window as it is waited for; ``ask`` is how its worker is asked."""

    def __init__(
        self,
        lane: Lane,
        config: Config,
        ask: Callable[[Lane], Awaitable[Account | None]],
    ) -> None:
        self._lane = lane
        self._ask = ask
        self._timeout_ns = config.timeout_ns
        self._follows = isinstance(lane.target, HttpTarget) and lane.target.follows
        # Twice within the timeout, to see whether it goes on; what it may hold back by
        # its silence, once it has caught up, is as for any live stream.
        self._patience_ns = -(-config.timeout_ns // 2)
        if self._follows:
            hold_ns = max(config.hold_ns, _LEAST_PATIENCE_NS)
            self._patience_ns = min(hold_ns, self._patience_ns)
        self._position_ns: int | None = None
        self._was_asked = False
        self._goes_on = False

    async def read(self) -> bytes | None:
        """Return the next bytes, none at the end; ``None`` when it has caught up.

        Cancelling it loses none.

        Raises:
            BrokenStreamError: as the source's; also when nothing came for so long, and
                the worker did not say that it goes on.

        """
        loop = asyncio.get_running_loop()
        silent_ns = 0
        while True:
            due = loop.time() + self._patience_ns / SECONDS
            try:
                async with asyncio.timeout_at(due):
                    return await self._lane.source.read()
            except TimeoutError:
                if data := self._lane.source.arrived():
                    return data
            if loop.time() - due > _LATEST_TIMER:
                continue
            silent_ns += self._patience_ns
            if await self._has_caught_up():
                return None
            if self._goes_on:
                silent_ns = 0
            elif silent_ns >= self._timeout_ns:
                silence = format_duration(self._timeout_ns)
                raise BrokenStreamError(
                    f"nothing came for {silence}", hint="see --timeout"
                )

    async def _has_caught_up(self) -> bool:
        """Ask the worker; note whether the window went on since it was asked before."""
        self._goes_on = False
        try:
            account = await self._ask(self._lane)
        except PeerError:
            return False
        if account is None or not account.stream.window:
            return self._follows  # who does not tell is taken for a live stream
        position_ns = account.stream.position_ns  # None: it has not begun
        self._goes_on = self._was_asked and position_ns != self._position_ns
        self._was_asked, self._position_ns = True, position_ns
        return (
            self._follows
            and position_ns is not None
            and position_ns >= account.time_ns - _PRESENT_NS
        )
