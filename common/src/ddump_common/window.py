"""Stretches of time that a ring covers, and the header that says so.

``Ddump-Window`` is a dictionary of structured fields (RFC 9651)::

    Ddump-Window: covered="2026-11-22T14:03:00Z/2026-11-22T14:08:00Z",
        gaps=("2026-11-22T14:04:10.5Z/2026-11-22T14:04:12Z"), omitted=3

``covered`` is the first and the last moment of the window that the ring covers; ``gaps``
are all parts of the window that it does not, before and after as well; ``omitted`` says
how many gaps there are besides, for a header is no place for thousands. What is covered
is all there; of a gap packets may be there, and others may be missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError
from .fields import items, parse_dictionary
from .timespec import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Interval", "WindowReport", "gaps", "merge_intervals"]

MAX_GAPS = 32
_INTERVAL = re.compile(r'"([0-9TZ:./-]{1,80})"')
_NUMBER = re.compile(r"([0-9]{1,15})(?:;.*)?")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Interval:
    """The moments from ``begin_ns`` on that are before ``end_ns``."""

    begin_ns: int
    end_ns: int

    def __post_init__(self) -> None:
        if self.end_ns < self.begin_ns:
            raise ValueError(
                f"an interval that ends {self.begin_ns - self.end_ns} ns early"
            )

    def __str__(self) -> str:
        return f"{format_time(self.begin_ns)}/{format_time(self.end_ns)}"

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read what ``str`` returns.

        Raises:
            UsageError: it is no interval.

        """
        begin, _, end = text.partition("/")
        begin_ns, end_ns = (
            parse_time(part, now_ns=0, zone=None) for part in (begin, end)
        )
        if end_ns < begin_ns:
            raise UsageError(f"{text!r} ends before it begins")
        return cls(begin_ns=begin_ns, end_ns=end_ns)

    def intersection(self, other: Interval) -> Interval | None:
        """Return what is in both; ``None`` when that is nothing, not even a moment."""
        begin_ns = max(self.begin_ns, other.begin_ns)
        end_ns = min(self.end_ns, other.end_ns)
        return Interval(begin_ns=begin_ns, end_ns=end_ns) if begin_ns < end_ns else None


def merge_intervals(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the same moments as intervals that neither overlap nor touch, in order."""
    merged: list[Interval] = []
    for each in sorted(intervals):
        if merged and each.begin_ns <= merged[-1].end_ns:
            end_ns = max(merged[-1].end_ns, each.end_ns)
            merged[-1] = Interval(begin_ns=merged[-1].begin_ns, end_ns=end_ns)
        else:
            merged.append(each)
    return tuple(merged)


def gaps(window: Interval, covered: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the parts of ``window`` that are in none of ``covered``, in order."""
    missing: list[Interval] = []
    begin_ns = window.begin_ns
    # One without a moment in it does not part a gap.
    for each in merge_intervals(e for e in covered if e.begin_ns < e.end_ns):
        if each.begin_ns > begin_ns:
            end_ns = min(each.begin_ns, window.end_ns)
            if end_ns > begin_ns:
                missing.append(Interval(begin_ns=begin_ns, end_ns=end_ns))
        begin_ns = max(begin_ns, each.end_ns)
    if begin_ns < window.end_ns:
        missing.append(Interval(begin_ns=begin_ns, end_ns=window.end_ns))
    return tuple(missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """What of a window a ring covers: the value of ``Ddump-Window``.

    ``covered`` is ``None`` when that is nothing. ``omitted`` counts the gaps that are
    not named.
    """

    covered: Interval | None
    gaps: tuple[Interval, ...] = ()
    omitted: int = 0

    @property
    def complete(self) -> bool:
        """Whether all of the window is covered."""
        return not self.gaps and not self.omitted

    def lacks_more_than(self, other: WindowReport) -> bool:
        """Whether it is not certain that all it does not cover ``other`` does not either."""
        return self.omitted > 0 or not all(
            any(known.intersection(gap) == gap for known in other.gaps)
            for gap in self.gaps
        )

    @classmethod
    def of(cls, window: Interval, coverage: Iterable[Interval]) -> WindowReport:
        """Return what a ring that covers ``coverage`` has of ``window``."""
        parts = [
            part
            for each in merge_intervals(coverage)
            if (part := window.intersection(each)) is not None
        ]
        missing = gaps(window, parts)
        covered = (
            Interval(begin_ns=parts[0].begin_ns, end_ns=parts[-1].end_ns)
            if parts
            else None
        )
        return cls(
            covered=covered,
            gaps=missing[:MAX_GAPS],
            omitted=max(len(missing) - MAX_GAPS, 0),
        )

    def serialize(self) -> str:
        """Return the header's value."""
        members = []
        if self.covered is not None:
            members.append(f'covered="{self.covered}"')
        missing = " ".join(f'"{gap}"' for gap in self.gaps)
        members.append(f"gaps=({missing})")
        if self.omitted:
            members.append(f"omitted={self.omitted}")
        return ", ".join(members)

    @classmethod
    def parse(cls, value: str) -> WindowReport:
        """Read a header's value; members that are not known are left alone.

        Raises:
            UsageError: it is not such a value.

        """
        members = parse_dictionary(value)
        if "gaps" not in members:
            raise UsageError("a header that names no gaps")
        covered, omitted = members.get("covered"), members.get("omitted", "0")
        number = _NUMBER.fullmatch(omitted)
        if number is None:
            raise UsageError(f"{omitted!r} is no number of gaps")
        return cls(
            covered=None if covered is None else _interval(covered),
            gaps=tuple(map(_interval, items(members["gaps"]))),
            omitted=int(number[1]),
        )


def _interval(item: str) -> Interval:
    match = _INTERVAL.match(item)
    if match is None:
        raise UsageError(f"{item!r} is no interval")
    return Interval.parse(match[1])
