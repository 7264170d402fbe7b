"""Windows of the ring: how they are asked for, and how what is missing is told.

The options and a URL's query have the same words: ``last``, ``since``, ``until``,
``follow``. Times are read here, in the zone of whoever runs the command and by one
clock for all targets, and go on as absolute times: one command means one window on
all hosts. What a ring does not cover of its window comes back in ``Ddump-Window``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from ddump_common.api import RingQuery
from ddump_common.errors import ParameterError, UsageError
from ddump_common.timespec import LOCAL, format_time, parse_time
from ddump_common.units import (
    MICROSECONDS,
    MILLISECONDS,
    SECONDS,
    format_duration,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ddump_common.window import WindowReport

__all__ = [
    "WINDOW_NAMES",
    "parse_window",
    "told_duration",
    "told_gaps",
    "told_interval",
    "told_outside",
    "told_second",
    "told_time",
]

WINDOW_NAMES = frozenset({"last", "since", "until", "follow"})

# More of them are no help on a terminal, least of all from forty targets.
_MOST_GAPS = 4

# What is longer came from the network, and no capture is.
_LONGEST_NS = 1 << 63

# The least of a length, and what it is rounded down to.
_ROUNDING = (
    (10 * SECONDS, SECONDS),
    (SECONDS, 100 * MILLISECONDS),
    (MILLISECONDS, MILLISECONDS),
    (MICROSECONDS, MICROSECONDS),
)


def parse_window(pairs: Iterable[tuple[str, str]], *, now_ns: int) -> RingQuery:
    """Read the decoded pairs of a query with a window, as the command means it.

    A window that has begun and has no end ends now, on all hosts, unless it is followed;
    to follow without a beginning begins now.

    Raises:
        ParameterError: as ``RingQuery.parse_at``, or what makes no sense together.

    """
    pairs = list(pairs)
    names = {name for name, _ in pairs}
    asked = RingQuery.parse_at(
        [(name, _absolute(name, text, now_ns)) for name, text in pairs], now_ns=now_ns
    )
    if asked.follow:
        if asked.until_ns is not None and asked.until_ns <= now_ns:
            raise ParameterError(
                "until",
                "is past, so there is nothing to follow",
                hint="leave out one of the two; a time of day means its last one",
            )
        return asked if asked.since_ns is not None else replace(asked, since_ns=now_ns)
    if "last" in names and "until" in names:
        raise ParameterError("last", "ends now", hint="give since with until")
    if "last" in names and asked.since_ns == now_ns:
        raise ParameterError("last", "is no time at all", hint="for example 5m")
    begun = asked.since_ns is not None and asked.since_ns < now_ns
    return (
        replace(asked, until_ns=now_ns) if begun and asked.until_ns is None else asked
    )


def _absolute(name: str, text: str, now_ns: int) -> str:
    """Return a time that names its zone; anything else as it is."""
    if name not in {"since", "until"}:
        return text
    try:
        return format_time(parse_time(text, now_ns=now_ns, zone=LOCAL))
    except UsageError as exc:
        raise ParameterError(name, exc.message, hint=exc.hint) from exc


def told_gaps(report: WindowReport, *, now_ns: int) -> str:
    """Return of what the ring may lack packets; empty when it covers the window.

    Not that it has nothing: what came just before a crash may be there or not.
    """
    shown = [
        f"from {told_interval(gap.begin_ns, gap.end_ns, now_ns=now_ns)}"
        for gap in report.gaps[:_MOST_GAPS]
    ]
    left = len(report.gaps) - len(shown) + report.omitted
    if left:
        more = " more" if shown else ""
        shown.append(f"in {left}{more} gaps" if left > 1 else f"in one{more} gap")
    return f"the ring may lack what came {', '.join(shown)}" if shown else ""


def told_outside(report: WindowReport, *, now_ns: int) -> str:
    """Return that a ring has nothing of a window, which is refused then."""
    whole = [
        f": {told_interval(gap.begin_ns, gap.end_ns, now_ns=now_ns)}"
        for gap in report.gaps[:1]
    ]
    return "".join(["the ring has nothing of the window", *whole])


def told_interval(begin_ns: int, end_ns: int, *, now_ns: int) -> str:
    """Return both ends and the length of an interval; ``now_ns`` is this moment."""
    return (
        f"{told_time(begin_ns, now_ns=now_ns)} to {told_time(end_ns, now_ns=now_ns)} "
        f"({told_duration(end_ns - begin_ns)})"
    )


def told_second(moment_ns: int, *, now_ns: int) -> str:
    """Return a moment as ``told_time`` does, to the second."""
    return told_time(moment_ns // SECONDS * SECONDS, now_ns=now_ns)


def told_time(moment_ns: int, *, now_ns: int) -> str:
    """Return a moment in local time to the millisecond; the date if it is not today."""
    try:
        moment = datetime.fromtimestamp(moment_ns // SECONDS, LOCAL)
    except (OverflowError, ValueError, OSError):
        return "?"  # it came from the network, and no calendar has it
    shown = f"{moment:%H:%M:%S}"
    milliseconds = moment_ns % SECONDS // MILLISECONDS
    if milliseconds:
        shown += f".{milliseconds:03d}"
    today = datetime.fromtimestamp(now_ns // SECONDS, LOCAL).date()
    return shown if moment.date() == today else f"{moment:%Y-%m-%d} {shown}"


def told_duration(nanoseconds: int) -> str:
    """Return a length as people read it: ``1m10s``, ``2s500ms``, ``3ms``."""
    if not 0 <= nanoseconds < _LONGEST_NS:
        return "?"
    for least, unit in _ROUNDING:
        if nanoseconds >= least:
            return format_duration(nanoseconds // unit * unit)
    return format_duration(nanoseconds)
