"""What the operator says in filters, compiled before anything depends on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from ddump_common.api import Link
from ddump_common.errors import DdumpError, FilterError, UsageError
from ddump_common.pcap import MAX_SNAPLEN, LinkType

from .access import Permission
from .filters import SHARE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .access import Rule
    from .config import Config
    from .filters import FilterCompiler

__all__ = ["vet_exclusions", "vet_ring", "vet_rules"]


class _Case(NamedTuple):
    """A filter, where it is said, and for which packets it is to compile."""

    name: str
    expression: str
    link_type: LinkType = LinkType.LINUX_SLL
    stored: bool = False


async def vet_exclusions(expressions: Sequence[str], filters: FilterCompiler) -> None:
    """Refuse an ``--exclude`` that does not compile.

    Raises:
        UsageError: one does not; by name.
        CaptureError: this host cannot compile.

    """
    await _vet((_Case(f"--exclude {each!r}", each) for each in expressions), filters)


async def vet_ring(config: Config, filters: FilterCompiler) -> None:
    """Refuse a ``--ring-filter`` that does not compile; recording does so as well.

    Raises:
        UsageError: it does not.
        CaptureError: this host cannot compile.

    """
    text = config.ring_filter
    case = _Case(f"--ring-filter {text!r}", text, config.ring_link.link_type)
    await _vet([case], filters)


async def vet_rules(
    rules: Sequence[Rule], filters: FilterCompiler, config: Config
) -> None:
    """Refuse a rule whose filter does not compile for what the rule allows.

    Raises:
        UsageError: one does not; by name.
        CaptureError: this host cannot compile.

    """
    await _vet(_cases(rules, config), filters)


def _cases(rules: Sequence[Rule], config: Config) -> Iterator[_Case]:
    for number, rule in enumerate(rules, 1):
        text, allow = rule.grant.filter, rule.grant.allow
        name = f"access table {number}: filter {text!r}"
        if Permission.STREAM in allow:
            for link in Link:
                yield _Case(name, text, link.link_type)
        if Permission.WINDOW in allow and config.ring_dir is not None:
            link_type = config.ring_link.link_type
            yield _Case(f"{name}, for the ring", text, link_type, stored=True)


async def _vet(cases: Iterable[_Case], filters: FilterCompiler) -> None:
    # All at once, but none that has to wait for a place to be compiled.
    places = asyncio.Semaphore(SHARE)
    async with asyncio.TaskGroup() as tasks:
        found = [
            tasks.create_task(_error_of(each, filters, places))
            for each in dict.fromkeys(cases)
        ]
    for each in found:
        if (error := each.result()) is not None:
            raise error


async def _error_of(
    case: _Case, filters: FilterCompiler, places: asyncio.Semaphore
) -> DdumpError | None:
    try:
        async with places:
            await filters.compile(
                case.expression,
                link_type=case.link_type,
                snaplen=MAX_SNAPLEN,
                stored=case.stored,
            )
    except FilterError as exc:
        error = UsageError(f"{case.name}: {exc.message}", hint=exc.hint)
        error.__cause__ = exc
        return error
    except DdumpError as exc:
        return exc
    return None
