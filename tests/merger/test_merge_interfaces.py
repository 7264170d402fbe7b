"""Interfaces of a pcapng output: each described before its first packet, and once."""

from __future__ import annotations

import struct

import pytest

from ddump_merger._merge import Merge
from support.captures import (
    SLL,
    SLL2,
    Cooked,
    Record,
    parse_blocks,
    pcap,
    pcapng,
)

S = 1_000_000_000


def packet(ifindex, payload=b""):
    return Cooked(ifindex=ifindex, payload=payload).sll2()


def started(inputs, *, link_type=SLL2, **options):
    merge = Merge(inputs, nano=True, disorder_ns=0, **options)
    merge.start(link_type)
    return merge


def walk(merge):
    """Describe what is asked for, 100 and so on; return (asked, numbers of packets)."""
    asked = []
    out = b""
    while True:
        while data := merge.data_to_send():
            out += data
        described = merge.undescribed()
        if described is None:
            return asked, [number for number, _, _ in parse_blocks(out)]
        assert described not in asked
        assert merge.data_to_send() == b""
        assert merge.undescribed() == described  # until it is described
        merge.describe(*described, 100 + len(asked))
        asked.append(described)


def test_each_input_when_its_first_packet_is_to_leave():
    merge = started(3, link_type=SLL, pcapng=True)
    assert merge.undescribed() is None
    merge.receive_data(2, pcap([Record(1 * S), Record(3 * S)]))
    assert merge.undescribed() is None  # it may not leave yet
    merge.receive_data(0, pcap([Record(2 * S), Record(4 * S)]))
    merge.refuse(1)
    assert merge.undescribed() == (2, 0)
    for i in (0, 2):
        merge.receive_eof(i)
    assert walk(merge) == ([(2, 0), (0, 0)], [100, 101, 100, 101])
    assert merge.done


def test_what_is_described_before_is_not_asked_for():
    merge = started(1, link_type=SLL, pcapng=True)
    merge.describe(0, 0, 7)
    merge.receive_data(0, pcap([Record(S)]))
    merge.receive_eof(0)
    assert walk(merge) == ([], [7])


def test_a_description_outlives_the_capture():
    merge = started(1, link_type=SLL, pcapng=True)
    for _ in range(2):
        merge.reopen(0, since_ns=0)
        merge.receive_data(0, pcap([Record(S)]))
    merge.receive_eof(0)
    assert walk(merge) == ([(0, 0)], [100, 100])


def test_classic_pcap_needs_none():
    merge = started(1, link_type=SLL)
    merge.receive_data(0, pcap([Record(S)]))
    merge.receive_eof(0)
    assert merge.undescribed() is None
    assert merge.data_to_send() != b""


def test_nothing_is_asked_before_the_start_nor_after_the_last_packet():
    merge = Merge(1, pcapng=True, max_packets=1)
    merge.receive_data(0, pcap([Record(S), Record(2 * S)]))
    merge.receive_eof(0)
    assert merge.undescribed() is None
    merge.start(SLL)
    assert merge.undescribed() == (0, 0)
    merge.describe(0, 0, 0)
    assert len(parse_blocks(merge.data_to_send())) == 1
    assert merge.undescribed() is None


def test_a_forced_record_is_asked_for():
    merge = started(2, link_type=SLL, pcapng=True)
    merge.limit(1, 100, live=True)
    merge.receive_data(1, pcap([Record(S, bytes(200))]))
    assert merge.undescribed() == (1, 0)


def test_each_interface_of_an_input():
    indices = [3, 3, 0, 7, 3, 0xFFFFFFFF, 7]
    records = [Record(n * S, packet(index)) for n, index in enumerate(indices)]
    merge = started(2, pcapng=True, per_interface=True)
    merge.receive_data(0, pcap(records, link_type=SLL2))
    merge.receive_data(1, pcapng(records, link_type=SLL2, byte_order=">"))
    for i in range(2):
        merge.receive_eof(i)
    asked, numbers = walk(merge)
    distinct = list(dict.fromkeys(indices))
    assert asked == [(i, index) for index in distinct for i in (0, 1)]
    assert numbers == [
        100 + asked.index((i, index)) for index in indices for i in (0, 1)
    ]


def test_the_index_is_that_of_the_record_as_it_is_written():
    for link_type, data, options, expected in (
        (SLL2, packet(9)[:8], {}, 9),
        (SLL2, packet(9)[:7], {}, 0),
        (SLL2, b"", {}, 0),
        (SLL, Cooked(payload=b"\xff" * 9).sll(), {}, 0),
        (SLL2, packet(9), {"link_type": SLL}, 0),
        (SLL2, packet(9), {"per_interface": False}, 0),
        (1, bytes(range(20)), {"link_type": 1}, 0),
    ):
        merge = started(1, **{"pcapng": True, "per_interface": True, **options})
        merge.receive_data(0, pcap([Record(S, data)], link_type=link_type))
        merge.receive_eof(0)
        assert merge.undescribed() == (0, expected)


def shuffled(count):
    """Indices that are all different and in no order."""
    return [n * 0x9E3779B1 % (1 << 32) or 1 for n in range(1, count + 1)]


@pytest.mark.parametrize("with_zero", [False, True])
def test_what_is_more_than_4096_is_of_index_0(with_zero):
    indices = shuffled(5000)
    if with_zero:
        indices.insert(7, 0)
    records = [Record(n, packet(index)) for n, index in enumerate(indices * 2)]
    merge = started(1, pcapng=True, per_interface=True)
    merge.receive_data(0, pcap(records, nano=True, link_type=SLL2))
    merge.receive_eof(0)
    asked, numbers = walk(merge)
    assert len(asked) == 4096
    known = {index: 100 + n for n, (_, index) in enumerate(asked)}
    assert 0 in known
    assert numbers == [known.get(index, known[0]) for index in indices * 2]
    with pytest.raises(ValueError, match="more than 4096 interfaces of input 0"):
        merge.describe(0, 0x12345, 1)
    merge.describe(0, asked[5][1], 3)  # another number, for what is known
    merge.describe(0, 0, 4)


def test_zero_keeps_its_place():
    merge = started(1, pcapng=True, per_interface=True)
    for number, index in enumerate(shuffled(4095)):
        merge.describe(0, index, number)
    with pytest.raises(ValueError, match="more than 4096"):
        merge.describe(0, 1, 4095)
    merge.describe(0, 0, 4095)
    with pytest.raises(ValueError, match="more than 4096"):
        merge.describe(0, 1, 4096)


def test_numbers_have_32_bits():
    merge = started(1, pcapng=True)
    for wrong in ((0, 1 << 32, 0), (0, -1, 0), (0, 0, 1 << 32), (0, 0, -1)):
        with pytest.raises(OverflowError):
            merge.describe(*wrong)
    merge.describe(0, 0, (1 << 32) - 1)
    merge.receive_data(0, pcap([Record(S)], link_type=SLL2))
    merge.receive_eof(0)
    assert struct.unpack_from("<I", merge.data_to_send(), 8) == ((1 << 32) - 1,)
