"""Moves streams that are silent, so that they do not hold the others back for long.

The clock moves only live streams that send no heartbeats: one that was silent for
``hold`` cannot hold the others back by more than that. While nobody listened, for the
sink was full or this process slept, silence means nothing, and counts from anew.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ddump_common.units import SECONDS

from .lane import LaneState
from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._merge import Merge
    from .lane import Lane

__all__ = ["Clock"]

# How often silent streams are moved while the merge holds packets back, as a part of
# ``hold``, and between which bounds in seconds: what it costs in lateness.
_TICKS_PER_HOLD = 10
_SHORTEST_TICK = 0.010
_LONGEST_TICK = 0.100


class Clock:
    """Looks at silent lanes while the merge holds packets back, and not else.

    Its timer is the event loop's; ``stop`` ends it.
    """

    def __init__(
        self,
        merge: Merge,
        lanes: Sequence[Lane],
        *,
        hold_ns: int,
        on_move: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take the parts; ``on_move`` is called when a lane was moved."""
        self._merge = merge
        self._lanes = lanes
        self._hold_ns = hold_ns
        self._on_move = on_move
        self._now_ns = now_ns
        self._loop = asyncio.get_running_loop()
        self._hold = hold_ns / SECONDS
        self._tick = min(
            max(self._hold / _TICKS_PER_HOLD, _SHORTEST_TICK), _LONGEST_TICK
        )
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._listening = True

    @property
    def running(self) -> bool:
        """Whether it will look again."""
        return self._timer is not None

    def start(self) -> None:
        """Look when the first stream has been silent for long enough. Idempotent."""
        if self._timer is not None:
            return
        silent_at = [lane.heard + self._hold for lane in self._movable()]
        if silent_at:
            self._due = max(min(silent_at), self._loop.time() + self._tick)
            self._timer = self._loop.call_at(self._due, self._look)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause(self) -> None:
        """Let silence mean nothing: nobody listens."""
        self._listening = False

    def resume(self) -> None:
        """Count silence from now on."""
        self._listening = True
        self._restart()

    def _look(self) -> None:
        """Move the silent streams; look again while anything is held back."""
        self._timer = None
        now = self._loop.time()
        if not self._listening or now - self._due > self._hold / 2:
            self._restart()  # it was us who did not listen
        moved_to = self._now_ns() - self._hold_ns
        for lane in self._movable():
            if now - lane.heard >= self._hold:
                self._merge.advance(lane.index, moved_to)
                self._on_move()
        if any(self._merge.buffered(lane.index) for lane in self._lanes):
            self.start()

    def _movable(self) -> list[Lane]:
        """Return the streams that the clock may move.

        One that is still connecting holds back files and windows, which are there
        whole, but no stream that flows. So a window that takes longer than ``hold`` to
        open while a stream flows has lost its place.
        """
        open_lanes = [lane for lane in self._lanes if not lane.ended]
        live = [lane for lane in open_lanes if lane.live]
        flows = any(lane.state is LaneState.OPEN for lane in live)
        live = [
            lane
            for lane in live
            if not (lane.ahead or lane.trusted or lane.state is LaneState.BROKEN)
        ]
        if flows:
            return live + [
                lane
                for lane in open_lanes
                if not lane.live
                and lane.state is LaneState.CONNECTING
                and isinstance(lane.target, HttpTarget)
            ]
        return live if all(lane.live for lane in self._lanes) else []

    def _restart(self) -> None:
        now = self._loop.time()
        for lane in self._lanes:
            lane.heard = now
