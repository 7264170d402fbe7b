"""``ddump status``: every worker's own account of itself, asked all at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ddump_common.text import printable

from .account import fetch_status
from .survey import print_json, survey, survey_code, told_share
from .table import print_table
from .window import told_duration, told_second

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ddump_common.answers import RingInfo, Status
    from ddump_common.errors import ExitCode

    from .config import TlsFiles
    from .target import Target

__all__ = ["ring_lines", "ring_notes", "show_status", "status_lines", "told_notes"]

_RECORDING = "recording"


def show_status(
    targets: Sequence[Target], *, tls: TlsFiles, connect_timeout_ns: int, as_json: bool
) -> ExitCode:
    """Ask, and print a line for every worker that answered.

    Raises:
        UsageError: no target, or one that is a file.

    """
    answers = survey(
        targets,
        fetch_status,
        command="status",
        tls=tls,
        timeout_ns=connect_timeout_ns,
    )
    if as_json:
        for name, status in answers.items():
            print_json(name, status)
    elif answers:
        print_table(status_lines(answers))
        rings = ring_lines(answers, now_ns=time.time_ns())
        if len(rings) > 1:
            click.echo()
            print_table(rings)
            for note in ring_notes(answers):
                click.echo(printable(note))
    return survey_code(targets, answers)


def status_lines(answers: Mapping[str, Status]) -> list[list[str]]:
    """Return the table: a row of headings, then one for each worker."""
    headings = ["target", "host", "version", "streams", "packets", "dropped", "memory"]
    rows = [headings]
    for name, status in answers.items():
        memory = status.memory
        rows.append(
            [
                name,
                status.host,
                status.version,
                f"{len(status.streams)}/{status.max_streams}",
                str(status.totals.packets),
                str(status.totals.dropped),
                told_share(memory.used_bytes, memory.limit_bytes, of="/"),
            ]
        )
    return rows


def ring_lines(answers: Mapping[str, Status], *, now_ns: int) -> list[list[str]]:
    """Return a row of headings, then one for each worker that keeps a ring.

    What it covers has a beginning, an end, the time between, and gaps in it.
    """
    covered = ["begin", "end", "time", "gaps"]
    rows = [["target", "ring", *covered, "size", "dropped", "lost"]]
    for name, status in answers.items():
        ring = status.ring
        if ring is not None:
            rows.append(
                [
                    name,
                    # Why it does not is too long for a column.
                    ring.state if ring.state == _RECORDING else "not recording",
                    *_covered(ring, now_ns),
                    told_share(ring.bytes, ring.limit_bytes, of="/"),
                    str(ring.dropped),
                    str(ring.lost),
                ]
            )
    return rows


def _covered(ring: RingInfo, now_ns: int) -> list[str]:
    if not ring.coverage:
        return ["-", "-", "-", "-"]
    begin_ns, end_ns = ring.coverage[0].begin_ns, ring.coverage[-1].end_ns
    return [
        told_second(begin_ns, now_ns=now_ns),
        told_second(end_ns, now_ns=now_ns),
        told_duration(end_ns - begin_ns),
        str(len(ring.coverage) - 1),
    ]


def ring_notes(answers: Mapping[str, Status]) -> Iterator[str]:
    """Yield a line for each worker whose ring something hinders: what it is."""
    for name, status in answers.items():
        notes = [] if status.ring is None else told_notes(status.ring)
        if notes:
            yield f"{name}: {', '.join(notes)}"


def told_notes(ring: RingInfo) -> list[str]:
    """Return what hinders a ring."""
    notes = [] if ring.state == _RECORDING else [ring.state]
    if ring.adopting:
        notes.append("adopting what an earlier run recorded")
    if ring.shortened:
        notes.append(f"shortened: {ring.shortened}")
    return notes
