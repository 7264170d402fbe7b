"""What the handlers work on: the parts of a worker, and what a request becomes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import ParameterError
from ddump_common.pcap import MAX_SNAPLEN

from .config import read_file, read_rules
from .denial import ForbiddenError
from .exclusion import only
from .interfaces import interfaces
from .vetting import vet_rules
from .window import NoRingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ddump_common.api import CaptureQuery, RingQuery

    from .access import Access, Grant, Order, Permission, Rule
    from .capture import Captures
    from .config import Config
    from .connections import Connections
    from .door import Door
    from .exclusion import Exclusion
    from .filters import FilterCompiler
    from .identity import Client
    from .interfaces import Interface
    from .metrics import Metrics
    from .recording import Recording
    from .streams import Streams
    from .window import WindowPlan

__all__ = ["Core", "Plan"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that can be carried out: its program, and what it is about.

    ``chosen`` are the indices of the interfaces that it names; a window has also those
    that the ring is of. ``host`` is empty where nothing is to come.
    """

    program: bytes
    host: list[Interface]
    chosen: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts of a worker; ``recording`` is ``None`` where it keeps no ring."""

    config: Config
    door: Door
    access: Access
    captures: Captures
    streams: Streams
    connections: Connections
    filters: FilterCompiler
    exclusion: Exclusion
    metrics: Metrics
    started_ns: int
    recording: Recording | None = None

    def grant(self, client: Client, permission: Permission) -> Grant:
        """Return what ``client`` may have, ``permission`` among it.

        Raises:
            UnauthorizedError: it may not, and did not say who it is.
            ForbiddenError: it may not.

        """
        grant = self.access.grant(client.identity)
        grant.require(permission, client.identity)
        return grant

    def holds(self, client: Client) -> bool:
        """Return whether ``client`` would be admitted again, and given what it has."""
        return self.door.holds(client) and all(
            self.access.holds(client.identity, each.order.grant)
            for each in self.streams
            if each.order.client is client
        )

    async def reload(self) -> None:
        """Read again all that can change while the worker runs.

        Cancelled, or when it raises, all is as before. Who came in before is not looked
        at: ``holds`` tells. Options that are read at a start only are named in the log
        when the file says something else of them.

        Raises:
            UsageError: something in the files cannot be.
            CaptureError: the rules' filters cannot be compiled on this host.

        """
        path = self.config.config_file
        rules: tuple[Rule, ...] = ()
        said = self.config.config_said
        if path is not None:
            rules = await asyncio.to_thread(read_rules, path)
            said = await asyncio.to_thread(read_file, path)
        self.access.check(rules)
        await vet_rules(rules, self.filters, self.config)
        await self.door.reload()
        self.access.replace(rules)
        if changed := _changed(self.config.config_said, said):
            _log.warning(
                "%s says something else than at the start, which a restart alone "
                "changes, of %s",
                path,
                ", ".join(changed),
            )

    async def plan(self, order: Order[CaptureQuery]) -> Plan:
        """Check all of a request that can be checked without a handle.

        Raises:
            ForbiddenError: who asks has as many streams as it may have, or its rule has
                changed meanwhile.
            ParameterError: an interface that does not exist.
            ExhaustedError: too many streams, too much memory.
            FilterError: the filter does not compile.

        """
        query = order.query
        self.streams.check(order)
        self.captures.check()
        host = interfaces()
        chosen = _indices(query.interfaces, host)
        exclusions = self.exclusion.expressions(host)
        exclusions.append(order.grant.filter)
        if chosen:
            exclusions.append(only(sorted(chosen)))
        program = await self.filters.compile(
            query.filter,
            exclusions=exclusions,
            link_type=query.link.link_type,
            snaplen=query.snaplen,
            client=order.client.host,
        )
        self._confirm(order)
        return Plan(program=program, host=host, chosen=chosen)

    async def plan_window(
        self, order: Order[RingQuery], *, now_ns: int
    ) -> tuple[Plan, WindowPlan]:
        """Check all of a request for a window; return it and what is there.

        The request came at ``now_ns``. This may wait until the ring has what came
        before that.

        Raises:
            ForbiddenError: as ``plan``, or the window is too old for who asks.
            NoRingError: there is none.
            ParameterError: an interface that the ring does not know.
            ExhaustedError: too many windows.
            FilterError: the filter does not compile.
            UncoveredError: the ring has nothing of the window.

        """
        if self.recording is None:
            raise NoRingError
        query = order.query
        self.streams.check(order)
        windows = self.recording.windows
        windows.check()
        chosen = self._recorded_indices(query.interfaces, self.recording)
        program = b""
        if chosen or query.filter.strip() or order.grant.filter.strip():
            program = await self.filters.compile(
                query.filter,
                exclusions=[
                    order.grant.filter,
                    *([only(sorted(chosen))] if chosen else []),
                ],
                link_type=self.config.ring_link.link_type,
                snaplen=MAX_SNAPLEN,
                client=order.client.host,
                stored=True,
            )
        plan = await windows.plan(
            query, now_ns=now_ns, oldest_ns=order.oldest_ns(now_ns)
        )
        self._confirm(order)
        return (
            Plan(
                program=program,
                host=interfaces() if query.follow else [],
                chosen=chosen or self.recording.indices,
            ),
            plan,
        )

    def _confirm(self, order: Order[CaptureQuery]) -> None:
        # The rules may have been replaced while this waited; from here on the stream is
        # one of those that ``holds`` looks at.
        if not self.access.holds(order.client.identity, order.grant):
            raise ForbiddenError(
                f"the rule for {order.client.identity} has changed meanwhile",
                retry_after_seconds=1,
            )

    def _recorded_indices(
        self, names: tuple[str, ...], recording: Recording
    ) -> frozenset[int]:
        if not names:
            return frozenset()
        if self.config.ring_link is Link.SLL:
            raise ParameterError(
                "interface",
                "the ring is of link type sll, which does not keep the interface",
                hint="start the worker with --ring-link sll2, or capture live",
            )
        known = recording.interfaces()
        for name in names:
            if name not in known:
                raise ParameterError(
                    "interface",
                    f"{name!r} is not an interface of this ring",
                    hint="there are " + ", ".join(sorted(known)),
                )
        return frozenset(index for name in names for index in known[name])


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the options of which two files say different things, as files name them."""
    return sorted(
        name.replace("_", "-")
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name)
    )


def _indices(names: tuple[str, ...], host: list[Interface]) -> frozenset[int]:
    known = {each.name: each.index for each in host}
    for name in names:
        if name not in known:
            raise ParameterError(
                "interface",
                f"{name!r} is not an interface of this host",
                hint="there are " + ", ".join(known),
            )
    return frozenset(known[name] for name in names)
