"""The way into the merge, which all targets share.

Bytes go in here and wake whoever drains the merge; while the sink is full, nobody reads.
What goes wrong with a target is kept and said here, once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from ddump_common.errors import CorruptError, PeerError

from .clock import Clock
from .header import fits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ddump_common.errors import DdumpError

    from ._merge import Merge
    from .config import Config
    from .lane import Lane

__all__ = ["Inlet"]

logger = logging.getLogger(__name__)


class Inlet:
    """What the readers of all lanes share; ``on_loss`` ends the run.

    ``wake`` is set when there may be something to drain. ``stopping`` is whether the run
    is about to end: what has arrived is taken, and no more. ``link_type`` is the
    output's, once it is fixed.
    """

    def __init__(
        self,
        config: Config,
        merge: Merge,
        lanes: Sequence[Lane],
        *,
        on_loss: Callable[[], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.config = config
        self.merge = merge
        self.clock_ns = clock_ns
        self.wake = asyncio.Event()
        self.stopping = False
        self.link_type: int | None = None
        self._on_loss = on_loss
        self._flow = asyncio.Event()
        self._flow.set()
        self._clock = Clock(
            merge, lanes, hold_ns=config.hold_ns, on_move=self.wake.set, now_ns=clock_ns
        )

    def receive_data(self, lane: Lane, data: bytes) -> None:
        """Hand bytes to the merge.

        Raises:
            FormatError: they are no capture, or cannot become the output's link type.

        """
        try:
            self.merge.receive_data(lane.index, data)
        finally:  # what came before an error counts
            lane.has_header = lane.has_header or self._has_header(lane)
        buffered = self.merge.buffered(lane.index)
        if not lane.has_header and buffered > self.config.buffer_bytes:
            raise CorruptError("the header does not end", offset=0)
        self._clock.start()
        self.wake.set()

    def _has_header(self, lane: Lane) -> bool:
        """Return whether the header has come, and its packets can come out."""
        link_type = self.merge.link_type(lane.index)
        if link_type is None:
            return False
        return self.link_type is None or fits(link_type, self.link_type)

    def listen(self, lane: Lane) -> None:
        """Let the lane's silence count from now on."""
        lane.heard = asyncio.get_running_loop().time()
        self._clock.start()

    def pause(self) -> None:
        """Have nobody read, and silence mean nothing."""
        self._flow.clear()
        self._clock.pause()

    def go_on(self) -> None:
        """End the pause."""
        self._flow.set()
        self._clock.resume()

    @property
    def flows(self) -> bool:
        """Whether there is no pause."""
        return self._flow.is_set()

    async def flow(self) -> None:
        """Wait while there is a pause."""
        if not self._flow.is_set():
            await self._flow.wait()

    def stop(self) -> None:
        """Take what has arrived from now on, and no more."""
        self.stopping = True
        self.wake.set()

    def close(self) -> None:
        """Leave no timer behind."""
        self._clock.stop()

    def fail(self, lane: Lane, error: DdumpError) -> None:
        """Keep the first reason why a target is missing or cut short, and say it."""
        if lane.error is not None:
            return
        lane.error = error
        logger.error("%s: %s", lane.name, error)
        if self.config.fail_fast:
            self._on_loss()

    def lose(self, lane: Lane, what: str) -> None:
        """End the run for a loss of the lane's, if that is asked for."""
        if self.config.fail_fast and not self.stopping:
            self.fail(lane, PeerError(f"{what}, the first loss", hint="--fail-fast"))
