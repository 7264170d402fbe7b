"""What the kernel dropped while a segment was written, and when that was.

The kernel counts and does not say when: a number that has grown was lost at some moment
since it was asked before. So of a window a drop counts that may have been in it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Drops"]

_EVER = (0, (1 << 63) - 1)

# Above, neighbours become one: who drops that often drops all the time.
_MAX_MARKS = 256


class _Mark(NamedTuple):
    since_ns: int
    until_ns: int
    packets: int


class Drops:
    """Those of one segment; ``packets`` of an earlier run, which has not told when.

    One thread adds, any may read.
    """

    def __init__(self, packets: int = 0) -> None:
        self._marks = (_Mark(*_EVER, packets),) if packets else ()

    @property
    def total(self) -> int:
        """All of them."""
        return sum(mark.packets for mark in self._marks)

    def add(self, packets: int, *, since_ns: int, until_ns: int) -> None:
        """Count ``packets`` that were dropped after ``since_ns``, until ``until_ns``."""
        if not packets:
            return
        begin_ns, end_ns = sorted((since_ns, until_ns))  # the clock may have been set
        marks = (*self._marks, _Mark(begin_ns, end_ns, packets))
        if len(marks) > _MAX_MARKS:
            marks = tuple(_join(*marks[at : at + 2]) for at in range(0, len(marks), 2))
        self._marks = marks

    def within(self, since_ns: int, until_ns: int) -> int:
        """Return how many at most were dropped from ``since_ns`` on, before ``until_ns``."""
        return sum(
            mark.packets
            for mark in self._marks
            if mark.until_ns >= since_ns and mark.since_ns < until_ns
        )


def _join(*marks: _Mark) -> _Mark:
    return _Mark(
        min(mark.since_ns for mark in marks),
        max(mark.until_ns for mark in marks),
        sum(mark.packets for mark in marks),
    )
