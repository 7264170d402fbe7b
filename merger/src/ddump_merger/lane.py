"""One target on its way through the merge: its state, its clock, what became of it."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddump_common.errors import DdumpError

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

    ``index`` is its number there. ``live`` is whether the clock may move it. ``heard``
    is when bytes last came, by the event loop's clock. ``error`` is why it is missing
    or was cut short. ``dropped`` is how many of its packets were lost on the worker's
    host, when that is known. ``wanted`` is set while the merge waits for a file's next bytes.
    """

    index: int
    target: Target
    source: Source
    live: bool
    heard: float
    state: LaneState = LaneState.CONNECTING
    has_header: bool = False
    error: DdumpError | None = None
    dropped: int | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.name

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return self.state is LaneState.ENDED
