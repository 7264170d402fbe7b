"""A target's books: what its worker counted against what came.

Every heartbeat has the worker's own counts of one stream. A target may be read by
several, one after the other; the books are sums over all of them. Sans-I/O.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddump_common.note import StreamNote

from .losses import Losses

if TYPE_CHECKING:
    from .counters import Heartbeat

__all__ = ["Books"]


class Books:
    """The losses of one target; ``overdelivered`` once more came than was sent."""

    def __init__(self) -> None:
        self.overdelivered = False
        self._closed = Losses()
        self._current = Losses()
        self._all_received = True  # whether all streams tell what was received

    @property
    def current(self) -> Losses:
        """What is lost of the stream that is read now."""
        return self._current

    @property
    def losses(self) -> Losses:
        """What is lost of all streams."""
        losses = _sum(self._closed, self._current)
        # What some of them received is less than came: it would mean nothing.
        return losses if self._all_received else replace(losses, received=None)

    def check(self, heartbeat: Heartbeat) -> None:
        """Enter the last heartbeat of the stream that is read now."""
        note = StreamNote.parse(heartbeat.comment.decode(errors="replace"))
        delivered = heartbeat.delivered
        missing = 0 if delivered is None else delivered - heartbeat.read
        self.overdelivered = self.overdelivered or missing < 0
        self._all_received = self._all_received and heartbeat.received is not None
        # What was missing once does not come any more, whatever a later one says.
        self._current = Losses(
            received=heartbeat.received,
            dropped=heartbeat.dropped,
            interface_dropped=heartbeat.interface_dropped,
            skipped=max(note.skipped, self._current.skipped),
            missing=max(missing, self._current.missing),
        )

    def close(self) -> None:
        """End the stream that is read now: the next one counts from 0."""
        self._closed = self.losses
        self._current = Losses()


def _sum(one: Losses, other: Losses) -> Losses:
    return Losses(
        received=_add(one.received, other.received),
        dropped=_add(one.dropped, other.dropped),
        interface_dropped=_add(one.interface_dropped, other.interface_dropped),
        skipped=one.skipped + other.skipped,
        missing=one.missing + other.missing,
    )


def _add(one: int | None, other: int | None) -> int | None:
    """Return the sum of what is known; ``None`` when nothing is."""
    if one is None or other is None:
        return one if other is None else other
    return one + other
