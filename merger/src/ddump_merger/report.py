"""The account of a run for programs: what ``--report`` writes.

The shape is kept: fields are added, none is renamed, removed or given another meaning.
Times are given twice: in RFC 3339, and as whole nanoseconds since the epoch, which not
every reader of JSON takes without rounding. ``null`` is what is not known. Credentials are never in it, and what
came from the network is made printable.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from ddump_common.text import printable
from ddump_common.timespec import format_time

from . import __version__
from .target import FileTarget, HttpTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ddump_common.window import Interval, WindowReport

    from .counters import Counters
    from .lane import Lane
    from .outage import Outage
    from .skew import Skew
    from .target import Target

__all__ = [
    "ClockReport",
    "OutageReport",
    "Outcome",
    "Report",
    "Stretch",
    "TargetReport",
    "Totals",
    "WindowPart",
    "compose",
    "serialized",
]

# What JSON of 64 bits can hold; what workers tell may add up to more.
_GREATEST = (1 << 63) - 1
_LONGEST_TEXT = 4096


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """The moments from ``begin_ns`` on that are before ``end_ns``."""

    begin: str
    begin_ns: int
    end: str
    end_ns: int


class WindowPart(msgspec.Struct, frozen=True, kw_only=True):
    """What of a window the ring covers: of its ``gaps`` packets may be missing.

    ``covered`` is from the first to the last moment; ``omitted`` gaps are not named.
    """

    covered: Stretch | None
    gaps: list[Stretch]
    omitted: int


class OutageReport(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which a target could not be read; one that lasts has no end.

    ``refilled`` packets of it came from its ring later, ``filled`` says that nothing
    of it is missing.
    """

    begin: str
    begin_ns: int
    end: str | None
    end_ns: int | None
    reason: str
    refilled: int
    filled: bool


class ClockReport(msgspec.Struct, frozen=True, kw_only=True):
    """A clock that is ``offset_ns`` ahead of ours, give or take ``error_ns``.

    ``corrected`` is whether that was taken from the timestamps.
    """

    offset_ns: int
    error_ns: int
    corrected: bool


class Outcome(enum.StrEnum):
    """How a target ended."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    TRUNCATED = "truncated"
    NOT_CAPTURED = "not captured"


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One target: see README.rst for what each number counts."""

    name: str
    url: str | None
    file: str | None
    outcome: Outcome
    host: str | None = None
    error: str | None = None
    packets: int = 0
    bytes: int = 0
    late: int = 0
    refilled: int = 0
    joined: int = 0
    cut: int = 0
    received: int | None = None
    dropped: int | None = None
    interface_dropped: int | None = None
    skipped: int = 0
    missing: int = 0
    surplus: int = 0
    backwards: int = 0
    distrusted: str | None = None
    window: WindowPart | None = None
    outages: list[OutageReport] = []
    clock: ClockReport | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all targets, of ``dropped`` over those that told it."""

    targets: int
    captured: int
    packets: int
    bytes: int
    late: int
    refilled: int
    joined: int
    cut: int
    dropped: int | None
    interface_dropped: int | None
    skipped: int
    missing: int
    surplus: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``error`` is why it ended early as a whole, if it did."""

    version: str
    begun: str
    begun_ns: int
    ended: str
    ended_ns: int
    exit_code: int
    error: str | None
    output: str
    totals: Totals
    targets: list[TargetReport]


def compose(
    targets: Iterable[Target],
    lanes: Sequence[Lane],
    counters: Callable[[int], Counters] | None,
    *,
    begun_ns: int,
    ended_ns: int,
    exit_code: int,
    error: str,
    output: str,
) -> Report:
    """Return the account of a run that is over.

    One that ended before its targets had lanes has done nothing with them, and has no
    ``counters``.
    """
    told = (
        [_account(lane, counters(lane.index)) for lane in lanes]
        if counters is not None
        else [_untried(target) for target in targets]
    )
    return Report(
        version=__version__,
        begun=format_time(begun_ns),
        begun_ns=begun_ns,
        ended=format_time(ended_ns),
        ended_ns=ended_ns,
        exit_code=exit_code,
        error=_text(error),
        output=printable(output, limit=_LONGEST_TEXT),
        totals=_totals(told),
        targets=told,
    )


