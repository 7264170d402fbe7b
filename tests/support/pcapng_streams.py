"""A worker's pcapng stream, read as it comes, and judged by what it promised.

It is slow and obvious, and independent of the kernels. ``receive_data`` raises
AssertionError for what a stream must not have: a block that is not whole or not known,
padding that is not zero, a record from before an earlier promise, a promise that goes
back, a count of delivered packets that is not theirs, anything after the last block.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field

from ddump_common.note import EndReason, StreamNote
from support.captures import Record

__all__ = ["Beat", "Interface", "PcapngStream", "read_stream"]

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The stream's interface block; texts that are missing are empty."""

    link_type: int
    snaplen: int
    name: str
    filter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A statistics block: what it says, how many packets came before it, and when it
    was read, in seconds of the steady clock."""

    time_ns: int
    started_ns: int | None
    ended_ns: int | None
    received: int | None
    interface_dropped: int | None
    dropped: int | None
    delivered: int | None
    note: StreamNote
    packets: int
    arrived: float


@dataclass(slots=True)
class PcapngStream:
    """One stream. ``records`` stays empty unless they are to be kept.

    ``least_slack_ns`` is how far the record that came nearest to an earlier promise was
    from breaking it.
    """

    keep: bool = True
    packets: int = 0
    data_bytes: int = 0
    section: dict[int, str] | None = None
    interface: Interface | None = None
    beats: list[Beat] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    promised_ns: int = -1
    least_slack_ns: int = 1 << 63
    _rest: bytes = b""

    @property
    def last(self) -> Beat:
        """The block that the stream ended with."""
        assert self.beats
        assert self.beats[-1].note.ended is not None, "it has not ended"
        return self.beats[-1]

    @property
    def ended(self) -> EndReason | None:
        """Why it ended cleanly, if it did."""
        return self.beats[-1].note.ended if self.beats else None

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        data = self._rest + data
        at = 0
        while at + 12 <= len(data):
            kind, size = struct.unpack_from("<II", data, at)
            assert size % 4 == 0, f"a block of {size} bytes"
            assert 12 <= size <= 300_000, f"a block of {size} bytes"
            if at + size > len(data):
                break
            assert struct.unpack_from("<I", data, at + size - 4) == (size,)
            self._take(kind, data[at + 8 : at + size - 4])
            at += size
        self._rest = data[at:]

    def receive_eof(self) -> None:
        """Check that the stream did not end within a block."""
        assert not self._rest, f"{len(self._rest)} bytes of a block"

    def _take(self, kind: int, body: bytes) -> None:
        assert self.ended is None, "something follows the last block"
        match kind:
            case _ if kind == _SECTION:
                assert self.section is None, "a second section"
                assert body[:8] == struct.pack("<IHH", 0x1A2B3C4D, 1, 0)
                self.section = {c: v.decode() for c, v in _options(body[16:]).items()}
            case _ if kind == _INTERFACE:
                self._take_interface(body)
            case _ if kind == _PACKET:
                self._take_packet(body)
            case _ if kind == _STATISTICS:
                self._take_statistics(body)
            case _:
                raise AssertionError(f"a block of type {kind}")

    def _take_interface(self, body: bytes) -> None:
        assert self.section is not None
        assert self.interface is None, "a second interface"
        link_type, reserved, snaplen = struct.unpack_from("<HHI", body)
        assert reserved == 0
        options = _options(body[8:])
        assert options[9] == b"\x09", "not nanoseconds"
        self.interface = Interface(
            link_type=link_type,
            snaplen=snaplen,
            name=options.get(2, b"").decode(),
            filter=options.get(11, b"\0")[1:].decode(),
        )

    def _take_packet(self, body: bytes) -> None:
        assert self.beats, "a packet before the first statistics block"
        number, high, low, caplen, length = struct.unpack_from("<IIIII", body)
        assert number == 0
        assert caplen <= min(length, self.interface.snaplen)
        padding = body[20 + caplen :]
        assert padding == bytes(-caplen % 4)
        timestamp_ns = high << 32 | low
        slack_ns = timestamp_ns - self.promised_ns
        self.least_slack_ns = min(self.least_slack_ns, slack_ns)
        assert slack_ns >= 0, (
            f"packet {self.packets} is {-slack_ns} ns from before the promise of block "
            f"{len(self.beats) - 1}"
        )
        self.packets += 1
        self.data_bytes += caplen
        if self.keep:
            self.records.append(Record(timestamp_ns, body[20 : 20 + caplen], length))

    def _take_statistics(self, body: bytes) -> None:
        assert self.interface is not None
        (number,) = struct.unpack_from("<I", body)
        assert number == 0
        options = _options(body[12:])
        beat = Beat(
            time_ns=_time(body[4:12]),
            started_ns=_time(options.get(2)),
            ended_ns=_time(options.get(3)),
            received=_count(options.get(4)),
            interface_dropped=_count(options.get(5)),
            dropped=_count(options.get(7)),
            delivered=_count(options.get(8)),
            note=StreamNote.parse(options.get(1, b"").decode()),
            packets=self.packets,
            arrived=time.monotonic(),
        )
        assert beat.time_ns >= self.promised_ns, "a promise goes back"
        assert beat.delivered == self.packets
        assert (beat.ended_ns is None) == (beat.note.ended is None)
        assert beat.started_ns is not None
        self.promised_ns = beat.time_ns
        self.beats.append(beat)


def read_stream(data: bytes | bytearray, *, keep: bool = True) -> PcapngStream:
    """Return a whole stream that has ended cleanly."""
    stream = PcapngStream(keep=keep)
    stream.receive_data(bytes(data))
    stream.receive_eof()
    assert stream.ended is not None, "it has no last block"
    return stream


def _options(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while body:
        code, size = struct.unpack_from("<HH", body)
        padded = size + -size % 4
        assert 4 + padded <= len(body)
        assert not any(body[4 + size : 4 + padded])
        if code == 0:
            assert size == 0
            assert len(body) == 4, "something follows the end of the options"
            return found
        assert code not in found
        found[code] = body[4 : 4 + size]
        body = body[4 + padded :]
    return found


def _time(raw: bytes | None) -> int | None:
    if raw is None:
        return None
    high, low = struct.unpack("<II", raw)
    return high << 32 | low


def _count(raw: bytes | None) -> int | None:
    return None if raw is None else struct.unpack("<Q", raw)[0]
