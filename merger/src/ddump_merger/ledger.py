"""What is lost of a target, told as it becomes known: each kind once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .books import Books
from .window import told_gaps

if TYPE_CHECKING:
    from .inlet import Inlet
    from .lane import Lane
    from .losses import Losses

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)


class Ledger:
    """Keeps the books of ``lane``, and its ``losses``."""

    def __init__(self, lane: Lane, inlet: Inlet) -> None:
        self.books = Books()
        self._lane = lane
        self._inlet = inlet
        # Dropped as of the last heartbeat, and as of the one before it.
        self._dropped = self._dropped_before = 0
        # What the kernel dropped of a stream, and a ring made good.
        self._made_good = 0
        self._said_missing = False
        self._said_overdelivered = False
        self._said_backwards = False

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

    def check(self) -> None:
        """See what a heartbeat, which was entered, says."""
        lane, books = self._lane, self.books
        self._dropped_before = self._dropped
        self._dropped = books.current.dropped or 0
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

    def _losses(self) -> Losses:
        losses = self.books.losses
        if losses.dropped is None:
            return losses
        return replace(losses, dropped=max(losses.dropped - self._made_good, 0))

    def refilled(self) -> bool:
        """Count of the stream that broke no drops that a ring makes good.

        Return whether it is certain which those are: what was dropped since the last
        heartbeat but one may be of before or after the last promise.
        """
        recent = max(self._dropped - self._dropped_before, 0)
        self._made_good += recent
        self._dropped = self._dropped_before = 0
        return recent == 0

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
