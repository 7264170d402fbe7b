"""Workers asked all at once for what they tell of themselves.

Numbers that came from the network and cannot be are shown as what they are: nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

import click
import msgspec
import uvloop

from ddump_common.errors import DdumpError, ExitCode, UsageError
from ddump_common.units import format_about, format_size, format_size_like

from .stream import open_session
from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import aiohttp

    from .config import TlsFiles
    from .target import Target
    from .trust import Trust

__all__ = ["print_json", "survey", "survey_code", "told_share", "told_size"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

logger = logging.getLogger(__name__)

_LARGEST = 1 << 63


class Fetch(Protocol[T_co]):
    """What asks one worker."""

    async def __call__(
        self, target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
    ) -> T_co:
        """Return the answer.

        Raises:
            PeerError: there is none within ``timeout_ns``.

        """


def survey(
    targets: Sequence[Target],
    fetch: Fetch[T],
    *,
    command: str,
    tls: TlsFiles,
    timeout_ns: int,
) -> dict[str, T]:
    """Return the answers by target, in the targets' order; say who gave none.

    Each may take ``timeout_ns``.

    Raises:
        UsageError: no target, or one that is a file.

    """
    workers = [target for target in targets if isinstance(target, HttpTarget)]
    if not workers or len(workers) < len(targets):
        raise UsageError(
            f"{command} is for workers", hint=f"ddump {command} http://HOST..."
        )
    trust = tls.trust(workers)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask(workers, fetch, trust, timeout_ns))


async def _ask(
    workers: Sequence[HttpTarget],
    fetch: Fetch[T],
    trust: Trust | None,
    timeout_ns: int,
) -> dict[str, T]:
    answers: dict[str, T] = {}

    async def ask(worker: HttpTarget) -> None:
        try:
            answers[worker.name] = await fetch(worker, session, timeout_ns=timeout_ns)
        except DdumpError as exc:
            logger.error("%s: %s", worker.name, exc)  # noqa: TRY400  # no traceback: it is said to a user

    async with open_session(trust) as session, asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(ask(worker), name=f"ask {worker.name}")
    return {w.name: answers[w.name] for w in workers if w.name in answers}


def survey_code(targets: Sequence[Target], answers: Mapping[str, object]) -> ExitCode:
    """Return how a survey went."""
    if not answers:
        return ExitCode.NO_TARGET
    return ExitCode.OK if len(answers) == len(targets) else ExitCode.INCOMPLETE


def print_json(target: str, value: msgspec.Struct | Mapping[str, object]) -> None:
    """Print one object on a line, with the target's name."""
    click.echo(msgspec.json.encode({"target": target, **msgspec.to_builtins(value)}))


def told_size(size: int) -> str:
    """Return a size that came from the network."""
    return format_about(size) if 0 <= size < _LARGEST else "?"


def told_share(size: int, limit: int, *, of: str) -> str:
    """Return a size and its limit, both from the network, in one kind of units.

    That is the one in which the limit was given; ``of`` stands between them.
    """
    if not (0 <= size < _LARGEST and 0 <= limit < _LARGEST):
        return f"?{of}?"
    return f"{format_size_like(size, limit)}{of}{format_size(limit)}"
