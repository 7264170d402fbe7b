"""One pull of a window of the ring.

First what the ring has of the window, in time order; with ``follow`` then what was
recorded after that moment, in order of arrival, segment by segment. Both are read in
slices, on threads of an executor that all pulls share: one slice at a time for each
pull, and none while its client has not taken the last one, so that pulls take turns
and none has more than one slice in memory.

What a pull still has to read is pinned, and each segment let go as soon as it is
passed. When more is pinned than the ring may keep, bytes are gone before they are
reached: their packets are counted as skipped. So are those of a segment whose file is
damaged, from where that is met on, and the ring forgets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ddump_common.errors import CaptureError
from ddump_common.note import EndReason
from ddump_common.pcap import PcapHeader, Precision
from ddump_common.units import SECONDS

from ._ring import Cutter, UnreadableError
from .segment import RevokedError
from .source import Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor

    from ddump_common.api import RingQuery

    from .drops import Drops
    from .ring import Pins, Ring
    from .segment import Segment

__all__ = ["Bounds", "Pull"]

SLICE_BYTES = 512 << 10

# What the process lacks when a file cannot be opened: no fault of the file.
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_NO_END = (1 << 63) - 1

# A packet reaches the ring within 300 ms.
_GRACE_SECONDS = 0.4


class Bounds(NamedTuple):
    """The timestamps of a window: from ``since_ns`` on, and before ``until_ns``."""

    since_ns: int
    until_ns: int


class _Place(NamedTuple):
    """A place in the ring, in order of arrival."""

    number: int
    offset: int


class Pull(Source):
    """What one client gets of the ring; ``packets`` and ``data_bytes`` are sent.

    It pins what it needs when it is made, on the event loop, and has to be closed.
    Counters are as of the last slice, and stay when it is closed.
    """

    granted = 0
    undelivered = 0
    received: Final = None
    packets = 0
    data_bytes = 0

    def __init__(
        self,
        query: RingQuery,
        *,
        ring: Ring,
        bounds: Bounds,
        program: bytes,
        pcapng: bool = False,
        executor: Executor,
        on_close: Callable[[Pull], None],
    ) -> None:
        super().__init__(query, started_ns=time.time_ns(), promised_ns=bounds.since_ns)
        self._gone = 0
        self._ended = False
        self.position_ns: int | None = None
        self._follows = query.follow
        self._ring = ring
        self._executor = executor
        self._on_close = on_close
        self._stopped_ns = 0
        self._stop_deadline = math.inf
        self._news = asyncio.Event()
        self._bounds = bounds
        self._cutter = Cutter(
            program=program,
            link_type=ring.options.link.link_type,
            output_link_type=query.link.link_type,
            snaplen=query.snaplen,
            nano=query.precision is Precision.NANO,
            pcapng=pcapng,
            since_ns=bounds.since_ns,
            until_ns=bounds.until_ns,
            packet_limit=query.packets,
            byte_limit=query.bytes,
        )
        self._pins: dict[int, Pins] = {}
        self._held: dict[int, Segment] = {}
        # Those of them that something is missing from, or may be.
        self._lossy: dict[int, Segment] = {}
        self._passed_drops = 0
        self._passed_lost = 0
        # In this order: what is flushed by then is in what is looked at.
        self._window_ns = ring.flushed_ns if query.follow else bounds.until_ns
        sizes = [(each, each.index.committed) for each in ring.segments()]
        self._parts = [
            (segment, size)
            for segment, size in sizes
            if segment.index.overlaps(bounds.since_ns, bounds.until_ns)
        ]
        self._needed = list(range(len(self._parts)))
        self._added = False
        self._later: deque[Segment] = deque()
        self._offset = PcapHeader.SIZE
        self._known = sizes[-1][0].number if sizes else 0
        # Where it ends, once that is known; and a place, and until when all is before it.
        self._goal: _Place | None = None
        self._mark: tuple[_Place, int] | None = None
        needed = {segment.number: segment for segment, _ in self._parts}
        if query.follow and sizes:
            last, self._offset = sizes[-1]
            self._later.append(last)
            needed[last.number] = last
        self._hold(needed.values())

    @property
    def skipped(self) -> int:
        """How many packets are missing: gone, unreadable, or never taken by the disk.

        Of the last, how many at most were in the window, as far as it is promised.
        """
        lost = sum(self._count(each.losses) for each in self._lossy.values())
        return self._cutter.skipped + self._gone + self._passed_lost + lost

    @property
    def dropped(self) -> int:
        """How many packets at most the kernel dropped in the window, as far as it is promised.

        So whoever asks for the rest from there on is told of the others.
        """
        held = sum(self._count(each.drops) for each in self._lossy.values())
        return self._passed_drops + held

    def _count(self, drops: Drops) -> int:
        if self._ended:
            return drops.within(*self._bounds)
        return drops.before(self._bounds.since_ns, self.position_ns or 0)

    def refresh(self) -> None:
        """Do nothing: the counters come with the slices."""

    def _stop(self) -> None:
        self._stopped_ns = time.time_ns()
        self._stop_deadline = self._loop.time() + _GRACE_SECONDS
        self._news.set()

    def notice(self) -> None:
        """Take note of what was recorded; on the event loop, whatever the client does."""
        if self._follows and not self._closed:
            self._look_ahead()
            self._news.set()

    def _note_segments(self) -> None:
        segments = self._ring.segments()
        if segments and segments[-1].number > self._known:
            new = [each for each in segments if each.number > self._known]
            self._known = new[-1].number
            self._later.extend(new)
            self._hold(new)
            self._forget_what_is_gone()

    def _forget_what_is_gone(self) -> None:
        # A client may stall for days: what it has lost is a number, not a list. The
        # first may be in a thread's hands.
        for segment in list(self._later)[1:]:
            if segment.revoked:
                self._later.remove(segment)
                self._gone += segment.index.packets
                self._let_go(segment)

    def _hold(self, segments: Iterable[Segment]) -> None:
        held = list(segments)
        pins = self._ring.pin(held)
        for each in held:
            self._held[each.number] = each
            if not each.closed or each.drops.total or each.losses.total:
                self._lossy[each.number] = each
            self._pins[each.number] = pins

    def _let_go(self, segment: Segment) -> None:
        # In a thread: who lets go of a file last frees what it had on the disk.
        self._passed_drops += segment.drops.within(*self._bounds)
        self._passed_lost += segment.losses.within(*self._bounds)
        del self._held[segment.number]
        self._lossy.pop(segment.number, None)
        self._executor.submit(self._pins.pop(segment.number).release, segment)

    async def _deliver(self, send: Callable[[bytes], Awaitable[None]]) -> EndReason:
        reason = await self._deliver_window(send) or await self._deliver_later(send)
        self._ended = True
        return reason

    async def _deliver_window(
        self, send: Callable[[bytes], Awaitable[None]]
    ) -> EndReason | None:
        """Return ``None`` when what comes later is wanted as well."""
        # Of what is followed the time is that of its end: all before it is sent.
        while self._follows or self._reason is not EndReason.DURATION:
            data = await self._read(self._cut, send)
            position_ns = min(self._cutter.position_ns, self._window_ns)
            self._let_go_of_parts()
            if data:
                await send(data)
            self._advance(position_ns)
            if self._cutter.finished:
                return self._limit()
            if self._cutter.exhausted:
                return None if self._follows else EndReason.COMPLETE
            # Time is no measure of the past: who breaks off here goes on from here.
            await self._beat(send, at_once=bool(data))
        return EndReason.DURATION

    async def _deliver_later(
        self, send: Callable[[bytes], Awaitable[None]]
    ) -> EndReason:
        idle_ns = self._query.idle_ns
        idle_seconds = math.inf if idle_ns is None else idle_ns / SECONDS
        last = self._loop.time()
        while True:
            self._news.clear()
            self._look_ahead()
            data = await self._read_on(send)
            if data:
                await send(data)
                last = self._loop.time()
            if self._cutter.finished:
                return self._limit()
            if (reason := self._look_back()) is not None:
                return reason
            await self._beat(send)
            if self._is_behind():
                continue
            idle_deadline = last + idle_seconds + _GRACE_SECONDS
            if self._loop.time() >= idle_deadline:
                return EndReason.IDLE
            await self._wait(min(idle_deadline, self._stop_deadline, self._due))

    def _look_ahead(self) -> None:
        """See how far the ring goes, until it goes as far as is to be sent."""
        if self._goal is not None:
            return
        # First of all: what is flushed by then is in what is looked at after it.
        flushed_ns = self._ring.flushed_ns
        end = self._end_place()
        if self._mark is None:
            self._mark = end, flushed_ns
        if self._is_due(flushed_ns):
            self._goal = end

    def _is_due(self, flushed_ns: int) -> bool:
        """Whether all that is to be sent is recorded."""
        return flushed_ns >= self._bounds.until_ns or (
            self._reason is not None
            and (
                flushed_ns >= self._stopped_ns
                or self._loop.time() >= self._stop_deadline
            )
        )

    def _look_back(self) -> EndReason | None:
        """See how far what was sent goes; return why that is all, if it is."""
        if self._mark is not None and self._has_reached(self._mark[0]):
            self._advance(self._mark[1])
            self._mark = None
        if self._goal is None or not self._has_reached(self._goal):
            return None
        if isinstance(self._reason, CaptureError):
            raise self._reason
        return self._reason or EndReason.COMPLETE

    def _end_place(self) -> _Place:
        """Return where the ring ends now."""
        self._note_segments()
        return _Place(
            self._known, self._later[-1].index.committed if self._later else 0
        )

    def _has_reached(self, place: _Place) -> bool:
        if not self._later:
            return self._goal is not None or place.number == 0
        return _Place(self._later[0].number, self._offset) >= place

    def _is_behind(self) -> bool:
        return len(self._later) > 1 or (
            bool(self._later) and self._offset < self._later[0].index.committed
        )

    async def _wait(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                await self._news.wait()

    def _advance(self, position_ns: int) -> None:
        self.position_ns = position_ns
        if self._heartbeat is not None:
            self._heartbeat.promise(position_ns)

    async def _read(
        self, work: Callable[[], bytes], send: Callable[[bytes], Awaitable[None]]
    ) -> bytes:
        """Do ``work`` in a thread, which may have to wait its turn or for the disk."""
        reading = self._loop.run_in_executor(self._executor, work)
        try:
            while not reading.done() and self._heartbeat is not None:
                await asyncio.wait([reading], timeout=self._due - self._loop.time())
                await self._beat(send)
            data = await reading
        finally:
            reading.cancel()
        self.packets = self._cutter.packets
        self.data_bytes = self._cutter.data_bytes
        return data

    def _let_go_of_parts(self) -> None:
        needed = [part for part in self._needed if self._cutter.needs(part)]
        for part in set(self._needed).difference(needed):
            segment, _ = self._parts[part]
            if segment not in self._later:  # that one is followed
                self._let_go(segment)
        self._needed = needed

    async def _read_on(self, send: Callable[[bytes], Awaitable[None]]) -> bytes:
        if not self._later:
            return b""
        segment = self._later[0]
        # Before what it has is looked at: with one after it, it gets no more.
        is_complete = len(self._later) > 1 or (
            self._goal is not None and self._goal.number > segment.number
        )
        data = await self._read(partial(self._follow, segment), send)
        if is_complete and self._offset == segment.index.committed:
            self._later.popleft()
            self._offset = PcapHeader.SIZE
            self._let_go(segment)
        return data

    def _cut(self) -> bytes:
        # In a thread of the executor.
        if not self._added:
            self._added = True
            for segment, size in self._parts:
                self._cutter.add(segment.index, size)
        with contextlib.ExitStack() as stack:
            try:
                return self._cutter.cut(
                    lambda part: self._descriptor(self._parts[part][0], stack),
                    SLICE_BYTES,
                )
            except UnreadableError as exc:
                # The next slice skips it.
                segment, _ = self._parts[exc.part]
                self._ring.forget(segment, exc.message)
                return b""

    def _follow(self, segment: Segment) -> bytes:
        # In a thread of the executor.
        goal = self._goal
        end = _NO_END
        if goal is not None and goal.number == segment.number:
            # What was sent may have gone further before that was known.
            end = max(goal.offset, self._offset)
        with contextlib.ExitStack() as stack:
            descriptor = self._descriptor(segment, stack)
            try:
                data, self._offset = self._cutter.follow(
                    descriptor, segment.index, self._offset, SLICE_BYTES, end=end
                )
            except UnreadableError as exc:
                self._ring.forget(segment, exc.message)
                return b""
            return data

    def _descriptor(self, segment: Segment, stack: contextlib.ExitStack) -> int:
        """Return what to read ``segment`` by until ``stack`` ends; -1 if it is gone."""
        try:
            return stack.enter_context(segment.lease())
        except RevokedError:
            return -1
        except OSError as exc:
            words = exc.strerror or str(exc)
            if exc.errno in _SHORT_OF:
                raise CaptureError(f"cannot open {segment.name}: {words}") from exc
            self._ring.forget(segment, words)
            return -1

    def close(self) -> None:
        """Let go of all that is pinned, on a thread; again is harmless."""
        if not self._closed:
            self._closed = True
            self._on_close(self)
            for pins in set(self._pins.values()):
                self._executor.submit(pins.close)
