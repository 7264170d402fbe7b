"""Live captures on the event loop.

A handle never blocks once it is open. Its descriptor is not watched by the loop while
packets wait for the client: a full ring stays readable, and that would turn the loop
for nothing. Opening and closing block, and run
on a small executor.

A packet waits in the kernel until its block is full or ``RETIRE_MS`` old; older
kernels may need one more turn, hence ``_GRACE_SECONDS`` before a stream is idle.

How far the reading goes, and when a stream that is to end has all, is told by the
kernel's own count (``progress.py``), and not by the clock and these times: a block may
be closed late, and this process may sleep.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ddump_common.errors import CaptureError
from ddump_common.note import EndReason
from ddump_common.pcap import Precision
from ddump_common.units import MEBIBYTES, SECONDS

from ._pcap import Capture
from .progress import IN_FLIGHT_NS, PATIENCE_SECONDS, Progress
from .source import Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from ddump_common.api import CaptureQuery

    from .capacity import Capacity, Lease

__all__ = [
    "BATCH_BYTES",
    "DEFAULT_BUFFER_SIZE",
    "Captures",
    "Handle",
    "LiveCapture",
    "Opened",
    "open_handle",
    "ring_bytes",
]

RETIRE_MS = 50
_GRACE_SECONDS = 0.12

BATCH_BYTES = 256 << 10
"""How much is read and sent at a time; it stays in the processor's cache."""

DEFAULT_BUFFER_SIZE = 32 * MEBIBYTES
"""Of the kernel's ring: 0.3 s of 10 Gbit/s, no drop at 345 kpps measured."""

# libpcap's blocks hold the largest packet that there is. With one block only, the
# kernel drops whatever arrives while that is being read.
_BLOCK_BYTES = 256 << 10
_THREADS = 4


class Handle(Protocol):
    """What a live capture needs of ``_pcap.Capture``."""

    @property
    def packets(self) -> int:
        """How many packets were delivered."""

    @property
    def data_bytes(self) -> int:
        """How many bytes of packet data were delivered."""

    @property
    def more(self) -> bool:
        """Whether the last batch ended before the ring was empty."""

    @property
    def finished(self) -> bool:
        """Whether a limit is reached."""

    def read_batch(self, target: int) -> bytes:
        """Return the records that wait, about ``target`` bytes of them."""

    def stop(self) -> None:
        """Deliver no packet that arrives from now on."""

    def undelivered(self) -> int:
        """Return how many packets wait in the ring."""

    def statistics(self) -> tuple[int, int, int]:
        """Return the packets received, dropped by the kernel, by interfaces."""

    def fileno(self) -> int:
        """Return the descriptor that is readable while records wait."""


def ring_bytes(descriptor: int) -> int:
    """Return the bytes of the ring that the kernel granted to a capture socket.

    Raises:
        CaptureError: the socket has none.

    """
    label = f"socket:[{os.fstat(descriptor).st_ino}]"
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(label):
            begin, _, end = line.partition(" ")[0].partition("-")
            return int(end, 16) - int(begin, 16)
    raise CaptureError("the kernel granted no ring to the capture")


class Opened(NamedTuple):
    """A handle, the bytes of its ring, and when it began to capture.

    It has everything from ``started_ns`` on, and nothing that arrived before
    ``program_ns``, when its program was about to be set.
    """

    handle: Capture
    granted: int
    program_ns: int
    started_ns: int


def open_handle(
    program: bytes,
    *,
    link_type: int,
    snaplen: int,
    buffer_size: int,
    nano: bool = False,
    pcapng: bool = False,
    packet_limit: int | None = None,
    byte_limit: int | None = None,
) -> Opened:
    """Return a handle that captures what ``program`` accepts.

    This blocks for up to a quarter of a second.

    Raises:
        CaptureError: this host cannot capture like that.

    """
    handle = Capture(
        "any",
        link_type=link_type,
        snaplen=snaplen,
        buffer_size=buffer_size,
        timeout_ms=RETIRE_MS,
        nano=nano,
        pcapng=pcapng,
        packet_limit=packet_limit,
        byte_limit=byte_limit,
    )
    try:
        granted = ring_bytes(handle.fileno())
        _check_ring(granted)
        program_ns = time.time_ns()
        handle.set_program(program)
        started_ns = time.time_ns()
    except BaseException:
        handle.close()
        raise
    return Opened(handle, granted, program_ns, started_ns)


def _check_ring(granted: int) -> None:
    if granted < 2 * _BLOCK_BYTES:
        raise CaptureError(
            f"the kernel granted a ring of {granted} bytes, too little to capture",
            hint="the host is short of memory",
        )


