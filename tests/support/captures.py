"""Captures as bytes, in every variant that a merge may meet, and what should become of
them: builders of pcap and pcapng, a plain parser, and a plain-Python merge.

Everything here is slow, obvious, and independent of the kernels: they are judged by it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

__all__ = [
    "HEADER_SIZE",
    "MAX_SNAPLEN",
    "MICRO_MAGIC",
    "NANO_MAGIC",
    "SLL",
    "SLL2",
    "Cooked",
    "PlainMerge",
    "Record",
    "block",
    "enhanced_packet",
    "interface",
    "late_in",
    "obsolete_packet",
    "option",
    "parse_blocks",
    "parse_pcap",
    "parse_records",
    "pcap",
    "pcap_header",
    "pcap_record",
    "pcapng",
    "section",
    "simple_packet",
    "statistics",
    "statistics_time",
]

SLL = 113
SLL2 = 276
MAX_SNAPLEN = 262_144
MICRO_MAGIC = 0xA1B2C3D4
NANO_MAGIC = 0xA1B23C4D
HEADER_SIZE = 24
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Record:
    """A packet: when, its captured bytes, its length on the wire (-1: the same)."""

    timestamp_ns: int
    data: bytes = b""
    length: int = -1

    def __post_init__(self):
        if self.length < 0:
            object.__setattr__(self, "length", len(self.data))


# --- Classic pcap ---


def pcap_header(*, byte_order="<", nano=False, link_type=SLL, snaplen=MAX_SNAPLEN):
    magic = NANO_MAGIC if nano else MICRO_MAGIC
    return struct.pack(byte_order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link_type)


def pcap_record(record, *, byte_order="<", nano=False):
    seconds, fraction = divmod(record.timestamp_ns, SECOND)
    fraction = fraction if nano else fraction // 1000
    header = struct.pack(
        byte_order + "IIII", seconds, fraction, len(record.data), record.length
    )
    return header + record.data


def pcap(
    records, *, byte_order="<", nano=False, link_type=SLL, snaplen=MAX_SNAPLEN
) -> bytes:
    """Return a whole capture file."""
    header = pcap_header(
        byte_order=byte_order, nano=nano, link_type=link_type, snaplen=snaplen
    )
    return header + b"".join(
        pcap_record(record, byte_order=byte_order, nano=nano) for record in records
    )


def parse_records(data, *, byte_order="<", nano=False) -> list[Record]:
    """Return the records of a capture without its file header; it must be whole."""
    records = []
    at = 0
    while at < len(data):
        seconds, fraction, caplen, length = struct.unpack_from(
            byte_order + "IIII", data, at
        )
        at += 16
        assert at + caplen <= len(data), "the last record is not whole"
        timestamp_ns = seconds * SECOND + fraction * (1 if nano else 1000)
        records.append(Record(timestamp_ns, data[at : at + caplen], length))
        at += caplen
    return records


def parse_pcap(data) -> list[Record]:
    """Return the records of a whole capture file."""
    for byte_order in "<>":
        for nano, magic in ((False, MICRO_MAGIC), (True, NANO_MAGIC)):
            if data[:4] == struct.pack(byte_order + "I", magic):
                return parse_records(
                    data[HEADER_SIZE:], byte_order=byte_order, nano=nano
                )
    raise AssertionError(f"not a pcap file: {data[:4].hex()}")


# --- pcapng ---


def block(kind, body, *, byte_order="<"):
    body += bytes(-len(body) % 4)
    length = struct.pack(byte_order + "I", 12 + len(body))
    return struct.pack(byte_order + "I", kind) + length + body + length


def option(code, value, *, byte_order="<"):
    return (
        struct.pack(byte_order + "HH", code, len(value))
        + value
        + bytes(-len(value) % 4)
    )


def section(*, byte_order="<", version=(1, 0), options=b""):
    body = struct.pack(byte_order + "IHHq", 0x1A2B3C4D, *version, -1)
    return block(0x0A0D0D0A, body + options, byte_order=byte_order)


def interface(
    *,
    byte_order="<",
    link_type=SLL,
    snaplen=MAX_SNAPLEN,
    tsresol=None,
    tsoffset_s=None,
    options=b"",
):
    """``tsresol`` is the octet of if_tsresol: 9, or 0x80 | 20; None leaves it out."""
    body = struct.pack(byte_order + "HHI", link_type, 0, snaplen) + options
    if tsresol is not None:
        body += option(9, bytes([tsresol]), byte_order=byte_order)
    if tsoffset_s is not None:
        body += option(
            14, struct.pack(byte_order + "q", tsoffset_s), byte_order=byte_order
        )
    return block(1, body + bytes(4), byte_order=byte_order)


def enhanced_packet(units, record, *, byte_order="<", number=0, options=b""):
    """``units`` is the raw timestamp, which ``record`` is not asked for."""
    body = struct.pack(
        byte_order + "IIIII",
        number,
        units >> 32,
        units & 0xFFFFFFFF,
        len(record.data),
        record.length,
    )
    data = record.data + bytes(-len(record.data) % 4)
    return block(6, body + data + options, byte_order=byte_order)


def obsolete_packet(units, record, *, byte_order="<", number=0, drops=0xFFFF):
    body = struct.pack(
        byte_order + "HHIIII",
        number,
        drops,
        units >> 32,
        units & 0xFFFFFFFF,
        len(record.data),
        record.length,
    )
    return block(2, body + record.data, byte_order=byte_order)


def simple_packet(record, *, byte_order="<"):
    body = struct.pack(byte_order + "I", record.length)
    return block(3, body + record.data, byte_order=byte_order)


def statistics(units, *, byte_order="<", number=0, options=b""):
    """``units`` is the raw timestamp; see ``statistics_time`` for those in options."""
    body = struct.pack(byte_order + "III", number, units >> 32, units & 0xFFFFFFFF)
    return block(5, body + options, byte_order=byte_order)


def statistics_time(code, units, *, byte_order="<"):
    """An option of a statistics block that holds a raw timestamp."""
    value = struct.pack(byte_order + "II", units >> 32, units & 0xFFFFFFFF)
    return option(code, value, byte_order=byte_order)


def pcapng(records, *, byte_order="<", nano=True, link_type=SLL) -> bytes:
    """Return a whole file of one section and one interface."""
    return (
        section(byte_order=byte_order)
        + interface(
            byte_order=byte_order, link_type=link_type, tsresol=9 if nano else 6
        )
        + b"".join(
            enhanced_packet(
                record.timestamp_ns // (1 if nano else 1000),
                record,
                byte_order=byte_order,
            )
            for record in records
        )
    )


def parse_blocks(data) -> list[tuple[int, int, Record]]:
    """Return (interface, raw timestamp, record) of little-endian enhanced packets."""
    packets = []
    at = 0
    while at < len(data):
        kind, total, number, high, low, caplen, length = struct.unpack_from(
            "<IIIIIII", data, at
        )
        assert kind == 6
        assert total == 32 + (caplen + 3) // 4 * 4
        assert struct.unpack_from("<I", data, at + total - 4) == (total,)
        packet = data[at + 28 : at + 28 + caplen]
        padding = data[at + 28 + caplen : at + total - 4]
        assert padding == bytes(len(padding))
        packets.append((number, high << 32 | low, Record(0, packet, length)))
        at += total
    return packets


# --- Cooked headers ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooked:
    """A packet of the pseudo-interface ``any``."""

    protocol: int = 0x0800
    ifindex: int = 0
    arphrd: int = 1
    packet_type: int = 0
    address_length: int = 6
    address: bytes = bytes(8)
    payload: bytes = b""

    def sll(self) -> bytes:
        return (
            struct.pack(">HHH", self.packet_type, self.arphrd, self.address_length)
            + self.address
            + struct.pack(">H", self.protocol)
            + self.payload
        )

    def sll2(self) -> bytes:
        return (
            struct.pack(">HHI", self.protocol, 0, self.ifindex)
            + struct.pack(">HBB", self.arphrd, self.packet_type, self.address_length)
            + self.address
            + self.payload
        )


# --- The merge ---


@dataclass(slots=True)
class _Input:
    watermark: float = float("-inf")
    promised: float = float("-inf")
    shift_ns: int = 0
    refill_ns: float = float("-inf")
    # What is earlier, and older than what is out, is of a refill.
    refilled_ns: float = float("-inf")
    newest: float = float("-inf")
    suspended: bool = False
    ended: bool = False
    pending: list[tuple[int, int, int, Record, bool]] = field(default_factory=list)
    late: int = 0
    refilled: int = 0
    backwards: int = 0


class PlainMerge:
    """The merge as one would write it down: lists, and ``min``. It has no limits.

    ``released`` is all that came out so far, as (input, record). All inputs are trusted.
    """

    def __init__(self, inputs, *, disorder_ns=50_000_000):
        self.inputs = [_Input() for _ in range(inputs)]
        self.disorder_ns = disorder_ns
        self.released: list[tuple[int, Record]] = []
        self.last_ns = float("-inf")
        self._arrival = 0

    def receive(self, i, record):
        input_ = self.inputs[i]
        moment = record.timestamp_ns + input_.shift_ns
        shifted = Record(moment, record.data, record.length)
        refilled = record.timestamp_ns < input_.refill_ns
        input_.pending.append((moment, i, self._arrival, shifted, refilled))
        self._arrival += 1
        input_.newest = max(input_.newest, record.timestamp_ns)
        self._move(i)

    def beat(self, i, timestamp_ns):
        input_ = self.inputs[i]
        input_.backwards += timestamp_ns < input_.promised
        input_.promised = max(input_.promised, timestamp_ns)
        self._move(i)

    def _move(self, i):
        input_ = self.inputs[i]
        moved = max(input_.newest - self.disorder_ns, input_.promised)
        self.advance(i, moved + input_.shift_ns)

    def advance(self, i, timestamp_ns):
        self.inputs[i].watermark = max(self.inputs[i].watermark, timestamp_ns)

    def reopen(self, i, since_ns):
        input_ = self.inputs[i]
        input_.ended = False
        input_.watermark = since_ns + input_.shift_ns
        input_.promised = input_.newest = input_.refill_ns = float("-inf")
        input_.refilled_ns = float("-inf")

    def refill(self, i, until_ns):
        input_ = self.inputs[i]
        input_.refill_ns = until_ns
        input_.refilled_ns = float("inf") if input_.suspended else self.last_ns

    def suspend(self, i):
        self.inputs[i].suspended = True

    def resume(self, i):
        input_ = self.inputs[i]
        input_.suspended = False
        if input_.refilled_ns == float("inf"):
            input_.refilled_ns = self.last_ns

    def end(self, i):
        self.inputs[i].ended = True

    def _waited_for(self):
        return [
            (each.watermark, n)
            for n, each in enumerate(self.inputs)
            if not each.ended and not each.suspended
        ]

    def lagging(self):
        return min(self._waited_for(), default=(0, -1))[1]

    @property
    def done(self):
        return all(each.ended and not each.pending for each in self.inputs)

    def release(self):
        """Let out all that may leave, and return it."""
        before = len(self.released)
        while pending := [each for input_ in self.inputs for each in input_.pending]:
            entry = min(pending, key=lambda each: each[:3])
            timestamp_ns, i, _, record, refilled = entry
            least = min(self._waited_for(), default=(float("inf"), 0))
            if (timestamp_ns, i) > least and timestamp_ns >= self.last_ns:
                break
            input_ = self.inputs[i]
            input_.pending.remove(entry)
            if refilled or timestamp_ns < min(self.last_ns, input_.refilled_ns):
                input_.refilled += 1
            else:
                input_.late += timestamp_ns < self.last_ns
                self.last_ns = max(self.last_ns, timestamp_ns)
            self.released.append((i, record))
        return self.released[before:]


def late_in(timestamps) -> int:
    """Count those that come after a later one."""
    late = 0
    last = float("-inf")
    for timestamp_ns in timestamps:
        late += timestamp_ns < last
        last = max(last, timestamp_ns)
    return late