def serialized(report: Report) -> bytes:
    """Return the report as JSON that people can read, too."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _untried(target: Target) -> TargetReport:
    """Return the account of a target that nothing was done with."""
    return TargetReport(
        name=printable(target.name, limit=_LONGEST_TEXT),
        url=target.url if isinstance(target, HttpTarget) else None,
        file=_text(target.path) if isinstance(target, FileTarget) else None,
        outcome=Outcome.NOT_CAPTURED,
    )


def _account(lane: Lane, counters: Counters) -> TargetReport:
    """Return the account of a target."""
    losses = lane.losses
    return msgspec.structs.replace(
        _untried(lane.target),
        outcome=_outcome(lane),
        host=_text(lane.host),
        error=_text("" if lane.error is None else str(lane.error)),
        packets=counters.packets,
        bytes=counters.octets,
        late=counters.late,
        refilled=counters.refilled,
        joined=counters.joined,
        cut=counters.cut,
        received=_bounded(losses.received),
        dropped=_bounded(losses.dropped),
        interface_dropped=_bounded(losses.interface_dropped),
        skipped=min(losses.skipped, _GREATEST),
        missing=min(losses.missing, _GREATEST),
        surplus=min(losses.surplus, _GREATEST),
        backwards=counters.backwards,
        distrusted=_text(lane.distrusted),
        window=None if lane.window is None else _window(lane.window),
        outages=[_outage(each) for each in lane.outages],
        clock=None if lane.skew is None else _clock(lane.skew, lane.shift_ns),
    )


def _outcome(lane: Lane) -> Outcome:
    if not lane.has_header:
        return Outcome.NOT_CAPTURED
    if lane.error is not None:
        return Outcome.TRUNCATED
    return Outcome.INCOMPLETE if lane.incomplete else Outcome.COMPLETE


def _window(window: WindowReport) -> WindowPart:
    return WindowPart(
        covered=None if window.covered is None else _stretch(window.covered),
        gaps=[_stretch(gap) for gap in window.gaps],
        omitted=window.omitted,
    )


def _stretch(interval: Interval) -> Stretch:
    return Stretch(
        begin=format_time(interval.begin_ns),
        begin_ns=interval.begin_ns,
        end=format_time(interval.end_ns),
        end_ns=interval.end_ns,
    )


def _outage(outage: Outage) -> OutageReport:
    return OutageReport(
        begin=format_time(outage.begin_ns),
        begin_ns=outage.begin_ns,
        end=None if outage.end_ns is None else format_time(outage.end_ns),
        end_ns=outage.end_ns,
        reason=printable(outage.reason, limit=_LONGEST_TEXT),
        refilled=outage.refilled,
        filled=outage.filled,
    )


def _clock(skew: Skew, shift_ns: int) -> ClockReport:
    return ClockReport(
        offset_ns=skew.offset_ns, error_ns=skew.error_ns, corrected=shift_ns != 0
    )


def _totals(targets: Sequence[TargetReport]) -> Totals:
    return Totals(
        targets=len(targets),
        captured=sum(each.outcome is not Outcome.NOT_CAPTURED for each in targets),
        packets=sum(each.packets for each in targets),
        bytes=sum(each.bytes for each in targets),
        late=sum(each.late for each in targets),
        refilled=sum(each.refilled for each in targets),
        joined=sum(each.joined for each in targets),
        cut=sum(each.cut for each in targets),
        dropped=_sum(each.dropped for each in targets),
        interface_dropped=_sum(each.interface_dropped for each in targets),
        skipped=min(sum(each.skipped for each in targets), _GREATEST),
        missing=min(sum(each.missing for each in targets), _GREATEST),
        surplus=min(sum(each.surplus for each in targets), _GREATEST),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return _bounded(sum(known)) if known else None


def _bounded(count: int | None) -> int | None:
    return None if count is None else min(max(count, 0), _GREATEST)


def _text(text: str) -> str | None:
    return printable(text, limit=_LONGEST_TEXT) if text else None
