"""One target on its way through the merge: its state, its clock, what became of it."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .losses import Losses
from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ddump_common.errors import DdumpError
    from ddump_common.window import WindowReport

    from .outage import Outage
    from .skew import Skew
    from .source import Source
    from .target import Target

__all__ = ["Lane", "LaneState"]


class LaneState(enum.StrEnum):
    """Where a target is in its life; one that is broken may be open again."""

    CONNECTING = "connecting"
    OPEN = "open"
    BROKEN = "reconnecting"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class Lane:
    """One input of the merge.

    ``index`` is its number there. ``live`` is whether the clock may move it; a window
    that is followed becomes it when it has caught up; ``ahead`` is whether it is then
    left unread, for it holds much that others hold back. ``trusted`` is whether its
    worker promised heartbeats: then only those and its records move it; ``distrusted``
    is why it is not any more. ``heard`` is
    when bytes last came, by the event loop's clock. ``error`` is why it is missing or
    was cut short. ``wanted`` is set while the merge waits for the next bytes of a file
    or a window.

    ``host`` is what the worker calls itself, ``skew`` how far its clock is from ours,
    ``shift_ns`` what is added to its times for that, and ``shifts`` what was from which
    moment of ours on; ``interfaces`` are the names of its interfaces by index, where
    they are asked for;
    ``window`` is what of its window the ring covers, ``outages`` are the times in which
    it could not be read, the last one maybe still, and ``losses`` what is known to be
    lost besides.
    """

    index: int
    target: Target
    source: Source
    live: bool
    ahead: bool = False
    trusted: bool = False
    heard: float
    state: LaneState = LaneState.CONNECTING
    has_header: bool = False
    error: DdumpError | None = None
    distrusted: str = ""
    host: str = ""
    skew: Skew | None = None
    shift_ns: int = 0
    shifts: list[tuple[int, int]] = field(default_factory=list)
    interfaces: Mapping[int, str] = field(default_factory=dict)
    window: WindowReport | None = None
    outages: list[Outage] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.name

    @property
    def follows(self) -> bool:
        """Whether it is a window that goes on live."""
        return isinstance(self.target, HttpTarget) and self.target.follows

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return self.state is LaneState.ENDED

    @property
    def incomplete(self) -> bool:
        """Whether something that was asked for is missing."""
        gaps = self.window is not None and not self.window.complete
        outages = any(not outage.filled for outage in self.outages)
        lost = self.losses.skipped > 0 or self.losses.missing > 0
        return self.error is not None or gaps or outages or lost
