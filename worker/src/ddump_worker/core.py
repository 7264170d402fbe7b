"""What the handlers work on: the parts of a worker, and what a request becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import ParameterError
from ddump_common.pcap import MAX_SNAPLEN

from .exclusion import only
from .interfaces import interfaces
from .window import NoRingError

if TYPE_CHECKING:
    from ddump_common.api import CaptureQuery, RingQuery

    from .capture import Captures
    from .config import Config
    from .connections import Connections
    from .exclusion import Exclusion
    from .filters import FilterCompiler
    from .interfaces import Interface
    from .metrics import Metrics
    from .recording import Recording
    from .streams import Streams
    from .window import WindowPlan

__all__ = ["Core", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that can be carried out: its program, and what it is about.

    ``chosen`` are the indices of the interfaces that it names.
    """

    program: bytes
    host: list[Interface]
    chosen: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts of a worker; ``recording`` is ``None`` where it keeps no ring."""

    config: Config
    captures: Captures
    streams: Streams
    connections: Connections
    filters: FilterCompiler
    exclusion: Exclusion
    metrics: Metrics
    started_ns: int
    recording: Recording | None = None

    async def plan(self, query: CaptureQuery, *, client: str) -> Plan:
        """Check all of a request that can be checked without a handle.

        ``client`` is the address that asks, without its port.

        Raises:
            ParameterError: an interface that does not exist.
            ExhaustedError: too many streams, too much memory.
            FilterError: the filter does not compile.

        """
        self.captures.check()
        host = interfaces()
        chosen = _indices(query.interfaces, host)
        exclusions = self.exclusion.expressions(host)
        if chosen:
            exclusions.append(only(sorted(chosen)))
        program = await self.filters.compile(
            query.filter,
            exclusions=exclusions,
            link_type=query.link.link_type,
            snaplen=query.snaplen,
            client=client,
        )
        return Plan(program=program, host=host, chosen=chosen)

    async def plan_window(
        self, query: RingQuery, *, now_ns: int, client: str
    ) -> tuple[bytes, WindowPlan]:
        """Check all of a request for a window; return its program and what is there.

        The request came from ``client`` at ``now_ns``. This may wait until the ring has
        what came before that.

        Raises:
            NoRingError: there is none.
            ParameterError: an interface that the ring does not know.
            ExhaustedError: too many windows.
            FilterError: the filter does not compile.
            UncoveredError: the ring has nothing of the window.

        """
        if self.recording is None:
            raise NoRingError
        windows = self.recording.windows
        windows.check()
        chosen = self._recorded_indices(query.interfaces, self.recording)
        program = b""
        if chosen or query.filter.strip():
            program = await self.filters.compile(
                query.filter,
                exclusions=[only(sorted(chosen))] if chosen else [],
                link_type=self.config.ring_link.link_type,
                snaplen=MAX_SNAPLEN,
                client=client,
                stored=True,
            )
        return program, await windows.plan(query, now_ns=now_ns)

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
