"""What was lost while a segment was written, and when that was.

The kernel counts what it drops and does not say when: a number that has grown was lost
at some moment since it was asked before. Of what the disk does not take the timestamps
are known. So of a window a packet counts that may have been in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sidecar import Mark

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Drops"]

_EVER = (0, (1 << 63) - 1)

# Above, neighbours become one: who drops that often drops all the time.
_MAX_MARKS = 256


class Drops:
    """Those of one segment, at first ``packets`` of an earlier run.

    That has told by ``marks`` when they were, as far as it knew, and may have told
    nothing or what cannot be. One thread adds, any may read.
    """

    def __init__(self, packets: int = 0, marks: Iterable[Mark] = ()) -> None:
        told = tuple(marks)
        rest = packets - sum(mark.packets for mark in told)
        if rest < 0 or any(mark.since_ns > mark.until_ns for mark in told):
            told, rest = (), packets
        self._marks = (*((Mark(*_EVER, rest),) if rest else ()), *told)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(mark.packets for mark in self._marks)

    @property
    def marks(self) -> list[Mark]:
        """When they were, as far as that is known."""
        return [mark for mark in self._marks if mark[:2] != _EVER]

    def add(self, packets: int, *, since_ns: int, until_ns: int) -> None:
        """Count ``packets`` that were lost after ``since_ns``, until ``until_ns``."""
        if not packets:
            return
        begin_ns, end_ns = sorted((since_ns, until_ns))  # the clock may have been set
        marks = (*self._marks, Mark(begin_ns, end_ns, packets))
        if len(marks) > _MAX_MARKS:
            marks = tuple(_join(*marks[at : at + 2]) for at in range(0, len(marks), 2))
        self._marks = marks

    def within(self, since_ns: int, until_ns: int) -> int:
        """Return how many at most were lost from ``since_ns`` on, before ``until_ns``."""
        return sum(
            mark.packets
            for mark in self._marks
            if mark.until_ns >= since_ns and mark.since_ns < until_ns
        )

    def before(self, since_ns: int, moment_ns: int) -> int:
        """Return how many of those from ``since_ns`` on were lost before ``moment_ns``.

        The others are those ``within`` what begins then: none is in both.
        """
        return sum(
            mark.packets
            for mark in self._marks
            if since_ns <= mark.until_ns < moment_ns
        )


def _join(*marks: Mark) -> Mark:
    return Mark(
        min(mark.since_ns for mark in marks),
        max(mark.until_ns for mark in marks),
        sum(mark.packets for mark in marks),
    )
