"""A time in which packets of a target could not be had."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What was lost and found when a stream broke and came back.

    From ``begin_ns`` on, by the target's clock, packets may be missing; from
    ``end_ns`` on, ``None`` while it lasts, none is. ``refilled`` came from the ring
    of the target; ``filled`` is whether those are all of them.
    """

    begin_ns: int
    end_ns: int | None = None
    reason: str
    refilled: int = 0
    filled: bool = False
