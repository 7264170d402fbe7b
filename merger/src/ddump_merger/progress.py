"""A live table on the terminal: every target, what came from it, what it waits for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ddump_common.text import printable
from ddump_common.units import format_about

from .lane import LaneState
from .table import table_lines
from .window import told_second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._merge import Merge
    from .counters import Counters
    from .lane import Lane

__all__ = ["Progress"]

# Numbers that change faster cannot be read.
_REFRESH_SECONDS = 0.5

_LONGEST_NAME = 40
_LONGEST_STATE = 70

# The headings, the number of rows that are not shown, and where the cursor is.
_OTHER_LINES = 3

# The column of drops, which is left out while nobody tells of any.
_DROPPED = 3


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

    def table(self) -> Text:
        """Return the table as it is now, with the rows that fit the terminal.

        What most targets never have to say stands with their state, below the numbers
        where there is no room beside them.
        """
        width, height = self._live.console.size
        room = max(height - _OTHER_LINES, 1)
        rows = self._rows(width)
        lines = list(table_lines(rows[: room + 1], width=width))
        deep = len(lines) // len(rows[: room + 1])  # lines of each row
        if deep > 1:
            room = max(room // deep, 1)
            lines = list(table_lines(rows[: room + 1], width=width))
        if len(self._lanes) > room:
            lines.append(f"and {len(self._lanes) - room} more")
        return Text("\n".join(lines), no_wrap=True, overflow="crop")

    def _rows(self, width: int) -> list[list[str]]:
        """Return the headings, then what is to be said of each target."""
        now_ns = time.time_ns()
        rows = [["target", "packets", "bytes", "dropped", "late", "held", "state"]]
        for lane in self._lanes:
            counters = self._merge.counters(lane.index)
            dropped = _dropped(lane)
            state = printable(_state(lane, counters, now_ns), limit=_LONGEST_STATE)
            rows.append(
                [
                    printable(lane.name, limit=min(width // 3, _LONGEST_NAME)),
                    str(counters.packets),
                    format_about(counters.octets),
                    "-" if dropped is None else str(dropped),
                    str(counters.late),
                    format_about(self._merge.buffered(lane.index)),
                    state,
                ]
            )
        if all(_dropped(lane) is None for lane in self._lanes):
            for row in rows:
                del row[_DROPPED]
        return rows


def _dropped(lane: Lane) -> int | None:
    """Return what was dropped before it came to its worker, if somebody tells."""
    told = (lane.losses.dropped, lane.losses.interface_dropped)
    known = [count for count in told if count is not None]
    return sum(known) if known else None


def _gaps(lane: Lane) -> int:
    """Return in how many stretches of time packets may be missing."""
    window = lane.window
    gaps = 0 if window is None else len(window.gaps) + window.omitted
    return gaps + sum(not outage.filled for outage in lane.outages)


def _state(lane: Lane, counters: Counters, now_ns: int) -> str:
    """Return what the target does, and what is unusual about it."""
    if lane.error is not None:
        return str(lane.error)
    parts = [lane.state.value]
    if lane.state is LaneState.BROKEN and lane.outages:
        begin = told_second(lane.outages[-1].begin_ns, now_ns=now_ns)
        parts = [f"{lane.state} since {begin}"]
    if counters.refilled:
        parts.append(f"{counters.refilled} refilled")
    if missing := lane.losses.missing + lane.losses.skipped:
        parts.append(f"{missing} missing")
    if lane.losses.surplus:
        parts.append(f"{lane.losses.surplus} surplus")
    if lane.distrusted:
        parts.append("distrusted")
    if gaps := _gaps(lane):
        parts.append("1 gap" if gaps == 1 else f"{gaps} gaps")
    if lane.skew is not None and lane.skew.certain:
        parts.append(f"clock {lane.skew.told_offset}")
    return ", ".join(parts)
