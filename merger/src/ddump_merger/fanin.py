"""Brings all targets' bytes to the merge and its records to the sink.

One task per target reads, one moves records on. A worker's live stream is read as it
comes, a file or a window of its ring when the merge waits for it: what a window sends
meanwhile waits in the connection, and its worker is held by TCP, as all are while the
sink is full. The merge is never waited for by polling: bytes, ends and the clock wake
the task that drains it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import (
    BrokenStreamError,
    CorruptError,
    DdumpError,
    PeerError,
    TruncatedError,
)
from ddump_common.units import SECONDS

from .clock import Clock
from .header import choose_link_type, fits, link_type_name
from .lane import Lane, LaneState
from .scan import Scan, catch_up
from .target import HttpTarget
from .window import told_gaps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._merge import Merge
    from .account import Account
    from .config import Config
    from .header import OutputHeader
    from .sink import Sink

__all__ = ["Fanin"]

logger = logging.getLogger(__name__)

# What is given to the sink at a time, to wake its thread less often.
_PUT_BYTES = 1 << 20

# A worker ends a stream of a given duration itself. One that does not know the
# parameter is ended this much later, in seconds, so that no packet is cut off.
_DURATION_GRACE = 2.0


class Fanin:
    """Drives one ``Merge`` from its inputs to its output."""

    def __init__(
        self,
        config: Config,
        merge: Merge,
        lanes: Sequence[Lane],
        sink: Sink,
        header: OutputHeader,
        *,
        ask: Callable[[Lane], Awaitable[Account | None]],
        on_end: Callable[[Lane], None] = lambda _: None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take the parts.

        ``on_end`` is called for each target that ended by itself, ``ask`` asks a worker
        what it says of a window.
        """
        self._config = config
        self._merge = merge
        self._lanes = lanes
        self._sink = sink
        self._header = header
        self._on_end = on_end
        self._ask = ask
        self._clock_ns = clock_ns
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._clock = Clock(
            merge,
            lanes,
            hold_ns=config.hold_ns,
            on_move=self._wake.set,
            now_ns=clock_ns,
        )
        self._flow = asyncio.Event()
        self._flow.set()
        self._interrupted = False
        self._stopping = False
        self._tasks = asyncio.TaskGroup()
        self._readers: list[asyncio.Task[None]] = []
        self._watchers: dict[int, asyncio.Task[None]] = {}
        self._header_written = False
        # Workers send cooked captures: when there is one, nothing is left to decide.
        self._link_type: int | None = None
        if config.http_targets:
            self._start((config.link or Link.SLL).link_type)

    @property
    def interrupted(self) -> bool:
        """Whether ``interrupt`` was called."""
        return self._interrupted

    def interrupt(self) -> None:
        """Read no more; what has arrived still goes out, in order. Idempotent."""
        self._interrupted = True
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for reader in self._readers:
            reader.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Merge until all targets have ended or enough packets went out.

        Cancelling it closes all sources and leaves the sink with what it was given.

        Raises:
            BrokenPipeError, OutputError: as the sink's, in a group.

        """
        try:
            async with self._tasks as tasks:
                watch = tasks.create_task(self._sink.failed(), name="sink")
                for lane in self._lanes:
                    reader = tasks.create_task(
                        self._read(lane), name=f"read {lane.name}"
                    )
                    # Not in the task itself: one that is cancelled may never have begun.
                    reader.add_done_callback(partial(self._end, lane))
                    self._readers.append(reader)
                if self._stopping:
                    self._stop()
                await self._drain()
                self._stop()
                watch.cancel()
        finally:
            self._clock.stop()

    # Input

    async def _read(self, lane: Lane) -> None:
        """Read one target to its end, and tell the merge."""
        try:
            await lane.source.open()
            lane.state = LaneState.OPEN
            lane.heard = self._loop.time()
            logger.info("%s: opened", lane.name)
            self._tell_gaps(lane)
            await (self._read_stream(lane) if lane.live else self._read_wanted(lane))
            self._merge.receive_eof(lane.index)
            if not lane.has_header:
                raise BrokenStreamError("ended before the header of a capture")
        except DdumpError as exc:
            self._fail(lane, exc)
        except asyncio.CancelledError:
            if self._stopping:
                self._take_arrived(lane)
            raise

    async def _read_stream(self, lane: Lane) -> None:
        duration = self._config.duration_ns
        limit = None if duration is None else duration / SECONDS + _DURATION_GRACE
        try:
            async with asyncio.timeout(limit):
                while data := await lane.source.read():
                    lane.heard = self._loop.time()
                    self._receive(lane, data)
                    if not self._flow.is_set():
                        await self._flow.wait()
                    if lane.follows:
                        await self._wait_for_others(lane)
        except TimeoutError:
            self._take_arrived(lane)

    async def _wait_for_others(self, lane: Lane) -> None:
        """Leave to the ring what is far ahead of targets that still read their past."""
        if self._merge.buffered(lane.index) <= self._config.buffer_bytes // 2:
            return
        lane.ahead = True
        lane.wanted.clear()
        self._wake.set()
        try:
            await lane.wanted.wait()
        finally:
            lane.ahead = False
            self._listen(lane)

    async def _read_wanted(self, lane: Lane) -> None:
        """Read a file, or a window until it is a live stream."""
        read: Callable[[], Awaitable[bytes | None]] = lane.source.read
        if isinstance(lane.target, HttpTarget):
            read = Scan(lane, self._ask, timeout_ns=self._config.timeout_ns).read
            if lane.follows:
                self._watch(lane)
        while not lane.live and (data := await read()):
            lane.wanted.clear()
            lane.heard = self._loop.time()
            self._receive(lane, data)
            if not lane.live:
                await lane.wanted.wait()
        if lane.live:
            await self._read_stream(lane)

    def _watch(self, lane: Lane) -> None:
        """Have the lane become live when it has caught up."""

        async def watch() -> None:
            await catch_up(lane, self._ask, pause_ns=self._config.hold_ns)
            logger.info("%s: caught up, live from now on", lane.name)
            lane.live = True
            lane.wanted.set()
            self._listen(lane)

        self._watchers[lane.index] = self._tasks.create_task(
            watch(), name=f"watch {lane.name}"
        )

    def _listen(self, lane: Lane) -> None:
        """Let the lane's silence count from now on."""
        lane.heard = self._loop.time()
        self._clock.start()

    def _tell_gaps(self, lane: Lane) -> None:
        lane.window = lane.source.window
        if lane.window is None:
            return
        told = told_gaps(lane.window, now_ns=self._clock_ns())
        if told:
            logger.error("%s: %s", lane.name, told)

    def _receive(self, lane: Lane, data: bytes) -> None:
        """Hand bytes to the merge.

        Raises:
            FormatError: they are no capture, or cannot become the output's link type.
        """
        try:
            self._merge.receive_data(lane.index, data)
        finally:  # what came before an error counts
            lane.has_header = lane.has_header or self._has_header(lane)
        buffered = self._merge.buffered(lane.index)
        if not lane.has_header and buffered > self._config.buffer_bytes:
            raise CorruptError("the header does not end", offset=0)
        self._clock.start()
        self._wake.set()

    def _has_header(self, lane: Lane) -> bool:
        """Return whether the header has come, and its packets can come out."""
        link_type = self._merge.link_type(lane.index)
        if link_type is None:
            return False
        return self._link_type is None or fits(link_type, self._link_type)

    def _refuse(self, lane: Lane, link_type: int, output: int) -> None:
        """Take a target out of the merge, with all it brought."""
        self._merge.refuse(lane.index)
        lane.has_header = False
        names = f"{link_type_name(link_type)}, the output {link_type_name(output)}"
        self._fail(lane, PeerError(f"its packets have {names}: they cannot be mixed"))
        self._readers[lane.index].cancel()

    def _take_arrived(self, lane: Lane) -> None:
        """Hand over what has come and was not read: it is not to be lost."""
        try:
            while lane.error is None and (data := lane.source.arrived()):
                self._receive(lane, data)
        except DdumpError as exc:
            self._fail(lane, exc)

    def _end(self, lane: Lane, reader: asyncio.Task[None]) -> None:
        """Close the source; the merge waits for it no more."""
        with suppress(TruncatedError):  # said already, or our own doing
            self._merge.receive_eof(lane.index)
        lane.source.close()
        lane.state = LaneState.ENDED
        if lane.index in self._watchers:
            self._watchers.pop(lane.index).cancel()
        self._wake.set()
        if not reader.cancelled():
            self._on_end(lane)

    def _fail(self, lane: Lane, error: DdumpError) -> None:
        """Keep the first reason why a target is missing or cut short, and say it."""
        if lane.error is None:
            lane.error = error
            logger.error("%s: %s", lane.name, error)

    # Output

    async def _drain(self) -> None:
        """Move records from the merge to the sink until nothing comes any more."""
        while True:
            self._wake.clear()
            if self._begin():
                while pieces := self._take_pieces():
                    await self._put(pieces)
            if self._finished():
                return
            if not self._wake.is_set():
                self._want()
                await self._wake.wait()

    def _begin(self) -> bool:
        """Write the header once it is known; return whether packets may follow."""
        if self._header_written:
            return True
        if self._link_type is None:
            self._decide_link_type()
        if self._link_type is None:
            return False
        # Before any target was opened, what was in the output is not to be lost.
        if not any(lane.has_header for lane in self._lanes):
            return False
        self._sink.put(self._header.serialize(self._link_type))
        self._header_written = True
        return True

    def _decide_link_type(self) -> None:
        """Fix the output's link type when all files have shown theirs."""
        if not all(lane.has_header or lane.ended for lane in self._lanes):
            return
        types = {
            lane.index: link_type
            for lane in self._lanes
            if lane.has_header
            and (link_type := self._merge.link_type(lane.index)) is not None
        }
        if not types:
            return
        output = choose_link_type(self._config.link, list(types.values()))
        for index, link_type in types.items():
            if not fits(link_type, output):
                self._refuse(self._lanes[index], link_type, output)
        self._start(output)

    def _start(self, link_type: int) -> None:
        self._link_type = link_type
        self._merge.start(link_type)

    def _finished(self) -> bool:
        if all(lane.ended for lane in self._lanes):
            return True
        return self._header_written and self._merge.done

    def _want(self) -> None:
        """Ask for the bytes that the merge waits for, if nobody reads them unasked."""
        if self._link_type is None:
            for lane in self._lanes:
                if not lane.has_header:
                    lane.wanted.set()
            return
        index = self._merge.lagging()
        if index >= 0:
            self._lanes[index].wanted.set()

    def _take_pieces(self) -> list[bytes]:
        """Return what the merge releases now, up to a size: none at the end."""
        pieces = []
        size = 0
        while size < _PUT_BYTES and (data := self._merge.data_to_send()):
            pieces.append(data)
            size += len(data)
        return pieces

    async def _put(self, pieces: list[bytes]) -> None:
        """Give data to the sink; while that is full, nobody reads."""
        self._sink.put(*pieces)
        if not self._sink.full:
            return
        self._flow.clear()
        self._clock.pause()
        try:
            await self._sink.room()
        finally:
            self._flow.set()
            self._clock.resume()
