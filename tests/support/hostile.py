"""Bytes that mean harm: captures that were tampered with, and noise."""

from __future__ import annotations

import struct

from support.captures import (
    Cooked,
    Record,
    block,
    enhanced_packet,
    interface,
    obsolete_packet,
    option,
    pcap,
    pcapng,
    section,
    simple_packet,
    statistics,
)

__all__ = ["any_capture", "any_split", "tampered"]

SECOND = 1_000_000_000
# Numbers at which lengths, counts and times go wrong.
EDGES = [
    *range(36),
    0x7F,
    0x80,
    0xFF,
    0x100,
    0xFFFF,
    0x10000,
    262_143,
    262_144,
    262_145,
    1 << 20,
    (1 << 20) + 4,
    16 << 20,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFC,
    0xFFFFFFFF,
    0x0A0D0D0A,
    0x1A2B3C4D,
]


def any_records(rng):
    moment = rng.randrange(3) * SECOND
    records = []
    for _ in range(rng.randrange(12)):
        moment = max(0, moment + rng.randrange(-3, 6) * rng.choice((1, 1000, SECOND)))
        data = Cooked(payload=rng.randbytes(rng.randrange(30)))
        data = data.sll() if rng.random() < 0.5 else data.sll2()
        data = data[: rng.randrange(50)]
        records.append(Record(moment, data, rng.choice((len(data), 1500, 0xFFFFFFFF))))
    return records


def any_statistics(rng, units, *, byte_order, number):
    """A statistics block; few of its options have a length that is wrong."""
    options = b""
    for _ in range(rng.randrange(4)):
        code = rng.randrange(10)
        size = 8 if code > 1 and rng.random() < 0.95 else rng.randrange(300)
        value = bytes(4) + rng.randbytes(size)[4:]
        options += option(code or 1, value[:size], byte_order=byte_order)
    return statistics(units, byte_order=byte_order, number=number, options=options)


def any_blocks(rng):
    """A pcapng of all kinds of blocks, with several interfaces and sections."""
    parts = []
    for _ in range(rng.randrange(1, 3)):
        order = {"byte_order": rng.choice("<>")}
        parts.append(section(**order))
        described = rng.randrange(4)
        for _ in range(described):
            tsresol = rng.choice(
                (None, 0, 6, 9, 12, 0x8A, 0xC0, 0xFF, rng.randrange(256))
            )
            offset_s = rng.choice((None, None, -1, 1 << 40, -(1 << 63), (1 << 63) - 1))
            parts.append(
                interface(
                    **order,
                    link_type=rng.choice((113, 113, 113, 276)),
                    snaplen=rng.choice((0, 20, 262_144)),
                    tsresol=tsresol,
                    tsoffset_s=offset_s,
                )
            )
        for record in any_records(rng):
            number = rng.randrange(described + 1)
            parts.append(
                rng.choice(
                    (
                        lambda units, record, **order: simple_packet(record, **order),
                        lambda units, record, **order: block(
                            rng.randrange(20), record.data, **order
                        ),
                        lambda units, record, number=number, **order: enhanced_packet(
                            units, record, number=number, **order
                        ),
                        lambda units, _, number=number, **order: any_statistics(
                            rng, units, number=number, **order
                        ),
                        lambda units, record, number=number, **order: obsolete_packet(
                            units, record, number=number, **order
                        ),
                    )
                )(
                    record.timestamp_ns * rng.choice((1, 1, 1 << 34)) % (1 << 64),
                    record,
                    **order,
                )
            )
    return b"".join(parts)


def any_capture(rng) -> bytes:
    """A sound capture, more or less, of any variant."""
    order = rng.choice("<>")
    link_type = rng.choice((113, 276))
    nano = rng.random() < 0.5
    if rng.random() < 0.4:
        return pcap(any_records(rng), byte_order=order, nano=nano, link_type=link_type)
    if rng.random() < 0.3:
        return pcapng(
            any_records(rng), byte_order=order, nano=nano, link_type=link_type
        )
    return any_blocks(rng)


def tampered(rng, data) -> bytes:
    """``data`` with a few octets changed, numbers put in, parts gone, moved, doubled."""
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 4, 16, 64)))
        match rng.randrange(6):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                at -= at % 4
                number = rng.choice(EDGES)
                data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
            case _:
                del data[at:]
    return bytes(data)


def any_split(rng, data) -> list[bytes]:
    """``data`` in pieces, from bytes to all of it; some of them empty."""
    longest = rng.choice((1, 3, 16, 100, 1 + len(data)))
    parts = []
    at = 0
    while at < len(data):
        size = rng.randrange(longest + 1)
        parts.append(data[at : at + size])
        at += size
    return parts
