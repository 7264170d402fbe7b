"""SLL and SLL2: each converted to the other, whole, cut, too long."""

from __future__ import annotations

import pytest

from ddump_common.errors import CorruptError
from ddump_merger._merge import Merge
from ddump_merger.counters import Counters
from support.captures import SLL, SLL2, Cooked, Record, parse_records, pcap, pcapng
from support.merges import drain, merge_whole

S = 1_000_000_000
ADDRESS = bytes.fromhex("02a1b2c3d4e5f607")
PACKETS = [
    Cooked(packet_type=4, address=ADDRESS, payload=b"payload"),
    Cooked(protocol=0x86DD, arphrd=772, packet_type=0, address_length=0),
    Cooked(protocol=0xFFFE, arphrd=0xFFFF, address_length=255, packet_type=255),
]


def converted(packet, source, target, *, caplen=None, length=None):
    """Return the one record that comes out."""
    capture = pcap(
        [Record(S, packet[:caplen], length or len(packet))], link_type=source
    )
    (record,) = parse_records(merge_whole([capture], link_type=target))
    return record


@pytest.mark.parametrize("packet", PACKETS)
def test_both_ways(packet):
    assert converted(packet.sll2(), SLL2, SLL) == Record(S, packet.sll())
    assert converted(packet.sll(), SLL, SLL2) == Record(S, packet.sll2())


def test_golden():
    sll2 = bytes.fromhex("0800 0000 00000003 0001 04 06 02a1b2c3d4e50000 4500")
    sll = bytes.fromhex("0004 0001 0006 02a1b2c3d4e50000 0800 4500")
    without_index = sll2[:4] + bytes(4) + sll2[8:]
    assert converted(sll2, SLL2, SLL).data == sll
    assert converted(sll, SLL, SLL2).data == without_index


def test_the_same_type_is_left_alone():
    packet = Cooked(ifindex=7, payload=b"x")
    assert converted(packet.sll2(), SLL2, SLL2) == Record(S, packet.sll2())
    assert converted(packet.sll(), SLL, SLL) == Record(S, packet.sll())


# Packet type (16 bits from 8), ARPHRD, address length (16 from 8), address, protocol:
# with this much of SLL2 that much of SLL is known from its beginning.
KNOWN_OF_SLL = [0] * 11 + [4] + list(range(6, 14)) + [16]


@pytest.mark.parametrize("caplen", range(24))
def test_cut_in_the_header(caplen):
    packet = Cooked(packet_type=4, address=ADDRESS, payload=b"pay")
    known = KNOWN_OF_SLL[caplen] if caplen < 20 else caplen - 4
    record = converted(packet.sll2(), SLL2, SLL, caplen=caplen, length=1500)
    assert record == Record(S, packet.sll()[:known], 1496)
    # The protocol comes last in SLL and first in SLL2.
    known = 0 if caplen < 15 else 1 if caplen == 15 else caplen + 4
    record = converted(packet.sll(), SLL, SLL2, caplen=caplen, length=1500)
    assert record == Record(S, packet.sll2()[: min(known, 23)], 1504)


def test_a_cut_header_ends_where_the_next_record_begins():
    # What stands behind the 11 bytes must not be read as if it belonged to them.
    packet = Cooked(packet_type=3, address=ADDRESS).sll2()
    records = [Record(S, packet[:11], 60), Record(S, b"\xff" * 40)]
    merged = parse_records(merge_whole([pcap(records, link_type=SLL2)], link_type=SLL))
    assert merged[0] == Record(S, b"\x00\x03\x00\x01", 56)


def test_values_that_eight_bits_do_not_hold_are_the_most_they_do():
    sll = Cooked(packet_type=0x0104, address_length=0x0206).sll()
    assert converted(sll, SLL, SLL2).data[10:12] == b"\xff\xff"


def test_lengths_at_their_limits():
    empty = b""
    for length, shorter in ((1, 0), (3, 0), (4, 0), (5, 1), (0xFFFFFFFF, 0xFFFFFFFB)):
        assert converted(empty, SLL2, SLL, length=length).length == shorter
    for length, longer in ((1, 5), (0xFFFFFFFB, 0xFFFFFFFF), (0xFFFFFFFC, 0xFFFFFFFF)):
        assert converted(empty, SLL, SLL2, length=length).length == longer
    assert converted(empty, SLL, SLL2, length=0xFFFFFFFF).length == 0xFFFFFFFF


@pytest.mark.parametrize("pcapng_out", [False, True])
def test_what_grows_over_the_snaplen_is_cut_and_counted(pcapng_out):
    packet = Cooked(payload=bytes(range(256)) * 1024)
    fits, over = packet.sll()[:262_140], packet.sll()[:262_141]
    merge = Merge(1, pcapng=pcapng_out)
    merge.start(SLL2)
    records = [Record(S, fits, 300_000), Record(S, over, 300_000)]
    merge.receive_data(0, pcap(records, link_type=SLL))
    merge.receive_eof(0)
    data = drain(merge)
    if pcapng_out:
        assert len(data) == 2 * (32 + 262_144)
        assert data[28 : 28 + 262_144] == packet.sll2()[:262_144]
    else:
        whole = Record(S, packet.sll2()[:262_144], 300_004)
        assert parse_records(data) == [whole, whole]
    assert merge.counters(0) == Counters(2, 2 * 262_144, 0, 1)


def test_mixed_inputs_become_one_type():
    a, b = PACKETS[:2]
    captures = [
        pcap([Record(1 * S, a.sll()), Record(4 * S, b.sll())]),
        pcapng([Record(2 * S, a.sll2())], link_type=SLL2),
        pcap([Record(3 * S, b.sll2())], link_type=SLL2, byte_order=">"),
    ]
    order = [(1 * S, a), (2 * S, a), (3 * S, b), (4 * S, b)]
    assert parse_records(merge_whole(captures, link_type=SLL)) == [
        Record(timestamp_ns, packet.sll()) for timestamp_ns, packet in order
    ]
    assert parse_records(merge_whole(captures, link_type=SLL2)) == [
        Record(timestamp_ns, packet.sll2()) for timestamp_ns, packet in order
    ]


@pytest.mark.parametrize("late_header", [False, True])
def test_the_conversion_is_chosen_whichever_comes_first(late_header):
    capture = pcap([Record(S, PACKETS[0].sll2())], link_type=SLL2)
    merge = Merge(1)
    if late_header:
        merge.start(SLL)
        merge.receive_data(0, capture)
    else:
        merge.receive_data(0, capture)
        merge.start(SLL)
    merge.receive_eof(0)
    assert parse_records(drain(merge)) == [Record(S, PACKETS[0].sll())]


def test_what_came_with_the_link_type_and_an_error_is_converted():
    # All in one piece: the interface, a packet, and a block that cannot be.
    capture = pcapng([Record(S, PACKETS[0].sll2())], link_type=SLL2) + bytes(12)
    merge = Merge(1)
    merge.start(SLL)
    with pytest.raises(CorruptError, match="a block claims 0 bytes"):
        merge.receive_data(0, capture)
    assert parse_records(drain(merge)) == [Record(S, PACKETS[0].sll())]
