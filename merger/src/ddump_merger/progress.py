"""A live table on the terminal: every target, what came from it, what it waits for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddump_common.text import printable
from ddump_common.units import format_size

from .lane import LaneState
from .window import told_second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._merge import Merge
    from .lane import Lane

__all__ = ["Progress"]

# Numbers that change faster cannot be read.
_REFRESH_SECONDS = 0.5

# What most runs never have to say.
_UNUSUAL = frozenset({"dropped", "refilled", "missing", "gaps", "clock"})
_WORDS = frozenset({"target", "state"})

_LONGEST_NAME = 40


class Progress:
    """Draws the table until it is stopped; what is logged meanwhile stands above it."""

    def __init__(self, lanes: Sequence[Lane], merge: Merge) -> None:
        self._lanes = lanes
        self._merge = merge
        self._live = Live(
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )

    async def run(self) -> None:
        """Show and refresh until cancelled, then leave nothing behind."""
        with self._live:
            while True:
                self._live.update(self.table(), refresh=True)
                await asyncio.sleep(_REFRESH_SECONDS)

    def stop(self) -> None:
        """Remove the table at once. Idempotent."""
        self._live.stop()

    def table(self) -> Table:
        """Return the table as it is now, with the rows that fit the terminal.

        A column that says nothing of any target is left out.
        """
        now_ns = time.time_ns()
        rows = [self._row(lane, now_ns) for lane in self._lanes]
        shown = [
            heading
            for heading in rows[0]
            if heading not in _UNUSUAL or any(row[heading] for row in rows)
        ]
        table = Table(box=None, pad_edge=False)
        for heading in shown:
            right = heading not in _WORDS
            table.add_column(
                heading, justify="right" if right else "left", no_wrap=True
            )
        fits = max(self._live.console.height - 3, 1)
        for row in rows[:fits]:
            table.add_row(*(Text(row[heading]) for heading in shown))
        if len(rows) > fits:
            table.add_row(f"and {len(rows) - fits} more")
        return table

    def _row(self, lane: Lane, now_ns: int) -> dict[str, str]:
        """Return what is to be said of a target by heading, empty where it is nothing."""
        counters = self._merge.counters(lane.index)
        losses = lane.losses
        told_drops = losses.dropped is not None or losses.interface_dropped is not None
        dropped = (losses.dropped or 0) + (losses.interface_dropped or 0)
        skew = lane.skew
        return {
            "target": printable(lane.name, limit=_LONGEST_NAME),
            "packets": str(counters.packets),
            "bytes": format_size(counters.octets),
            "dropped": str(dropped) if told_drops else "",
            "late": str(counters.late),
            "refilled": _nonzero(counters.refilled),
            "missing": _nonzero(losses.missing + losses.skipped),
            "gaps": _nonzero(_gaps(lane)),
            "clock": skew.told_offset if skew is not None and skew.certain else "",
            "held": format_size(self._merge.buffered(lane.index)),
            "state": printable(_state(lane, now_ns), limit=100),
        }


def _nonzero(count: int) -> str:
    return str(count) if count else ""


def _gaps(lane: Lane) -> int:
    """Return in how many stretches of time packets may be missing."""
    window = lane.window
    gaps = 0 if window is None else len(window.gaps) + window.omitted
    return gaps + sum(not outage.filled for outage in lane.outages)


def _state(lane: Lane, now_ns: int) -> str:
    if lane.error is not None:
        return str(lane.error)
    if lane.state is LaneState.BROKEN and lane.outages:
        begin = told_second(lane.outages[-1].begin_ns, now_ns=now_ns)
        return f"{lane.state} since {begin}"
    return lane.state.value
