"""How many captures may be open at once, and how much memory their rings may take.

Each open capture costs every packet of the host about 0.17 µs, also when its filter
matches nothing, and its ring is memory that the kernel cannot swap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.errors import CaptureError
from ddump_common.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Capacity", "ExhaustedError", "Lease"]


class ExhaustedError(CaptureError):
    """Nothing is left; ``resource`` says of what: ``streams`` or ``memory``."""

    def __init__(self, resource: str, message: str) -> None:
        super().__init__(message, hint="try again later, or ask for less")
        self.resource = resource


class Capacity:
    """Leases captures; what is not leased can be."""

    def __init__(self, *, max_streams: int, max_memory: int) -> None:
        self.max_streams = max_streams
        self.max_memory = max_memory
        self._leases: set[Lease] = set()

    @property
    def streams(self) -> int:
        """How many captures are leased."""
        return len(self._leases)

    @property
    def memory(self) -> int:
        """How many bytes of rings are leased."""
        return sum(lease.memory for lease in self._leases)

    def check(self, memory: int) -> None:
        """Refuse what ``lease`` would refuse at this moment.

        Raises:
            ExhaustedError: one more would be too many, or too much.

        """
        if self.streams >= self.max_streams:
            raise ExhaustedError(
                "streams", f"all {self.max_streams} streams are in use"
            )
        if self.memory + memory > self.max_memory:
            raise ExhaustedError(
                "memory",
                f"captures use {format_size(self.memory)} of "
                f"{format_size(self.max_memory)}, and {format_size(memory)} more "
                "are needed",
            )

    def lease(self, memory: int) -> Lease:
        """Take one capture with a ring of ``memory`` bytes.

        Raises:
            ExhaustedError: as ``check``.

        """
        self.check(memory)
        lease = Lease(memory=memory, _give_back=self._leases.discard)
        self._leases.add(lease)
        return lease


@dataclass(slots=True, eq=False)
class Lease:
    """One capture's share. ``memory`` becomes what the kernel really granted."""

    memory: int
    _give_back: Callable[[Lease], None]

    def release(self) -> None:
        """Give it back; again is harmless."""
        self._give_back(self)
