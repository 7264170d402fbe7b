"""What is said at the end: tcpdump's counts for each target, and the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddump_common.errors import ExitCode
from ddump_common.text import printable

from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._merge import Merge
    from .lane import Lane

__all__ = ["exit_code", "summary_lines"]


def exit_code(lanes: Sequence[Lane], *, interrupted: bool) -> ExitCode:
    """Return how the run went for its targets.

    Who interrupts before any target has answered gets the empty capture that is asked
    for then; a target that was refused by then is missing all the same.
    """
    if not any(lane.incomplete for lane in lanes):
        return ExitCode.OK
    if any(lane.has_header for lane in lanes) or interrupted:
        return ExitCode.INCOMPLETE
    return ExitCode.NO_TARGET


def summary_lines(lanes: Sequence[Lane], merge: Merge) -> Iterator[str]:
    """Yield a line per target, and one for all when there are several.

    What a worker's host dropped shows as ``-`` when the worker did not tell it.
    """
    packets_of_all = late_of_all = 0
    for lane in lanes:
        packets, _, late, cut = merge.counters(lane.index)
        packets_of_all += packets
        late_of_all += late
        yield printable(f"{lane.name}: {_counts(lane, packets, late, cut)}", limit=1000)
    if len(lanes) > 1:
        yield f"all: {_count(packets_of_all, 'packet')} received, {late_of_all} late"


def _counts(lane: Lane, packets: int, late: int, cut: int) -> str:
    if not lane.has_header:
        reason = "it had not answered" if lane.error is None else lane.error
        return f"not captured: {reason}"
    parts = [f"{_count(packets, 'packet')} received"]
    if isinstance(lane.target, HttpTarget):
        dropped = "-" if lane.dropped is None else lane.dropped
        parts.append(f"{dropped} dropped by kernel")
    parts.append(f"{late} late")
    if lane.skipped:
        parts.append(f"{lane.skipped} overwritten before they were read")
    if cut:
        parts.append(f"{cut} cut to the snapshot length")
    if lane.error is not None:
        parts.append(f"truncated: {lane.error}")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
