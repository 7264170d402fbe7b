"""One target on its way through the merge: its state, its clock, what became of it."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .target import HttpTarget

if TYPE_CHECKING:
    from ddump_common.errors import DdumpError
    from ddump_common.window import WindowReport

    from .source import Source
    from .target import Target

__all__ = ["Lane", "LaneState"]


class LaneState(enum.StrEnum):
    """Where a target is in its life. It only moves forward."""

    CONNECTING = "connecting"
    OPEN = "open"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class Lane:
    """One input of the merge.

    ``index`` is its number there. ``live`` is whether the clock may move it; a window
    that is followed becomes it when it has caught up; ``ahead`` is whether it is then
    left unread, for it holds much that others hold back. ``heard`` is when bytes last
    came, by the event loop's clock. ``error`` is why it is missing or was cut short.
    ``window`` is what of its window the ring covers, ``dropped`` how many of its packets
    were lost on the worker's host, and ``skipped`` how many at most were recorded there
    and could no longer be read, when that is known. ``wanted`` is set while the merge
    waits for the next bytes of a file or a window.
    """

    index: int
    target: Target
    source: Source
    live: bool
    ahead: bool = False
    heard: float
    state: LaneState = LaneState.CONNECTING
    has_header: bool = False
    error: DdumpError | None = None
    window: WindowReport | None = None
    dropped: int | None = None
    skipped: int = 0
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
        return self.error is not None or gaps or self.skipped > 0
