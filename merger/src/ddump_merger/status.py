"""``ddump status``: every worker's own account of itself, asked all at once."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

import click
import msgspec
import uvloop

from ddump_common.errors import DdumpError, ExitCode, UsageError
from ddump_common.text import printable
from ddump_common.units import format_size

from .account import fetch_status
from .stream import open_session
from .target import HttpTarget

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ddump_common.answers import Status

    from .config import TlsFiles
    from .target import Target

__all__ = ["show_status", "status_lines"]

logger = logging.getLogger(__name__)


def show_status(
    targets: Sequence[Target], *, tls: TlsFiles, connect_timeout_ns: int, as_json: bool
) -> ExitCode:
    """Ask, and print a line for every worker that answered.

    Raises:
        UsageError: no target, or one that is a file.

    """
    workers = [target for target in targets if isinstance(target, HttpTarget)]
    if not workers or len(workers) < len(targets):
        raise UsageError("status is for workers", hint="ddump status http://HOST...")
    context = tls.context(workers)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(_ask(workers, context, connect_timeout_ns))
    if as_json:
        for name, status in answers.items():
            line = msgspec.json.encode({"target": name, **msgspec.to_builtins(status)})
            click.echo(line)
    elif answers:
        _print_table(answers)
    if not answers:
        return ExitCode.NO_TARGET
    return ExitCode.OK if len(answers) == len(workers) else ExitCode.INCOMPLETE


async def _ask(
    workers: Sequence[HttpTarget], context: ssl.SSLContext | None, timeout_ns: int
) -> dict[str, Status]:
    """Return the answers by target, in the targets' order; say who gave none."""
    answers: dict[str, Status] = {}

    async def ask(worker: HttpTarget) -> None:
        try:
            answers[worker.name] = await fetch_status(
                worker, session, timeout_ns=timeout_ns
            )
        except DdumpError as exc:
            logger.error("%s: %s", worker.name, exc)  # noqa: TRY400  # no traceback: it is said to a user

    async with open_session(context) as session, asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(ask(worker), name=f"status {worker.name}")
    return {w.name: answers[w.name] for w in workers if w.name in answers}


def status_lines(answers: dict[str, Status]) -> list[list[str]]:
    """Return the table: a row of headings, then one for each worker, safe to print."""
    headings = ["target", "host", "version", "streams", "packets", "dropped", "memory"]
    rows = [headings]
    for name, status in answers.items():
        rows.append(
            [
                printable(name, limit=40),
                printable(status.host, limit=40),
                printable(status.version, limit=20),
                f"{len(status.streams)}/{status.max_streams}",
                str(status.totals.packets),
                str(status.totals.dropped),
                f"{format_size(status.memory.used_bytes)}/"
                f"{format_size(status.memory.limit_bytes)}",
            ]
        )
    return rows


def _print_table(answers: dict[str, Status]) -> None:
    rows = status_lines(answers)
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
