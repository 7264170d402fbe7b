"""A ring that a test writes, packet by packet and flush by flush, as a recorder would."""

from __future__ import annotations

import asyncio
import time

from ddump_worker.ring import Ring, RingOptions
from ddump_worker.share import Share
from ddump_worker.tail import Tail
from support.captures import Cooked, Record, pcap_record

MB = 1_000_000
SECOND = 10**9


def options(path, **given) -> RingOptions:
    """Return options of a small ring that leaves nothing of the disk free."""
    return RingOptions(
        **{
            "directory": path / "ring",
            "size": 8 * MB,
            "segment_size": MB,
            "reserve": Share(),
        }
        | given
    )


class RingWriter:
    """A ring and its growing end; what it does is done on a thread.

    ``now_ns`` is the recorder's clock: it goes on with what is written.
    """

    def __init__(self, path, *, begin=True, **given) -> None:
        self.now_ns = self.begin_ns = time.time_ns() // SECOND * SECOND - 100 * SECOND
        self.ring = Ring(options(path, **given))
        self._tail: Tail | None = None
        self._number = 0
        self._names = {}
        if begin:
            self.begin()

    def begin(self) -> None:
        """Make the first segment."""
        self._tail = Tail(self.ring, now_ns=self.now_ns, names=lambda: self._names)
        self.ring.state = "recording"

    def record(self, timestamp_ns, *, size=200, port=9, ifindex=2) -> Record:
        """Return a packet that is unlike all others."""
        self._number += 1
        udp = (
            b"\x45" + bytes(8) + b"\x11" + bytes(10)
            + b"\x00\x09" + port.to_bytes(2, "big") + bytes(4)
            + self._number.to_bytes(8, "big").ljust(size, b"x")
        )  # fmt: skip
        cooked = Cooked(payload=udp, ifindex=ifindex)
        is_sll2 = self.ring.options.link == "sll2"
        return Record(timestamp_ns, cooked.sll2() if is_sll2 else cooked.sll())

    async def write(self, *stamps, flush=True, **given) -> list[Record]:
        """Record a packet for each time, and say that all until the last is there.

        Without times, one now and one 1 ms later.
        """
        stamps = stamps or (self.now_ns, self.now_ns + SECOND // 1000)
        records = [self.record(stamp, **given) for stamp in stamps]
        await self.put(records)
        if flush:
            await self.flush(max(self.now_ns, *stamps) + 1)
        return records

    async def put(self, records) -> None:
        """Record packets in one batch."""
        batch = b"".join(pcap_record(each, nano=True) for each in records)
        await asyncio.to_thread(self._put, batch, len(records))

    def _put(self, batch: bytes, packets: int) -> None:
        if not self._tail.fits(batch):
            self._tail.rotate(self.now_ns)
        self._tail.append(batch, packets)
        self.ring.notify()

    async def flush(self, now_ns=None) -> None:
        """Let the recorder's clock be there, and all before it be recorded."""
        self.now_ns = self.now_ns if now_ns is None else now_ns
        await asyncio.to_thread(self._flush)

    def _flush(self) -> None:
        self._tail.flush(self.now_ns)
        self.ring.notify()

    async def rotate(self, segments=1) -> None:
        """Begin new segments."""
        for _ in range(segments):
            await asyncio.to_thread(self._tail.rotate, self.now_ns)
            self.ring.notify()

    async def fill(self, segments) -> list[Record]:
        """Fill segments, in steps of a millisecond."""
        records = []
        for _ in range(segments):
            for _ in range(4):
                now = self.now_ns
                records += await self.write(now, now + SECOND // 1000, size=120_000)
            await self.rotate()
        return records

    async def drop(self, packets) -> None:
        """Let the kernel drop some."""
        now = self.now_ns
        await asyncio.to_thread(
            self._tail.count_dropped, packets, since_ns=now, until_ns=now
        )

    async def name(self, names) -> None:
        """Let the host's interfaces be these, by index."""
        self._names = names
        await asyncio.to_thread(self._tail.refresh)

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close(self.now_ns)
        self.ring.close()
