"""How far a capture is delivered, by the kernel's own count and not by a clock.

The kernel tells how many packets wait in its ring. When so many more have been
delivered, all that it had counted when it was asked have: such a moment is a *mark*,
and when one is reached the next is set. So a block of the kernel that is closed late, a
ring that is full and a process that sleeps hold the marks, and no more than these.

Nothing here has a capture or a clock of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from ddump_common.units import MILLISECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IN_FLIGHT_NS", "PATIENCE_SECONDS", "Progress"]

IN_FLIGHT_NS = 50 * MILLISECONDS
"""How long after its stamp a packet may be counted, on a host whose processors are busy."""

PATIENCE_SECONDS = 1.0
"""When what was counted and has not come never will. libpcap does not deliver the outgoing
copies of loopback that were captured before the program was set."""


class _Counted(Protocol):
    """What a capture tells of its packets, as ``capture.Handle`` has it."""

    @property
    def packets(self) -> int: ...

    @property
    def more(self) -> bool: ...

    def undelivered(self) -> int: ...


class _Mark(NamedTuple):
    """How many packets will have been delivered when all before ``time_ns`` were."""

    time_ns: int
    packets: int
    deadline: float


class Progress:
    """What one capture has delivered: all packets from before ``complete_ns``.

    That is ``None`` until something is known.
    """

    def __init__(self) -> None:
        self.complete_ns: int | None = None
        self._mark: _Mark | None = None
        self._never = 0

    def observe(
        self, handle: _Counted, *, began: float, clock: Callable[[], int]
    ) -> int | None:
        """Take note of a read that began at ``began``, and set the next mark if it is due.

        ``clock`` is the one that stamps packets. Return ``complete_ns`` where the mark
        was set, else ``None``.
        """
        if not self.advance(handle.packets, more=handle.more, began=began):
            return None
        # In this order: all that is counted before that moment is in the number.
        time_ns = clock()
        self.set_mark(
            time_ns,
            packets=handle.packets,
            undelivered=handle.undelivered(),
            began=began,
        )
        return self.complete_ns

    def advance(self, packets: int, *, more: bool, began: float) -> bool:
        """Take note of a read; return whether the next mark is to be set.

        It began at ``began``, in seconds of a clock that is never set; ``packets`` are
        delivered since, and ``more`` is whether it ended before the ring was empty.
        """
        mark = self._mark
        if mark is None:
            return True
        missing = mark.packets - packets
        if missing > 0:
            if more or began < mark.deadline:
                return False
            self._never += missing
        self.complete_ns = mark.time_ns - IN_FLIGHT_NS
        return True

    def set_mark(
        self, time_ns: int, *, packets: int, undelivered: int, began: float
    ) -> None:
        """Set a mark at ``time_ns``, a time of the clock that stamps packets.

        ``packets`` were delivered and ``undelivered`` waited at that time or later;
        ``began`` is that of the last read.
        """
        # What came all the same was only late.
        self._never = min(self._never, undelivered)
        waiting = undelivered - self._never
        self._mark = _Mark(time_ns, packets + waiting, began + PATIENCE_SECONDS)
        if not waiting:
            self.complete_ns = time_ns - IN_FLIGHT_NS

    def restart(self) -> None:
        """Know of no time any more: the clock that stamps packets was set."""
        self.complete_ns = self._mark = None

    def missing(self, undelivered: int) -> int:
        """Return how many of those that are ``undelivered`` are still to come."""
        return max(undelivered - self._never, 0)
