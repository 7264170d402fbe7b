"""What is lost of a target, told as it becomes known: each kind once."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from .books import Books
from .window import told_gaps

if TYPE_CHECKING:
    from .inlet import Inlet
    from .lane import Lane
    from .losses import Losses

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)

# Four in a second, for a quarter of an hour: of what is older the ring made good nothing.
_MOST_DROPS = 4096


class _Drops(NamedTuple):
    """So many packets were dropped between the two moments, by the worker's clock."""

    since_ns: int
    until_ns: int
    packets: int


class Ledger:
    """Keeps the books of ``lane``, and its ``losses``."""

    def __init__(self, lane: Lane, inlet: Inlet) -> None:
        self.books = Books()
        self._lane = lane
        self._inlet = inlet
        # What the kernel dropped of the stream that is read now, where that was told.
        self._drops: deque[_Drops] = deque(maxlen=_MOST_DROPS)
        self.begin()
        # What the kernel dropped of a stream, and a ring made good.
        self._made_good = 0
        self._said_missing = False
        self._said_overdelivered = False
        self._said_backwards = False

    def begin(self) -> None:
        """Begin a stream: its worker counts from 0."""
        self._drops.clear()
        self._dropped = 0
        self._counted_ns = 0

    def check_window(self) -> None:
        """Say what the ring lacks of the window that was asked for."""
        lane = self._lane
        lane.window = lane.source.window
        if lane.window is None:
            return
        told = told_gaps(lane.window, now_ns=self._inlet.clock_ns())
        if told:
            logger.error("%s: %s", lane.name, told)
            self._inlet.lose(lane, told)

    def check(self, *, counted_ns: int, exact: bool) -> None:
        """See what a heartbeat, which was entered, says.

        Its drops are of before ``counted_ns``, by the worker's clock; ``exact`` is
        whether they are all of those.
        """
        lane, books = self._lane, self.books
        self._note_drops(books.current.dropped or 0, counted_ns)
        self._counted_ns = counted_ns if exact else 0
        lane.losses = losses = self._losses()
        if losses.missing and not self._said_missing:
            self._said_missing = True
            logger.error(
                "%s: %s that its worker sent did not come",
                lane.name,
                _packets(losses.missing),
            )
        if books.overdelivered and not self._said_overdelivered:
            self._said_overdelivered = True
            logger.warning(
                "%s: more packets came than its worker says it sent", lane.name
            )
        if (
            self._inlet.merge.counters(lane.index).backwards
            and not self._said_backwards
        ):
            self._said_backwards = True
            logger.warning("%s: its heartbeats went back in time", lane.name)
        for what in _told(losses):
            self._inlet.lose(lane, what)

    def _note_drops(self, dropped: int, until_ns: int) -> None:
        if dropped > self._dropped:
            self._drops.append(
                _Drops(self._counted_ns, until_ns, dropped - self._dropped)
            )
            self._dropped = dropped

    def _losses(self) -> Losses:
        losses = self.books.losses
        if losses.dropped is None:
            return losses
        return replace(losses, dropped=max(losses.dropped - self._made_good, 0))

    def refilled(self, *, since_ns: int) -> bool:
        """Count of the stream that broke no drops that a ring makes good.

        That was asked for what came from ``since_ns`` on. Return whether it is certain
        which those are: of what was dropped around that moment, some may have come
        before it.
        """
        good = [each for each in self._drops if each.until_ns > since_ns]
        self._made_good += sum(each.packets for each in good)
        self.begin()
        return all(each.since_ns >= since_ns for each in good)

    def close(self) -> None:
        """End the stream that is read now: what was skipped of it is known. Idempotent."""
        if skipped := self.books.current.skipped:
            logger.error(
                "%s: up to %s of the window could no longer be read from the ring",
                self._lane.name,
                _packets(skipped),
            )
        self.books.close()


def _told(losses: Losses) -> list[str]:
    counts = (
        (losses.dropped, "dropped by the kernel"),
        (losses.interface_dropped, "dropped by interfaces"),
        (losses.missing, "sent and not come"),
        (losses.skipped, "no longer in the ring"),
    )
    return [f"{_packets(count)} {what}" for count, what in counts if count]


def _packets(count: int) -> str:
    return "1 packet" if count == 1 else f"{count} packets"
