"""What the merge reads: every variant of both formats, whole, in pieces, cut, wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

import pytest

from ddump_common.errors import BadMagicError, CorruptError, TruncatedError
from ddump_merger._merge import Merge
from support.captures import (
    Record,
    block,
    enhanced_packet,
    interface,
    obsolete_packet,
    option,
    parse_blocks,
    pcap,
    pcap_header,
    pcap_record,
    section,
    simple_packet,
    statistics,
)
from support.merges import drain, merge_whole, read_alone

S = 1_000_000_000
RECORDS = [
    Record(1_700_000_000 * S + 123_456_000, b"0123456789abcdefX"),
    Record(1_700_000_000 * S + 999_999_000, b"", 60),
    Record(1_700_000_001 * S, b"0123456789abcdef", 0xFFFFFFFF),
    Record(0xFFFFFFFF * S + 999_999_000, b"0123456789abcdefghi"),
]


@dataclass(frozen=True, slots=True)
class Unit:
    """A header, a record or a block, and the packet in it."""

    data: bytes
    record: Record | None = None


def classic(byte_order, nano):
    units = [Unit(pcap_header(byte_order=byte_order, nano=nano))]
    for record in RECORDS:
        data = pcap_record(record, byte_order=byte_order, nano=nano)
        units.append(Unit(data, record))
    return units


def next_generation(byte_order, tsresol):
    per_unit = 1 if tsresol == 9 else 1000
    order = {"byte_order": byte_order}
    units = [
        Unit(section(**order, options=option(1, b"a comment", **order) + bytes(4))),
        Unit(interface(**order, tsresol=tsresol, options=option(2, b"eth0", **order))),
    ]
    for kind in (enhanced_packet, obsolete_packet):
        units += [
            Unit(kind(record.timestamp_ns // per_unit, record, **order), record)
            for record in RECORDS
        ]
    return units


def odd_blocks(byte_order):
    """Blocks that are no packets, of every length, between packets with options."""
    order = {"byte_order": byte_order}
    units = [Unit(section(**order)), Unit(interface(**order, tsresol=9))]
    for n, record in enumerate(RECORDS):
        comment = option(1, b"c" * n, **order) + bytes(4)
        units += [
            Unit(block(7, bytes(4 * n), **order)),
            Unit(statistics(0, **order, options=comment)),
            Unit(block(0x80000BAD, bytes(range(40)), **order)),
            Unit(
                enhanced_packet(record.timestamp_ns, record, **order, options=comment),
                record,
            ),
            Unit(block(4, b"", **order)),
        ]
    return units


def simple_packets():
    """Packets without a timestamp: that of the one before, in any section."""
    big = {"byte_order": ">"}
    short = Record(0, b"abc")
    cut = Record(0, b"0123456789", 1000)
    stamped = Record(5 * S, b"z")
    return [
        Unit(section()),
        Unit(interface(snaplen=10)),
        Unit(interface(snaplen=3)),
        Unit(simple_packet(short), short),
        Unit(simple_packet(cut), cut),
        Unit(enhanced_packet(5_000_000, stamped), stamped),
        Unit(simple_packet(short), Record(5 * S, b"abc")),
        Unit(section(**big)),
        Unit(interface(**big, snaplen=0)),
        Unit(simple_packet(short, **big), Record(5 * S, b"abc")),
    ]


def sections():
    """Two sections that agree on nothing but the link type."""
    big = {"byte_order": ">"}
    a, b, c = Record(3 * S, b"a"), Record(4 * S, b"bb"), Record(5 * S, b"ccc")
    return [
        Unit(section()),
        Unit(interface(tsresol=3)),
        Unit(interface(tsresol=0x80 | 10, tsoffset_s=-1)),
        Unit(enhanced_packet(3000, a), a),
        Unit(enhanced_packet(5 << 10, b, number=1), b),
        Unit(section(**big, version=(1, 2))),
        Unit(interface(**big, tsoffset_s=2)),
        Unit(enhanced_packet(3_000_000, c, **big), c),
        Unit(interface(**big, tsresol=9)),
        Unit(enhanced_packet(3 * S, a, **big, number=1), a),
    ]


VARIANTS = {
    "pcap": classic("<", nano=False),
    "pcap-swapped": classic(">", nano=False),
    "pcap-nano": classic("<", nano=True),
    "pcap-nano-swapped": classic(">", nano=True),
    "pcapng": next_generation("<", None),
    "pcapng-swapped": next_generation(">", 6),
    "pcapng-nano": next_generation("<", 9),
    "pcapng-nano-swapped": next_generation(">", 9),
    "odd-blocks": odd_blocks("<"),
    "odd-blocks-swapped": odd_blocks(">"),
    "simple-packets": simple_packets(),
    "sections": sections(),
}
variants = pytest.mark.parametrize("units", VARIANTS.values(), ids=VARIANTS.keys())


def joined(units):
    return b"".join(unit.data for unit in units)


def in_order(units):
    """The records as a merge lets them out."""
    records = [unit.record for unit in units if unit.record is not None]
    return sorted(records, key=lambda record: record.timestamp_ns)


@variants
def test_whole(units):
    assert read_alone([joined(units)]) == in_order(units)


@variants
def test_byte_by_byte(units):
    data = joined(units)
    assert read_alone([bytes([octet]) for octet in data]) == in_order(units)


@variants
def test_cut_in_two_anywhere(units):
    data = joined(units)
    expected = in_order(units)
    for at in range(len(data) + 1):
        assert read_alone([data[:at], data[at:]]) == expected


@variants
def test_in_pieces_of_every_size(units):
    data = joined(units)
    expected = in_order(units)
    for size in range(2, 70):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        assert read_alone(parts) == expected


@variants
def test_truncated_at_every_offset(units):
    data = joined(units)
    start = 0
    whole = []
    for unit in units:
        for at in range(start, start + len(unit.data)):
            if at == start and at > 0:
                assert read_alone([data[:at]]) == in_order(whole)
                continue
            with pytest.raises(TruncatedError) as caught:
                read_alone([data[:at]] if at else [])
            assert caught.value.offset == start
            assert caught.value.records == in_order(whole)
            if at:
                with pytest.raises(TruncatedError) as again:
                    read_alone([data[: at // 2], data[at // 2 : at]])
                assert str(again.value) == str(caught.value)
        whole.append(unit)
        start += len(unit.data)


def test_what_truncated_errors_say():
    for parts, text in (
        ([], "the capture is empty, it has not even a header, at byte 0"),
        ([b""], "the capture is empty, it has not even a header, at byte 0"),
        ([b"\xd4\xc3\xb2"], "the capture ends in its file header, at byte 0"),
        ([pcap_header()[:23]], "the capture ends in its file header, at byte 0"),
        (
            [pcap_header(), b"1"],
            "the capture ends in the middle of a record, at byte 24",
        ),
        ([section(), b"1"], "the capture ends in the middle of a block, at byte 28"),
    ):
        with pytest.raises(TruncatedError) as caught:
            read_alone(parts)
        assert str(caught.value) == text


def test_a_capture_without_packets():
    assert read_alone([pcap_header()]) == []
    assert read_alone([section()]) == []
    assert read_alone([section() + interface() + block(5, bytes(12))]) == []


# --- Timestamps ---

EXPONENTS = [0, 1, 3, 6, 8, 9, 10, 12, 18, 19, 20, 28, 29, 30, 64, 96, 127]


@pytest.mark.parametrize("base", [10, 2])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_resolutions(base, exponent):
    tsresol = exponent | (0x80 if base == 2 else 0)
    power = base**exponent
    for seconds in (0, 1, 1_700_000_000, 0xFFFFFFFF):
        for fraction in (0, 1, power // 3, power - 1):
            units = seconds * power + min(fraction, power - 1)
            if units >= 1 << 64:
                units = (1 << 64) - 1 - fraction % 1000
            expected = int(Fraction(units, power) * S)
            packet = enhanced_packet(units, Record(0, b"x"))
            capture = section() + interface(tsresol=tsresol) + packet
            assert read_alone([capture]) == [Record(expected, b"x")]


@pytest.mark.parametrize("exponent", [31, 32, 33, 63, 65, 95])
def test_binary_resolutions_at_their_limits(exponent):
    for units in ((1 << 64) - 1, 1 << 63, (1 << 33) - 1, 1 << 32):
        if units >> exponent > 0xFFFFFFFF:
            continue
        capture = (
            section()
            + interface(tsresol=0x80 | exponent)
            + enhanced_packet(units, Record(0))
        )
        expected = units * S >> exponent
        assert read_alone([capture]) == [Record(expected)]


@pytest.mark.parametrize(
    ("tsresol", "offset_s", "units", "expected_ns"),
    [
        (6, 1_700_000_000, 5_000_001, 1_700_000_005 * S + 1000),
        (9, -5, 6 * S + 7, S + 7),
        (9, -6, 6 * S + 7, 7),
        (0, -(1 << 62), (1 << 62) + 9, 9 * S),
        (6, 0xFFFFFFFF, 999_999, 0xFFFFFFFF * S + 999_999_000),
    ],
)
def test_offsets(tsresol, offset_s, units, expected_ns):
    for byte_order in "<>":
        order = {"byte_order": byte_order}
        capture = (
            section(**order)
            + interface(**order, tsresol=tsresol, tsoffset_s=offset_s)
            + enhanced_packet(units, Record(0), **order)
        )
        assert read_alone([capture]) == [Record(expected_ns)]


@pytest.mark.parametrize(
    ("tsresol", "offset_s", "units"),
    [
        (9, None, (1 << 32) * S),
        (6, None, (1 << 32) * 1_000_000),
        (6, None, (1 << 64) - 1),
        (0, None, (1 << 64) - 1),
        (0x80, None, (1 << 64) - 1),
        (0, -1, 0),
        (9, -(1 << 63), 0),
        (9, (1 << 63) - 1, S),
        (0, 1, (1 << 32) - 1),
        (1, None, (1 << 32) * 10),
        (0x80 | 5, None, 1 << 37),
    ],
)
def test_timestamps_that_cannot_be_written(tsresol, offset_s, units):
    start = section() + interface(tsresol=tsresol, tsoffset_s=offset_s)
    with pytest.raises(CorruptError, match="timestamp does not fit") as caught:
        read_alone([start + enhanced_packet(units, Record(0))])
    assert caught.value.offset == len(start)


def test_a_fraction_of_a_second_or_more_carries():
    record = struct.pack("<IIII", 10, 1_500_000, 0, 0)
    assert read_alone([pcap_header() + record]) == [Record(11 * S + 500_000_000)]
    last = struct.pack("<IIII", 0xFFFFFFFF, 1_000_000, 0, 0)
    with pytest.raises(CorruptError, match="timestamp does not fit") as caught:
        read_alone([pcap_header() + record + last])
    assert caught.value.offset == 24 + 16
    assert caught.value.records == [Record(11 * S + 500_000_000)]


def test_a_fraction_that_overflows_64_bits_in_pcapng():
    # 2**64 - 1 s / 2**1 is more than 64 bits of nanoseconds hold.
    start = section() + interface(tsresol=0x81)
    merge = Merge(1, nano=True, pcapng=True)
    with pytest.raises(CorruptError, match="timestamp does not fit"):
        merge.receive_data(0, start + enhanced_packet((1 << 64) - 1, Record(0)))


def test_the_last_nanosecond_of_63_bits():
    # The way of the odd resolutions; in pcapng the output holds all of 63 bits.
    seconds, fraction = divmod((1 << 63) - 1, S)
    start = section() + interface(tsresol=9, tsoffset_s=seconds)
    for units, fits in ((fraction, True), (fraction + 1, False), (S, False)):
        merge = Merge(1, nano=True, pcapng=True)
        merge.start(113)
        capture = start + enhanced_packet(units, Record(0, b"data"))
        if not fits:
            with pytest.raises(CorruptError, match="timestamp does not fit"):
                merge.receive_data(0, capture)
            continue
        merge.receive_data(0, capture)
        merge.receive_eof(0)
        assert parse_blocks(drain(merge)) == [(0, (1 << 63) - 1, Record(0, b"data"))]


# --- What is wrong ---

NOT_CAPTURES = {
    b"<!DOCTYPE html><html>": "not a capture file but HTML or XML, at byte 0",
    b"\xef\xbb\xbf\r\n <html>": "not a capture file but HTML or XML, at byte 0",
    b"\x1f\x8b\x08\0": "not a capture file but gzip (decompress it first), at byte 0",
    b"\x28\xb5\x2f\xfd\0": "not a capture file but zstd (decompress it first), at byte 0",
    b"\xfd7zXZ\0": "not a capture file but xz (decompress it first), at byte 0",
    b"BZh9": "not a capture file but bzip2 (decompress it first), at byte 0",
    b"PK\x03\x04": "not a capture file but zip (decompress it first), at byte 0",
    b"hello": "not a capture file (begins 68656c6c), at byte 0",
    b"\0\0\0\0": "not a capture file (begins 00000000), at byte 0",
    b"\xd4\xc3\xb2\xa0": "not a capture file (begins d4c3b2a0), at byte 0",
}


@pytest.mark.parametrize("beginning", NOT_CAPTURES.keys())
def test_what_is_not_a_capture_is_named(beginning):
    with pytest.raises(BadMagicError) as caught:
        read_alone([beginning + bytes(100)])
    assert str(caught.value) == NOT_CAPTURES[beginning]
    with pytest.raises(BadMagicError):
        read_alone([bytes([octet]) for octet in beginning[:4]])


def test_other_pcap_versions():
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 3, 0, 0, 65535, 1)
    with pytest.raises(CorruptError, match=r"pcap version 2\.3, at byte 4"):
        read_alone([header])


NG = section() + interface()
PACKET = enhanced_packet(0, Record(0, b"abcdefgh"))


def altered(data, at, value):
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


WRONG = {
    "caplen-4g": (
        pcap_header(),
        struct.pack("<IIII", 1, 2, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(100),
        "a packet claims 4294967295 captured bytes, the most is 262144",
    ),
    "caplen-one-more": (
        pcap([Record(S, b"x")]),
        struct.pack("<IIII", 1, 2, 262_145, 262_145) + bytes(262_145),
        "a packet claims 262145 captured bytes, the most is 262144",
    ),
    "block-length-8": (NG, struct.pack("<II", 6, 8), "claims 8 bytes, which cannot be"),
    "block-length-0": (
        NG,
        struct.pack("<II", 99, 0),
        "claims 0 bytes, which cannot be",
    ),
    "block-length-odd": (
        NG,
        struct.pack("<II", 6, 34),
        "claims 34 bytes, which cannot",
    ),
    "section-length-odd": (
        NG,
        altered(section(), 4, 30),
        "claims 30 bytes, which cannot be",
    ),
    "block-too-long": (
        NG,
        struct.pack("<II", 99, (16 << 20) + 4),
        "claims 16777220 bytes, more than anybody writes",
    ),
    "packet-block-too-long": (
        NG,
        struct.pack("<II", 6, (1 << 20) + 4),
        "claims 1048580 bytes, more than anybody writes",
    ),
    "block-end": (
        NG + PACKET,
        altered(PACKET, len(PACKET) - 4, 12),
        f"a block of {len(PACKET)} bytes does not end with its length",
    ),
    "skipped-block-end": (
        NG,
        altered(block(99, bytes(8)), 16, 0),
        "a block of 20 bytes does not end with its length",
    ),
    "short-section": (b"", block(0x0A0D0D0A, section()[8:20]), "type 168627466 is too"),
    "shortest-section": (
        b"",
        struct.pack("<III", 0x0A0D0D0A, 12, 0x1A2B3C4D),
        "a block of 12 bytes does not end with its length",
    ),
    "short-interface": (section(), block(1, bytes(4)), "type 1 is too short"),
    "short-packet": (NG, block(6, bytes(16)), "type 6 is too short"),
    "short-obsolete-packet": (NG, block(2, bytes(16)), "type 2 is too short"),
    "short-simple-packet": (NG, block(3, b""), "type 3 is too short"),
    "byte-order": (
        NG,
        altered(section(), 8, 0x11223344),
        "has the byte-order magic 0x44332211",
    ),
    "version": (b"", section(version=(2, 0)), "pcapng version 2 is not known"),
    "no-interface": (
        section(),
        PACKET,
        "a packet belongs to interface 0, which was not described",
    ),
    "no-interface-simple": (
        section(),
        simple_packet(Record(0, b"a")),
        "interface 0, which was not described",
    ),
    "other-interface": (
        NG,
        enhanced_packet(0, Record(0), number=1),
        "interface 1, which was not described",
    ),
    "other-interface-obsolete": (
        NG,
        obsolete_packet(0, Record(0), number=0xFFFF),
        "interface 65535, which was not described",
    ),
    "interface-of-the-last-section": (
        NG + section(),
        PACKET,
        "interface 0, which was not described",
    ),
    "ng-caplen-4g": (
        NG,
        altered(PACKET, 20, 0xFFFFFFFF),
        "claims 4294967295 captured bytes, the most is 262144",
    ),
    "ng-caplen-over-block": (
        NG,
        altered(PACKET, 20, 9),
        "claims 9 captured bytes, more than its block has",
    ),
    "simple-packet-over-block": (
        NG,
        altered(simple_packet(Record(0, b"abcd")), 8, 5),
        "claims 5 captured bytes, more than its block has",
    ),
    "simple-packet-too-long": (
        section() + interface(snaplen=0),
        altered(simple_packet(Record(0, b"abcd")), 8, 262_145),
        "claims 262145 captured bytes, the most is 262144",
    ),
    "link-types": (
        NG,
        interface(link_type=1),
        "an interface has link type 1, those before it have another",
    ),
    "link-types-of-sections": (
        NG + section(byte_order=">"),
        interface(byte_order=">", link_type=1),
        "an interface has link type 1, those before it have another",
    ),
    "option-overruns": (
        section(),
        block(1, struct.pack("<HHI", 113, 0, 0) + struct.pack("<HH", 2, 5) + b"abcd"),
        "the options of an interface overrun",
    ),
    "tsresol-length": (
        section(),
        block(1, struct.pack("<HHI", 113, 0, 0) + option(9, b"\x06\x06")),
        "the options of an interface",
    ),
    "tsoffset-length": (
        section(),
        block(1, struct.pack("<HHI", 113, 0, 0) + option(14, bytes(4))),
        "the options of an interface",
    ),
    "end-with-length": (
        section(),
        block(1, struct.pack("<HHI", 113, 0, 0) + option(0, bytes(4))),
        "the options of an interface",
    ),
}


@pytest.mark.parametrize(("good", "bad", "reason"), WRONG.values(), ids=WRONG.keys())
def test_corrupt_at_a_named_offset(good, bad, reason):
    before = read_alone([good]) if good else []
    for parts in ([good + bad], [bytes([octet]) for octet in good + bad[:60]]):
        with pytest.raises(CorruptError, match=reason) as caught:
            read_alone(parts)
        assert caught.value.offset == len(good)
        assert caught.value.records == before


def test_options_may_end_without_an_end():
    bare = block(1, struct.pack("<HHI", 113, 0, 0) + option(9, b"\x00"))
    for described in (bare, block(1, struct.pack("<HHI", 113, 0, 0))):
        packet = enhanced_packet(7, Record(0))
        assert len(read_alone([section() + described + packet])) == 1
    assert read_alone([section() + bare + packet]) == [Record(7 * S)]


def test_too_many_interfaces():
    data = section() + interface() * 65_536
    assert read_alone([data]) == []
    with pytest.raises(CorruptError, match="more than 65536 interfaces") as caught:
        read_alone([data + interface()])
    assert caught.value.offset == len(data)


def test_interfaces_are_charged_and_freed():
    merge = Merge(1)
    merge.receive_data(0, section() + interface() * 1000)
    assert merge.buffered(0) >= 1000 * 30
    merge.receive_eof(0)
    assert merge.buffered(0) == 0


# --- Size ---


def test_a_large_packet_in_the_smallest_pieces_is_not_copied_again_and_again():
    # Quadratic work would be 30 GB of copies, and this test would time out.
    records = [Record(S, bytes(262_144)), Record(2 * S, b"end")]
    data = pcap(records)
    assert read_alone([data[at : at + 1] for at in range(len(data))]) == records


def test_a_skipped_block_is_not_held():
    merge = Merge(1)
    merge.receive_data(0, section() + interface())
    data = block(99, bytes((16 << 20) - 12))
    held = merge.buffered(0)
    for at in range(0, len(data), 99_999):
        merge.receive_data(0, data[at : at + 99_999])
        assert merge.buffered(0) <= held + 100
    assert merge.buffered(0) == held
    merge.receive_eof(0)


def test_what_a_header_only_claims_is_not_allocated():
    for start, claim in (
        (pcap_header(), struct.pack("<IIII", 1, 2, 262_144, 262_144)),
        (section() + interface(), struct.pack("<II", 6, 1 << 20)),
    ):
        merge = Merge(1)
        merge.receive_data(0, start)
        merge.receive_data(0, claim + bytes(100))
        assert merge.buffered(0) < 10_000


def test_a_chunk_that_holds_no_whole_packet_is_not_kept():
    merge = Merge(1)
    merge.receive_data(0, pcap_header())
    merge.receive_data(0, pcap_record(Record(S, bytes(100_000)))[:500])
    assert merge.buffered(0) < 5000


def test_what_is_carried_is_not_more_than_it_needs_and_goes():
    merge = Merge(1)
    for octet in section() + block(99, bytes(20)):
        merge.receive_data(0, bytes([octet]))
        assert merge.buffered(0) < 200
    assert merge.buffered(0) == 0


def test_whole_captures_of_all_variants_at_once():
    merged = merge_whole([joined(units) for units in VARIANTS.values()], nano=True)
    alone = [unit.record for units in VARIANTS.values() for unit in units]
    assert merged == b"".join(
        pcap_record(record, nano=True)
        for record in sorted(
            (record for record in alone if record), key=lambda each: each.timestamp_ns
        )
    )
