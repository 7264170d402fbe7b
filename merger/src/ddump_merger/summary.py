"""What is said at the end: tcpdump's counts for each target, and the exit code.

A line per target has what tcpdump's has, what else is not nothing, and its clock against
ours. Below it, where there are any, stand in local time the parts of a window that its
ring lacks, and the times in which it could not be read.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from ddump_common.errors import DdumpError, ExitCode
from ddump_common.text import printable

from .target import HttpTarget
from .window import told_interval, told_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._merge import Merge
    from .counters import Counters
    from .lane import Lane
    from .outage import Outage

__all__ = ["exit_code", "failure_code", "failures", "summary_lines"]


# Whoever reads the summary has read why; this many characters bring it to mind.
_LEAST_REASON = 12
_MOST_REASON = 60

# More of them are no help on a terminal; the report of the run has all.
_MOST_GAPS = 4

_INDENT = "    "


def exit_code(lanes: Sequence[Lane]) -> ExitCode:
    """Return how the run went for its targets.

    Where none was opened nothing was written, also when that was for an interrupt.
    Beside others, one that was not opened by then is not missing.
    """
    if not any(lane.has_header for lane in lanes):
        return ExitCode.NO_TARGET
    if any(lane.incomplete for lane in lanes):
        return ExitCode.INCOMPLETE
    return ExitCode.OK


def failures(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield what ended a run early: the exceptions in a group, and in groups in it."""
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from failures(each)
    elif exc is not None:
        yield exc


def failure_code(exc: BaseException) -> int:
    """Return what a run ends with that ``exc`` ended, the worst of several.

    That the output's reader went away is no failure.
    """
    return max(map(_code, failures(exc)))


def _code(failure: BaseException) -> int:
    if isinstance(failure, DdumpError):
        return failure.exit_code
    if isinstance(failure, BrokenPipeError):
        return ExitCode.OK
    if isinstance(failure, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return ExitCode.FAILURE


def summary_lines(lanes: Sequence[Lane], merge: Merge) -> Iterator[str]:
    """Yield the lines of each target, and one for all when there are several.

    What a worker's host dropped shows as ``-`` when the worker did not tell it.
    """
    packets_of_all = late_of_all = 0
    for lane in lanes:
        counters = merge.counters(lane.index)
        packets_of_all += counters.packets
        late_of_all += counters.late
        yield printable(f"{lane.name}: {_counts(lane, counters)}", limit=1000)
        for told in _remarks(lane):
            yield printable(f"{_INDENT}{told}", limit=1000)
    if len(lanes) > 1:
        yield f"all: {_count(packets_of_all, 'packet')} received, {late_of_all} late"


def _counts(lane: Lane, counters: Counters) -> str:
    if not lane.has_header:
        reason = "it had not answered" if lane.error is None else _short(lane.error)
        return f"not captured: {reason}"
    parts = [f"{_count(counters.packets, 'packet')} received"]
    if isinstance(lane.target, HttpTarget):
        dropped = lane.losses.dropped
        parts.append(f"{'-' if dropped is None else dropped} dropped by kernel")
    if lane.losses.interface_dropped:
        parts.append(f"{lane.losses.interface_dropped} dropped by interface")
    parts.append(f"{counters.late} late")
    parts += [told.format(number) for number, told in _rare(lane, counters) if number]
    if counters.backwards:
        parts.append(f"{_count(counters.backwards, 'heartbeat')} went backwards")
    if lane.error is not None:
        parts.append(f"truncated: {_short(lane.error)}")
    if lane.skew is not None:
        corrected = " corrected" if lane.shift_ns else ""
        parts.append(f"clock {lane.skew}{corrected}")
    return ", ".join(parts)


def _rare(lane: Lane, counters: Counters) -> Iterator[tuple[int, str]]:
    """Yield what is said only where it is not 0."""
    yield counters.refilled, "{} refilled"
    yield lane.losses.missing, "{} missing"
    yield lane.losses.surplus, "{} more than were sent"
    yield lane.losses.skipped, "up to {} no longer in the ring"
    yield counters.cut, "{} cut to the snapshot length"


def _remarks(lane: Lane) -> Iterator[str]:
    """Yield what is said of a target in lines of its own."""
    now_ns = time.time_ns()
    if lane.distrusted:
        yield f"distrusted: {lane.distrusted}"
    if lane.window is not None:
        gaps = lane.window.gaps[:_MOST_GAPS]
        for gap in gaps:
            told = told_interval(gap.begin_ns, gap.end_ns, now_ns=now_ns)
            yield f"gap {told}: the ring may lack packets"
        left = len(lane.window.gaps) - len(gaps) + lane.window.omitted
        if left:
            yield f"{left} more {'gap' if left == 1 else 'gaps'}"
    for outage in lane.outages[:_MOST_GAPS]:
        yield _told_outage(outage, now_ns)
    if len(lane.outages) > _MOST_GAPS:
        more = len(lane.outages) - _MOST_GAPS
        yield "broken once more" if more == 1 else f"broken {more} times more"


def _told_outage(outage: Outage, now_ns: int) -> str:
    if outage.end_ns is None:
        begin = told_time(outage.begin_ns, now_ns=now_ns)
        return f"broken since {begin}: {_cut(outage.reason)}"
    told = told_interval(outage.begin_ns, outage.end_ns, now_ns=now_ns)
    found = "none missing" if outage.filled else "may lack packets"
    refilled = f"{outage.refilled} refilled, " if outage.refilled else ""
    return f"broken {told}: {refilled}{found}"


def _short(error: DdumpError) -> str:
    """Return the beginning of an error that was said in full when it came."""
    return _cut(error.message)


def _cut(reason: str) -> str:
    said, *more = reason.split(": ")
    while more and len(said) < _LEAST_REASON:
        said += f": {more.pop(0)}"
    return printable(said, limit=_MOST_REASON)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
