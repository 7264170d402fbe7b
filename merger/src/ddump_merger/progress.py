"""A live table on the terminal: every target, what came from it, what it waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddump_common.text import printable
from ddump_common.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._merge import Merge
    from .lane import Lane

__all__ = ["Progress"]

# Numbers that change faster cannot be read.
_REFRESH_SECONDS = 0.5


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
        """Return the table as it is now, with the rows that fit the terminal."""
        table = Table(box=None, pad_edge=False)
        table.add_column("target", no_wrap=True)
        for heading in ("packets", "bytes", "late", "held"):
            table.add_column(heading, justify="right")
        table.add_column("state", no_wrap=True)
        fits = max(self._live.console.height - 3, 1)
        for lane in self._lanes[:fits]:
            packets, size, late, *_ = self._merge.counters(lane.index)
            state = lane.state.value if lane.error is None else f"{lane.error}"
            table.add_row(
                Text(printable(lane.name, limit=40)),
                str(packets),
                format_size(size),
                str(late),
                format_size(self._merge.buffered(lane.index)),
                Text(printable(state, limit=100)),
            )
        if len(self._lanes) > fits:
            table.add_row(f"and {len(self._lanes) - fits} more")
        return table
