"""What is said at the end: tcpdump's counts for each target, and the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddump_common.errors import ExitCode
from ddump_common.text import printable

from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ddump_common.errors import DdumpError

    from ._merge import Merge
    from .lane import Lane

__all__ = ["exit_code", "summary_lines"]


# Whoever reads the summary has read why; this many characters bring it to mind.
_LEAST_REASON = 12
_MOST_REASON = 60


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


def summary_lines(lanes: Sequence[Lane], merge: Merge) -> Iterator[str]:
    """Yield a line per target, and one for all when there are several.

    What a worker's host dropped shows as ``-`` when the worker did not tell it.
    """
    packets_of_all = late_of_all = 0
    for lane in lanes:
        packets, _, late, cut, *_ = merge.counters(lane.index)
        packets_of_all += packets
        late_of_all += late
        yield printable(f"{lane.name}: {_counts(lane, packets, late, cut)}", limit=1000)
    if len(lanes) > 1:
        yield f"all: {_count(packets_of_all, 'packet')} received, {late_of_all} late"


def _counts(lane: Lane, packets: int, late: int, cut: int) -> str:
    if not lane.has_header:
        reason = "it had not answered" if lane.error is None else _short(lane.error)
        return f"not captured: {reason}"
    parts = [f"{_count(packets, 'packet')} received"]
    if isinstance(lane.target, HttpTarget):
        dropped = "-" if lane.dropped is None else lane.dropped
        parts.append(f"{dropped} dropped by kernel")
    parts.append(f"{late} late")
    if lane.skipped:
        parts.append(f"up to {lane.skipped} no longer in the ring")
    if cut:
        parts.append(f"{cut} cut to the snapshot length")
    if lane.error is not None:
        parts.append(f"truncated: {_short(lane.error)}")
    return ", ".join(parts)


def _short(error: DdumpError) -> str:
    """Return the beginning of an error that was said in full when it came."""
    said, *more = error.message.split(": ")
    while more and len(said) < _LEAST_REASON:
        said += f": {more.pop(0)}"
    return printable(said, limit=_MOST_REASON)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
