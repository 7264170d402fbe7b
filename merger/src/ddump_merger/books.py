"""A target's books: what its worker counted against what came.

Every heartbeat has the worker's own counts of one stream. A target may be read by
several, one after the other; the books are sums over all of them. Sans-I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .losses import Losses

if TYPE_CHECKING:
    from .counters import Heartbeat

__all__ = ["Books"]

# What workers tell may add up to more; a number that is shown is the same everywhere.
_GREATEST = (1 << 63) - 1


class Books:
    """The losses of one target."""

    def __init__(self) -> None:
        self._closed = Losses()
        self._current: Losses | None = None  # until there is a heartbeat
        self._received: int | None = None
        self._all_received = True  # whether all streams so far tell what was received

    @property
    def overdelivered(self) -> bool:
        """Whether more came than was sent."""
        return self.losses.surplus > 0

    @property
    def current(self) -> Losses:
        """What is lost of the stream that is read now."""
        return self._current or Losses()

    @property
    def losses(self) -> Losses:
        """What is lost of all streams."""
        return _sum(self._closed, self.current, received=self._tells_received)

    @property
    def _tells_received(self) -> bool:
        current = self._current
        told = current is None or current.received is not None
        return self._all_received and told

    def check(self, heartbeat: Heartbeat) -> None:
        """Enter the last heartbeat of the stream that is read now.

        What was told once is not taken back, whatever a later one says.
        """
        before = self.current
        delivered = heartbeat.delivered
        missing = 0 if delivered is None else delivered - heartbeat.read
        self._received = _greater(self._received, heartbeat.received)
        self._current = Losses(
            received=None if heartbeat.ended_ns is None else self._received,
            dropped=_greater(before.dropped, heartbeat.dropped),
            interface_dropped=_greater(
                before.interface_dropped, heartbeat.interface_dropped
            ),
            skipped=max(before.skipped, heartbeat.note.skipped),
            missing=max(before.missing, missing),
            surplus=max(before.surplus, -missing),
        )

    def close(self) -> None:
        """End the stream that is read now: the next one counts from 0."""
        self._closed, self._all_received = self.losses, self._tells_received
        self._current = self._received = None


def _sum(one: Losses, other: Losses, *, received: bool) -> Losses:
    return Losses(
        received=_add(one.received, other.received) if received else None,
        dropped=_add(one.dropped, other.dropped),
        interface_dropped=_add(one.interface_dropped, other.interface_dropped),
        skipped=_bounded(one.skipped + other.skipped),
        missing=_bounded(one.missing + other.missing),
        surplus=_bounded(one.surplus + other.surplus),
    )


def _add(one: int | None, other: int | None) -> int | None:
    """Return the sum of what is known; ``None`` when nothing is."""
    known = [count for count in (one, other) if count is not None]
    return _bounded(sum(known)) if known else None


def _greater(one: int | None, other: int | None) -> int | None:
    """Return the greater of what is known; ``None`` when nothing is."""
    return max((count for count in (one, other) if count is not None), default=None)


def _bounded(count: int) -> int:
    return min(count, _GREATEST)
