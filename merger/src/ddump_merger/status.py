"""``ddump status``: every worker's own account of itself, asked all at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from .account import fetch_status
from .survey import print_json, print_table, survey, survey_code, told_size
from .window import told_coverage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import aiohttp

    from ddump_common.answers import RingInfo, Status
    from ddump_common.errors import ExitCode

    from .config import TlsFiles
    from .target import HttpTarget, Target

__all__ = ["ring_lines", "show_status", "status_lines", "told_state"]


def show_status(
    targets: Sequence[Target], *, tls: TlsFiles, connect_timeout_ns: int, as_json: bool
) -> ExitCode:
    """Ask, and print a line for every worker that answered.

    Raises:
        UsageError: no target, or one that is a file.

    """

    async def fetch(worker: HttpTarget, session: aiohttp.ClientSession) -> Status:
        return await fetch_status(worker, session, timeout_ns=connect_timeout_ns)

    answers = survey(targets, fetch, command="status", tls=tls)
    if as_json:
        for name, status in answers.items():
            print_json(name, status)
    elif answers:
        print_table(status_lines(answers))
        rings = ring_lines(answers, now_ns=time.time_ns())
        if len(rings) > 1:
            click.echo()
            print_table(rings)
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
                f"{told_size(memory.used_bytes)}/{told_size(memory.limit_bytes)}",
            ]
        )
    return rows


def ring_lines(answers: Mapping[str, Status], *, now_ns: int) -> list[list[str]]:
    """Return a row of headings, then one for each worker that keeps a ring."""
    rows = [["target", "ring", "size", "dropped", "lost", "covered"]]
    for name, status in answers.items():
        ring = status.ring
        if ring is not None:
            rows.append(
                [
                    name,
                    told_state(ring),
                    f"{told_size(ring.bytes)}/{told_size(ring.limit_bytes)}",
                    str(ring.dropped),
                    str(ring.lost),
                    told_coverage(ring.coverage, now_ns=now_ns),
                ]
            )
    return rows


def told_state(ring: RingInfo) -> str:
    """Return what a ring does, and what hinders it."""
    parts = [ring.state]
    if ring.adopting:
        parts.append("adopting")
    if ring.shortened:
        parts.append(f"shortened: {ring.shortened}")
    return ", ".join(parts)