class Captures:
    """Opens and closes handles on threads, within the worker's capacity."""

    def __init__(self, *, capacity: Capacity, buffer_size: int) -> None:
        self.capacity = capacity
        self.buffer_size = buffer_size
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="capture")
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Refuse what ``open`` would refuse at this moment for want of capacity."""
        self.capacity.check(self.buffer_size)

    async def open(
        self, query: CaptureQuery, program: bytes, *, pcapng: bool = False
    ) -> LiveCapture:
        """Open a handle that delivers what ``program`` accepts from now on.

        With ``pcapng`` its records are blocks of that, in nanoseconds.

        Cancelling is safe: a handle that comes open all the same is closed again.

        Raises:
            ExhaustedError: too many streams, too much memory.
            CaptureError: the host cannot capture like that.

        """
        lease = self.capacity.lease(self.buffer_size)
        opening = self._executor.submit(
            open_handle,
            program,
            link_type=query.link.link_type,
            snaplen=query.snaplen,
            buffer_size=self.buffer_size,
            nano=query.precision is Precision.NANO,
            pcapng=pcapng,
            packet_limit=query.packets,
            byte_limit=query.bytes,
        )
        try:
            opened = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(partial(self._abandon, lease))
            raise
        except BaseException:
            lease.release()
            raise
        lease.memory = opened.granted
        return LiveCapture(
            opened.handle,
            query=query,
            granted=opened.granted,
            started_ns=opened.started_ns,
            promised_ns=opened.program_ns - IN_FLIGHT_NS,
            on_close=partial(self._close, opened.handle, lease),
        )

    def _abandon(self, lease: Lease, opening: Future[Opened]) -> None:
        # In the thread that opened the handle, unless that had just been done.
        if not opening.cancelled() and opening.exception() is None:
            opening.result().handle.close()
        self._loop.call_soon_threadsafe(lease.release)

    def _close(self, handle: Capture, lease: Lease) -> None:
        # The lease ends when the ring's memory is free again, not before.
        self._executor.submit(handle.close).add_done_callback(
            lambda _: self._loop.call_soon_threadsafe(lease.release)
        )

    async def shutdown(self) -> None:
        """Wait until all handles that were to be closed are."""
        await asyncio.to_thread(self._executor.shutdown)


class LiveCapture(Source):
    """One open capture, read in whole batches of records.

    ``granted`` is the size of its ring. Counters stay when it is closed. Nothing is
    skipped, and it has no position: those are a window's.
    """

    skipped: Final = 0
    position_ns: Final = None

    def __init__(
        self,
        handle: Handle,
        *,
        query: CaptureQuery,
        granted: int,
        started_ns: int,
        promised_ns: int,
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(query, started_ns=started_ns, promised_ns=promised_ns)
        self.granted = granted
        self._handle = handle
        self._on_close = on_close
        self._waiter: asyncio.Future[None] | None = None
        self._watched = False
        self._received = 0
        self._dropped = 0
        self._undelivered = 0
        self._progress = Progress()

    @property
    def packets(self) -> int:
        """How many packets were delivered."""
        return self._handle.packets

    @property
    def data_bytes(self) -> int:
        """How many bytes of packet data were delivered."""
        return self._handle.data_bytes

    @property
    def received(self) -> int:
        """How many packets the kernel took for it, with those dropped, when last asked."""
        return self._received

    @property
    def dropped(self) -> int:
        """How many packets the kernel dropped as the ring was full, when last asked."""
        return self._dropped

    @property
    def undelivered(self) -> int:
        """How many packets were captured, and stay in the ring at its end."""
        return self._undelivered

    def refresh(self) -> None:
        """Ask the kernel for its counters. To be done at least every few minutes."""
        if not self._closed:
            self._received, self._dropped, _ = self._handle.statistics()

    def _stop(self) -> None:
        self._handle.stop()
        self._wake()

    async def _deliver(self, send: Callable[[bytes], Awaitable[None]]) -> EndReason:
        reason = await self._run(send)
        if reason is EndReason.IDLE:
            self._handle.stop()
        await self._drain(send)
        if isinstance(reason, CaptureError):
            raise reason
        return reason

    async def _run(
        self, send: Callable[[bytes], Awaitable[None]]
    ) -> EndReason | CaptureError:
        handle = self._handle
        idle_seconds = self._idle_seconds()
        last = self._loop.time()
        while self._reason is None:
            began = self._loop.time()
            batch = handle.read_batch(BATCH_BYTES)
            is_last = handle.finished
            if batch:
                await send(batch)
                last = self._loop.time()
            if is_last:
                return self._limit()
            await self._beat_after(send, began)
            if handle.more:
                await asyncio.sleep(0)  # the others' turn
            elif self._loop.time() >= last + idle_seconds:
                return EndReason.IDLE
            elif self._reason is None:
                await self._readable(min(last + idle_seconds, self._due))
        return self._reason

    def _idle_seconds(self) -> float:
        idle_ns = self._query.idle_ns
        # A packet that has come may still be hidden in an open block.
        return math.inf if idle_ns is None else idle_ns / SECONDS + _GRACE_SECONDS

    async def _beat_after(
        self, send: Callable[[bytes], Awaitable[None]], began: float
    ) -> None:
        """Send the heartbeat if it is due, after a read at ``began`` that was sent."""
        if self._heartbeat is None:
            return
        complete_ns = self._progress.observe(
            self._handle, began=began, clock=time.time_ns
        )
        if complete_ns is not None:
            self._heartbeat.promise(complete_ns)
        await self._beat(send)

    async def _drain(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        handle = self._handle
        end = self._loop.time() + PATIENCE_SECONDS
        while self._progress.missing(handle.undelivered()):
            began = self._loop.time()
            batch = handle.read_batch(BATCH_BYTES)
            if batch:
                await send(batch)
            await self._beat_after(send, began)
            if batch:
                continue
            if handle.more:
                await asyncio.sleep(0)
            elif began < end:
                await self._readable(min(end, self._due))
            else:
                break
        self._undelivered = self._progress.missing(handle.undelivered())

    async def _readable(self, deadline: float) -> None:
        self._waiter = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self._handle.fileno(), self._on_readable)
            self._watched = True
        timer = (
            None if deadline == math.inf else self._loop.call_at(deadline, self._wake)
        )
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _on_readable(self) -> None:
        # The descriptor stays watched from one batch to the next, and is given up when
        # packets come while the client still has to take the last one.
        if self._waiter is None:
            self._unwatch()
        self._wake()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._handle.fileno())
            self._watched = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Have the handle closed on a thread; again is harmless."""
        if not self._closed:
            self._closed = True
            self._unwatch()
            try:
                self._undelivered = self._progress.missing(self._handle.undelivered())
            finally:
                self._on_close()
