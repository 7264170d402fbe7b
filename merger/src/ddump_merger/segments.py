"""``ddump segments``: what every worker's ring holds, and of what it may lack packets."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import click
import msgspec

from ddump_common.text import printable

from .account import fetch_segments
from .status import told_notes
from .survey import print_json, survey, survey_code, told_share, told_size
from .table import print_table
from .window import told_duration, told_second

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ddump_common.answers import RingInfo, SegmentInfo, Segments
    from ddump_common.errors import ExitCode

    from .config import TlsFiles
    from .target import Target

__all__ = ["coverage_rows", "segment_rows", "show_segments"]

_NUMBER = re.compile(r"ddump-0*([0-9]+)-[0-9TZ]+\.pcap", re.ASCII)


def show_segments(
    targets: Sequence[Target], *, tls: TlsFiles, connect_timeout_ns: int, as_json: bool
) -> ExitCode:
    """Ask, and print the segments and the coverage of every worker that answered.

    Raises:
        UsageError: no target, or one that is a file.

    """
    answers = survey(
        targets,
        fetch_segments,
        command="segments",
        tls=tls,
        timeout_ns=connect_timeout_ns,
    )
    if as_json:
        _print_json(answers)
    elif answers:
        _print_tables(answers, now_ns=time.time_ns())
    return survey_code(targets, answers)


def _print_json(answers: Mapping[str, Segments]) -> None:
    """Print a line for each ring, which has the coverage, and one for each segment."""
    for name, answer in answers.items():
        whole = msgspec.to_builtins(answer)
        segments = whole.pop("segments")
        print_json(name, whole)
        for segment in segments:
            print_json(name, {"host": answer.host, **segment})


def _print_tables(answers: Mapping[str, Segments], *, now_ns: int) -> None:
    segments = segment_rows(answers, now_ns=now_ns)
    coverage = coverage_rows(answers, now_ns=now_ns)
    for rows in (segments, coverage):
        if len(rows) > 1:
            print_table(rows)
            click.echo()
    for name, answer in answers.items():
        if answer.ring is None:
            told = "it keeps no ring: see --ring-dir of ddump-worker"
        else:
            told = _told_ring(answer.ring)
        click.echo(printable(f"{name}: {told}"))


def segment_rows(answers: Mapping[str, Segments], *, now_ns: int) -> list[list[str]]:
    """Return a row of headings, then one for each segment, by target, oldest first."""
    headings = ["begin", "end", "time", "packets", "bytes", "dropped", "lost"]
    return [
        ["target", "segment", *headings],
        *(
            _segment_row(name, segment, now_ns)
            for name, answer in answers.items()
            for segment in answer.segments
        ),
    ]


def _segment_row(target: str, segment: SegmentInfo, now_ns: int) -> list[str]:
    return [
        target,
        # The rest of a name says no more than the columns beside it.
        number[1] if (number := _NUMBER.match(segment.name)) else segment.name,
        told_second(segment.begin_ns, now_ns=now_ns),
        "growing" if segment.growing else told_second(segment.end_ns, now_ns=now_ns),
        told_duration(segment.end_ns - segment.begin_ns),
        str(segment.packets),
        told_size(segment.bytes),
        str(segment.dropped),
        str(segment.lost),
    ]


def coverage_rows(answers: Mapping[str, Segments], *, now_ns: int) -> list[list[str]]:
    """Return a row of headings, then what each ring covers, and the gaps between."""
    rows = [["target", "begin", "end", "time", "coverage"]]
    for name, answer in answers.items():
        for begin_ns, end_ns, what in _stretches(answer.ring):
            rows.append(
                [
                    name,
                    told_second(begin_ns, now_ns=now_ns),
                    told_second(end_ns, now_ns=now_ns),
                    told_duration(end_ns - begin_ns),
                    what,
                ]
            )
    return rows


def _stretches(ring: RingInfo | None) -> Iterator[tuple[int, int, str]]:
    end_ns = None
    for each in [] if ring is None else ring.coverage:
        if end_ns is not None:
            yield end_ns, each.begin_ns, "gap"
        yield each.begin_ns, each.end_ns, "covered"
        end_ns = each.end_ns


def _told_ring(ring: RingInfo) -> str:
    parts = [
        *(told_notes(ring) or ["recording"]),
        f"{ring.segments} {'segment' if ring.segments == 1 else 'segments'} of {ring.link}",
        told_share(ring.bytes, ring.limit_bytes, of=" of "),
        f"{ring.packets} packets",
        f"{ring.dropped} dropped by kernel",
    ]
    if ring.lost:
        parts.append(f"{ring.lost} lost, which the disk did not take")
    if ring.pinned_bytes:
        parts.append(f"{told_size(ring.pinned_bytes)} more held by windows")
    if ring.windows:
        parts.append(f"{ring.windows} of {ring.max_windows} windows open")
    return ", ".join(parts)
