"""What the handlers work on: the parts of a worker, and what a request becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.errors import ParameterError

from .exclusion import only
from .interfaces import interfaces

if TYPE_CHECKING:
    from ddump_common.api import CaptureQuery

    from .capture import Captures
    from .config import Config
    from .connections import Connections
    from .exclusion import Exclusion
    from .filters import FilterCompiler
    from .interfaces import Interface
    from .metrics import Metrics
    from .streams import Streams

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
    """The parts of a worker."""

    config: Config
    captures: Captures
    streams: Streams
    connections: Connections
    filters: FilterCompiler
    exclusion: Exclusion
    metrics: Metrics
    started_ns: int

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
