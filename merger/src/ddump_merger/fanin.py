"""Drains the merge: what the readers brought to it goes on to the sink, in order.

One task per target reads (``reader.py``), through what they share (``inlet.py``); one
moves records on, here. The merge is never waited for by polling: bytes, ends and the
clock wake the task that drains it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import PeerError, TruncatedError

from .header import choose_link_type, fits, link_type_name
from .inlet import Inlet
from .interfaces import Interfaces
from .lane import LaneState
from .reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._merge import Merge
    from .config import Config
    from .header import OutputHeader
    from .lane import Lane
    from .reconnect import Peer
    from .sink import Sink

__all__ = ["Fanin"]

# What is given to the sink at a time, to wake its thread less often.
_PUT_BYTES = 1 << 20


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
        peers: Mapping[int, Peer],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take the parts; ``peers`` are the workers of those lanes that have one."""
        self._config = config
        self._merge = merge
        self._lanes = lanes
        self._sink = sink
        self._header = header
        self._clock_ns = clock_ns
        self._inlet = Inlet(config, merge, lanes, on_loss=self._stop, clock_ns=clock_ns)
        self._readers = [
            Reader(lane, self._inlet, peers.get(lane.index)) for lane in lanes
        ]
        self._reading: list[asyncio.Task[None]] = []
        self._interrupted = False
        self._interfaces: Interfaces | None = None
        self._header_written = False
        # Workers send cooked captures: when there is one, nothing is left to decide.
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
        self._inlet.stop()
        for reading in self._reading:
            reading.cancel()

    async def run(self) -> None:
        """Merge until all targets have ended or enough packets went out.

        Cancelling it closes all sources and leaves the sink with what it was given.

        Raises:
            BrokenPipeError, OutputError: as the sink's, in a group.

        """
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._sink.failed(), name="sink")
                for lane, reader in zip(self._lanes, self._readers, strict=True):
                    reading = tasks.create_task(reader.run(), name=f"read {lane.name}")
                    # Not in the task itself: one that is cancelled may never have begun.
                    reading.add_done_callback(partial(self._end, lane))
                    self._reading.append(reading)
                if self._inlet.stopping:
                    self._stop()
                await self._drain()
                self._stop()
                watch.cancel()
        finally:
            self._inlet.close()
        for reader in self._readers:
            reader.settle()
        self._close_output()

    # Input

    def _refuse(self, lane: Lane, link_type: int, output: int) -> None:
        """Take a target out of the merge, with all it brought."""
        self._merge.refuse(lane.index)
        lane.has_header = False
        names = f"{link_type_name(link_type)}, the output {link_type_name(output)}"
        self._inlet.fail(
            lane, PeerError(f"its packets have {names}: they cannot be mixed")
        )
        self._reading[lane.index].cancel()

    def _end(self, lane: Lane, _: asyncio.Task[None]) -> None:
        """Close the source; the merge waits for it no more."""
        with suppress(TruncatedError):  # said already, or our own doing
            self._merge.receive_eof(lane.index)
        lane.source.close()
        lane.state = LaneState.ENDED
        self._inlet.wake.set()

    # Output

    async def _drain(self) -> None:
        """Move records from the merge to the sink until nothing comes any more."""
        while True:
            self._inlet.wake.clear()
            if self._begin():
                while pieces := self._take_pieces():
                    await self._put(pieces)
                self._see_late()
            if self._finished():
                return
            if not self._inlet.wake.is_set():
                self._want()
                await self._inlet.wake.wait()

    def _begin(self) -> bool:
        """Write the header once it is known; return whether packets may follow."""
        if self._header_written:
            return True
        if self._inlet.link_type is None:
            self._decide_link_type()
        if self._inlet.link_type is None:
            return False
        # Before any target was opened, what was in the output is not to be lost.
        if not any(lane.has_header for lane in self._lanes):
            return False
        self._sink.put(self._header.serialize(self._inlet.link_type))
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
        self._inlet.link_type = link_type
        self._merge.start(link_type)
        if self._config.pcapng:
            self._interfaces = Interfaces(
                link_type=link_type,
                precision=self._header.precision,
                per_interface=self._config.link is Link.SLL2,
            )

    def _finished(self) -> bool:
        if all(lane.ended for lane in self._lanes):
            return True
        if not (self._header_written and self._merge.done):
            return False
        # Where all inputs have ended, one that broke may go on all the same.
        broken = any(lane.state is LaneState.BROKEN for lane in self._lanes)
        return not broken or self._has_enough()

    def _has_enough(self) -> bool:
        packets = sum(self._merge.counters(lane.index).packets for lane in self._lanes)
        return 0 < self._config.count <= packets

    def _want(self) -> None:
        """Ask for the bytes that the merge waits for, if nobody reads them unasked."""
        if self._inlet.link_type is None:
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
        while size < _PUT_BYTES:
            data = self._merge.data_to_send() or self._describe()
            if not data:
                break
            pieces.append(data)
            size += len(data)
        return pieces

    def _describe(self) -> bytes:
        """Return the description of the interface that the next record is of, if it is due."""
        due = self._merge.undescribed()
        if due is None or self._interfaces is None:
            return b""
        i, index = due
        block, number = self._interfaces.describe(self._lanes[i], index)
        self._merge.describe(i, index, number)
        return block

    def _close_output(self) -> None:
        """Write what the output ends with."""
        if self._header_written and self._interfaces is not None:
            self._sink.put(
                self._interfaces.closing(
                    self._lanes, self._merge.counters, now_ns=self._clock_ns()
                )
            )

    def _see_late(self) -> None:
        """End the run at a late packet, if a first loss ends it."""
        if not self._config.fail_fast:
            return
        for lane in self._lanes:
            if late := self._merge.counters(lane.index).late:
                self._inlet.lose(lane, f"late packets: {late}")

    async def _put(self, pieces: list[bytes]) -> None:
        """Give data to the sink; while that is full, nobody reads."""
        self._sink.put(*pieces)
        if not self._sink.full:
            return
        self._inlet.pause()
        try:
            await self._sink.room()
        finally:
            self._inlet.go_on()
