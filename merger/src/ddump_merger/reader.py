"""One target's life: it is opened, read to its end, and gone on with after a break.

A live stream is read as it comes, a file or a window of a ring when the merge waits for
it: what a window sends meanwhile waits in the connection. Of a stream that is trusted,
heartbeats tell all: that it lives, what its worker lost, and whether it ended well.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ddump_common.errors import (
    BrokenStreamError,
    CappedStreamError,
    DdumpError,
    FormatError,
)
from ddump_common.note import EndReason
from ddump_common.units import SECONDS, format_duration

from .heartbeats import PATIENCE_NS
from .lane import LaneState
from .reconnect import Reconnect
from .silence import SilentError, read_within
from .stretch import Stretch
from .target import HttpTarget
from .window import told_time

if TYPE_CHECKING:
    from .inlet import Inlet
    from .lane import Lane
    from .reconnect import Peer

__all__ = ["Reader"]

logger = logging.getLogger(__name__)

# A worker ends a stream of a given duration itself. One that does not know the
# parameter is ended this much later, in seconds, so that no packet is cut off.
_DURATION_GRACE = 2.0

# Eight heartbeats, in seconds: a network may stumble, and an end come meanwhile.
_LONGEST_SILENCE = 2.0

# A follower that has come this near to its worker's present has caught up: a recorder's
# batches are this late at most, and so is what follows them.
_PRESENT_NS = SECONDS


class Reader:
    """Reads one lane; ``peer`` is its worker, if it has one."""

    def __init__(self, lane: Lane, inlet: Inlet, peer: Peer | None) -> None:
        self._lane = lane
        self._inlet = inlet
        self._merge = inlet.merge
        self._stretch = Stretch(lane, inlet)
        self._reconnect = Reconnect(lane, inlet, peer, self._stretch)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Read the target to its end, and tell the merge. All that fails is said.

        Cancelled as the run stops, it takes what has arrived.
        """
        try:
            await self._reconnect.open()
            async with asyncio.timeout(None) as deadline:
                await self._read_on(deadline)
        except TimeoutError:
            self._take_arrived()
            self._check_deadline()
        except DdumpError as exc:
            self._inlet.fail(self._lane, exc)
        except asyncio.CancelledError:
            if self._inlet.stopping:
                self._check_presence(silent=not self._take_arrived())
            raise

    def settle(self) -> None:
        """Tell what there is to tell, when all has come out of the merge."""
        self._stretch.settle()

    async def _read_on(self, deadline: asyncio.Timeout) -> None:
        """Read to the end, however often it breaks on the way."""
        while (broken := await self._read_to_break(deadline)) is not None:
            if not await self._reconnect.go_on(broken):
                return

    async def _read_to_break(
        self, deadline: asyncio.Timeout
    ) -> BrokenStreamError | None:
        """Read one stream; return how it broke, if it did."""
        try:
            await self._read_stream(deadline)
        except BrokenStreamError as exc:
            return exc
        except FormatError as exc:
            broken = self._reconnect.leave_ring(exc)
            if broken is None:
                raise
            return broken
        return None

    async def _read_stream(self, deadline: asyncio.Timeout) -> None:
        """Read one stream to its end."""
        lane = self._lane
        while True:
            self._limit(deadline)
            began = self._loop.time()
            data = await self._read()
            if not data:
                break
            lane.heard = self._loop.time()
            lane.wanted.clear()
            self._take(data, seconds=lane.heard - began)
            if self._stretch.doubtful:
                await self._reconnect.judge()
            self._check_progress()
            await self._wait_for_turn()
        self._check_end()

    def _limit(self, deadline: asyncio.Timeout) -> None:
        """Let what is live last no longer than it was asked to."""
        duration_ns = self._inlet.config.duration_ns
        if self._lane.live and duration_ns is not None and deadline.when() is None:
            seconds = duration_ns / SECONDS + _DURATION_GRACE
            deadline.reschedule(self._loop.time() + seconds)

    async def _read(self) -> bytes:
        lane = self._lane
        if lane.live and not lane.trusted:
            return await lane.source.read()
        if not isinstance(lane.target, HttpTarget):
            return await lane.source.read()  # it has a timeout of its own
        silence_ns = self._inlet.config.timeout_ns
        if lane.trusted:
            silence_ns = PATIENCE_NS if lane.live else min(PATIENCE_NS, silence_ns)
        try:
            return await read_within(lane.source, silence_ns)
        except SilentError:
            silence = format_duration(silence_ns)
            if lane.trusted:
                raise BrokenStreamError(
                    f"nothing came for {silence}, not even a heartbeat"
                ) from None
            raise BrokenStreamError(
                f"nothing came for {silence}", hint="see --timeout"
            ) from None

    def _check_progress(self) -> None:
        """See whether a window comes on: heartbeats alone may tell that it does not."""
        lane, timeout_ns = self._lane, self._inlet.config.timeout_ns
        if lane.trusted and not lane.live and self._stretch.standing_ns >= timeout_ns:
            raise BrokenStreamError(
                f"nothing came for {format_duration(timeout_ns)}, but heartbeats that "
                "stand still",
                hint="see --timeout",
            )

    def _take(self, data: bytes, *, seconds: float = 0.0) -> None:
        """Hand bytes to the merge, and see what they tell.

        Raises:
            FormatError: they are no capture, or cannot become the output's link type.

        """
        try:
            self._inlet.receive_data(self._lane, data)
        finally:  # what came before an error counts
            self._stretch.receive_data(data, seconds=seconds)
        self._see_whether_live()

    def _see_whether_live(self) -> None:
        lane = self._lane
        promised_ns = self._stretch.promised_ns
        if lane.live or not lane.follows or promised_ns is None:
            return
        if promised_ns >= self._stretch.present_ns() - _PRESENT_NS:
            logger.info("%s: caught up, live from now on", lane.name)
            lane.live = True

    async def _wait_for_turn(self) -> None:
        """Wait until bytes are wanted."""
        lane = self._lane
        await self._inlet.flow()
        if self._stretch.suspended:
            return
        if not lane.live:
            await lane.wanted.wait()
        elif self._stretch.follows:
            await self._wait_for_others()

    async def _wait_for_others(self) -> None:
        """Leave to the ring what is far ahead of targets that still read their past."""
        lane = self._lane
        half = self._inlet.config.buffer_bytes // 2
        if self._merge.buffered(lane.index) <= half:
            return
        lane.ahead = True
        lane.wanted.clear()
        self._inlet.wake.set()
        try:
            await lane.wanted.wait()
        finally:
            lane.ahead = False
            self._inlet.listen(lane)

    def _check_end(self) -> None:
        """Tell an end that is as asked from one that is not."""
        lane = self._lane
        if lane.source.trusted and lane.has_header:
            match self._stretch.end:
                case None:
                    raise BrokenStreamError("it ended without its worker saying why")
                case EndReason.SHUTDOWN:
                    raise BrokenStreamError("its worker shut down")
                case EndReason.CAP:
                    raise CappedStreamError(
                        "its worker ended it: a limit of its rules was reached"
                    )
                case _:
                    pass
        self._merge.receive_eof(lane.index)
        if not lane.has_header:
            raise BrokenStreamError("ended before the header of a capture")
        self._stretch.finish()

    def _check_deadline(self) -> None:
        """See whether a stream that outlived its time has brought all of that."""
        lane, stretch = self._lane, self._stretch
        if not lane.has_header:
            self._inlet.fail(lane, BrokenStreamError("no header of a capture came"))
        elif lane.trusted and lane.state is LaneState.OPEN and stretch.end is None:
            duration_ns = self._inlet.config.duration_ns or 0
            promised_ns = stretch.promised_ns or stretch.opened_ns
            if promised_ns < stretch.opened_ns + duration_ns:
                self._lack(promised_ns, silent=self._is_silent())

    def _check_presence(self, *, silent: bool) -> None:
        """See whether a stream was silent, or behind, when the run was ended."""
        lane, stretch = self._lane, self._stretch
        present = lane.live or lane.follows
        listened = not lane.ahead and self._inlet.flows
        if not (lane.trusted and lane.state is LaneState.OPEN and present and listened):
            return
        promised_ns = stretch.promised_ns or stretch.opened_ns
        if lane.live and silent and self._is_silent():
            self._lack(promised_ns, silent=True)
        elif (stretch.behind_ns or 0) > _LONGEST_SILENCE * SECONDS:
            self._lack(promised_ns, silent=False)

    def _is_silent(self) -> bool:
        return self._loop.time() - self._lane.heard >= _LONGEST_SILENCE

    def _lack(self, since_ns: int, *, silent: bool) -> None:
        since = told_time(since_ns, now_ns=self._inlet.clock_ns())
        how = "silent" if silent else "behind"
        self._inlet.fail(
            self._lane, BrokenStreamError(f"{how} at the end: nothing since {since}")
        )

    def _take_arrived(self) -> bool:
        """Hand over what has come and was not read: it is not to be lost.

        Return whether there was any.
        """
        lane = self._lane
        if lane.state is not LaneState.OPEN:
            return False
        taken = False
        try:
            while lane.error is None and (data := lane.source.arrived()):
                taken = True
                self._take(data)
        except DdumpError as exc:
            self._inlet.fail(lane, exc)
        return taken
