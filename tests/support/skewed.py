"""Run the real worker on a host whose clock is wrong: ``skewed.py NANOSECONDS OPTION...``

The kernel stamps packets by the real clock whatever libfaketime or a time namespace
says, so both that the worker reads are shifted here: the wall clock, and the time of
each record as it comes from the kernel, live and for the ring.
"""

from __future__ import annotations

import struct
import sys
import time

SECOND = 10**9
_ENHANCED_PACKET = 6


def shifted_pcap(batch: bytes, offset_ns: int) -> bytes:
    """Return nanosecond records of classic pcap with other times."""
    data = bytearray(batch)
    at = 0
    while at < len(data):
        seconds, fraction, size = struct.unpack_from("=III", data, at)
        stamp_ns = seconds * SECOND + fraction + offset_ns
        struct.pack_into("=II", data, at, *divmod(stamp_ns, SECOND))
        at += 16 + size
    return bytes(data)


def shifted_pcapng(batch: bytes, offset_ns: int) -> bytes:
    """Return enhanced packet blocks in nanoseconds with other times."""
    data = bytearray(batch)
    at = 0
    while at < len(data):
        kind, size, _, high, low = struct.unpack_from("=IIIII", data, at)
        assert kind == _ENHANCED_PACKET
        stamp_ns = (high << 32 | low) + offset_ns
        struct.pack_into("=II", data, at + 12, stamp_ns >> 32, stamp_ns & 0xFFFFFFFF)
        at += size
    return bytes(data)


def shift(offset_ns: int) -> None:
    """Have all of the worker that is imported from now on live by another clock."""
    real_ns = time.time_ns
    time.time_ns = lambda: real_ns() + offset_ns

    from ddump_worker import _pcap

    class Capture(_pcap.Capture):
        def __init__(self, *_, pcapng: bool = False, nano: bool = False, **__) -> None:
            assert pcapng or nano, "only times in nanoseconds are shifted"
            self._shifted = shifted_pcapng if pcapng else shifted_pcap

        def read_batch(self, target: int) -> bytes:
            return self._shifted(super().read_batch(target), offset_ns)

    _pcap.Capture = Capture


if __name__ == "__main__":
    shift(int(sys.argv.pop(1)))
    from ddump_worker.cli import main

    main()
