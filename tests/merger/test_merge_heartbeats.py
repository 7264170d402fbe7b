"""Statistics blocks: what they say, what they move, and what of them cannot be."""

from __future__ import annotations

import struct

import pytest

from ddump_common.errors import CorruptError
from ddump_common.pcapng import InterfaceDescription, SectionHeader, Statistics
from ddump_merger._merge import Merge
from ddump_merger.counters import Counters, Heartbeat
from support.captures import (
    SLL,
    Record,
    block,
    enhanced_packet,
    interface,
    option,
    parse_blocks,
    parse_records,
    pcap,
    pcap_header,
    section,
    statistics,
    statistics_time,
)
from support.merges import drain

S = 1_000_000_000
MS = 1_000_000
BASE = 1_700_000_000 * S
NG = section() + interface(tsresol=9)
NOTHING = (None,) * 6


def started(inputs, **options):
    merge = Merge(inputs, nano=True, **options)
    merge.start(SLL)
    return merge


def packet(timestamp_ns, data=b"x"):
    return enhanced_packet(timestamp_ns, Record(0, data))


def times(merge):
    return [each.timestamp_ns for each in parse_records(drain(merge), nano=True)]


# --- What they say ---


def test_what_the_workers_blocks_say():
    merge = started(1)
    merge.receive_data(
        0,
        SectionHeader(application="ddump-worker").serialize()
        + InterfaceDescription(link_type=SLL).serialize(),
    )
    assert merge.heartbeat(0) is None
    merge.receive_data(0, Statistics(time_ns=BASE, started_ns=BASE - 7).serialize())
    assert merge.heartbeat(0) == Heartbeat(
        BASE, 1, 0, BASE - 7, None, None, None, None, None, b""
    )
    merge.receive_data(0, packet(BASE + 1) + packet(BASE + 2))
    last = Statistics(
        time_ns=BASE + S,
        started_ns=BASE - 7,
        ended_ns=BASE + 3,
        received=(1 << 64) - 1,
        interface_dropped=0,
        dropped=1 << 40,
        delivered=2,
        comment="ended: packets",
    )
    merge.receive_data(0, last.serialize())
    assert merge.heartbeat(0) == Heartbeat(
        promised_ns=BASE + S,
        blocks=2,
        read=2,
        started_ns=BASE - 7,
        ended_ns=BASE + 3,
        received=(1 << 64) - 1,
        interface_dropped=0,
        dropped=1 << 40,
        delivered=2,
        comment=b"ended: packets",
    )
    merge.receive_eof(0)
    assert merge.heartbeat(0).blocks == 2  # still to be asked for


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize(
    ("tsresol", "offset_s", "units", "expected_ns"),
    [
        (None, None, 1_700_000_000_123_456, BASE + 123_456_000),
        (0, None, 1_700_000_000, BASE),
        (9, -5, BASE + 7, BASE - 5 * S + 7),
        (0x80 | 10, 3, (1_700_000_000 << 10) + 512, BASE + 3 * S + S // 2),
    ],
)
def test_times_are_in_the_units_of_the_interface(
    byte_order, tsresol, offset_s, units, expected_ns
):
    order = {"byte_order": byte_order}
    merge = started(1)
    merge.receive_data(
        0,
        section(**order)
        + interface(**order, tsresol=tsresol, tsoffset_s=offset_s)
        + statistics(
            units,
            **order,
            options=statistics_time(2, units, **order)
            + option(8, struct.pack(byte_order + "Q", 77), **order)
            + statistics_time(3, units, **order),
        ),
    )
    beat = merge.heartbeat(0)
    assert (beat.promised_ns, beat.started_ns, beat.ended_ns) == (expected_ns,) * 3
    assert beat.delivered == 77


def test_of_several_interfaces_the_first_ones_count():
    merge = started(1)
    merge.receive_data(0, NG + interface(tsresol=0))
    merge.receive_data(0, statistics(5, number=1))
    assert merge.heartbeat(0) is None
    merge.receive_data(0, statistics(7 * S) + statistics(9, number=1))
    assert merge.heartbeat(0) == Heartbeat(7 * S, 1, 0, *NOTHING, b"")


def test_a_section_that_follows_goes_on_counting():
    merge = started(1)
    merge.trust(0)
    merge.receive_data(0, NG + statistics(5 * S) + packet(6 * S))
    big = {"byte_order": ">"}
    merge.receive_data(
        0, section(**big) + interface(**big) + statistics(8_000_000, **big)
    )
    assert merge.heartbeat(0) == Heartbeat(8 * S, 2, 1, *NOTHING, b"")
    assert merge.watermark(0) == 8 * S


def test_classic_pcap_has_none():
    merge = started(1)
    merge.trust(0)
    merge.receive_data(0, pcap([Record(S)]))
    assert merge.heartbeat(0) is None


def test_a_long_comment_is_cut_and_other_options_are_left_alone():
    merge = started(1)
    long = option(1, b"c" * 300) + option(6, b"odd") + option(2988, b"??") + bytes(4)
    merge.receive_data(0, NG + statistics(0, options=long))
    assert merge.heartbeat(0).comment == b"c" * 256
    merge.receive_data(0, statistics(0, options=option(1, b"c" * 255)))
    assert merge.heartbeat(0).comment == b"c" * 255
    merge.receive_data(0, statistics(0))
    assert merge.heartbeat(0) == Heartbeat(0, 3, 0, *NOTHING, b"")


# --- What they move ---


def test_a_trusted_block_lets_the_others_go_on():
    merge = started(2)
    merge.trust(1)
    merge.receive_data(0, NG + packet(3 * S) + packet(4 * S))
    merge.receive_data(1, NG)
    assert times(merge) == []
    merge.receive_data(1, statistics(3 * S))
    # Another one of 3 s may follow, of input 1: that is behind input 0's.
    assert times(merge) == [3 * S]
    merge.receive_eof(0)
    merge.receive_data(1, statistics(4 * S - 1))
    assert times(merge) == []
    merge.receive_data(1, statistics(4 * S))
    assert times(merge) == [4 * S]
    assert merge.lagging() == 1


def test_a_block_of_who_is_not_trusted_moves_nothing():
    merge = started(2)
    merge.receive_data(0, NG + packet(3 * S))
    merge.receive_data(1, NG + statistics(9 * S) + statistics(8 * S))
    assert merge.heartbeat(1).promised_ns == 9 * S
    assert merge.watermark(1) < 0
    assert times(merge) == []
    assert merge.counters(1) == Counters()
    merge.trust(1)  # that may come after the first bytes, too
    assert merge.watermark(1) == 9 * S
    assert times(merge) == []  # input 0 itself may still bring 50 ms of disorder
    merge.receive_eof(0)
    assert times(merge) == [3 * S]


def test_one_that_goes_back_is_counted_and_means_nothing():
    merge = started(1)
    merge.trust(0)
    merge.receive_data(0, NG + statistics(5 * S) + statistics(5 * S))
    assert merge.counters(0).backwards == 0
    merge.receive_data(0, statistics(5 * S - 1) + statistics(0))
    assert merge.counters(0) == Counters(backwards=2)
    assert merge.watermark(0) == 5 * S
    assert merge.heartbeat(0)[:2] == (5 * S, 4)
    merge.receive_data(0, statistics(5 * S + 1))
    assert merge.watermark(0) == 5 * S + 1
    assert merge.counters(0).backwards == 2


def test_records_that_break_a_promise_are_not_lost():
    merge = started(2, disorder_ns=0)
    merge.trust(1)
    merge.receive_data(1, NG + statistics(9 * S) + packet(2 * S))
    merge.receive_data(0, NG + packet(3 * S))
    merge.receive_data(1, packet(1 * S))
    assert times(merge) == [1 * S, 2 * S, 3 * S]
    merge.receive_data(1, packet(1 * S))
    assert times(merge) == [1 * S]
    assert merge.counters(1) == Counters(3, 3, late=1)


# --- What cannot be ---


def isb(options, units=0):
    return statistics(units, options=options)


WRONG = {
    "short": (block(5, bytes(8)), "a block of type 5 is too short"),
    "no-interface": (
        statistics(0, number=1),
        "a statistics block belongs to interface 1, which was not described",
    ),
    "overrun": (
        isb(struct.pack("<HH", 1, 9) + bytes(8)),
        "the options of a statistics block overrun",
    ),
    "overrun-64k": (isb(struct.pack("<HH", 1, 0xFFFF)), "statistics block overrun"),
    "end-with-length": (isb(option(0, bytes(4))), "statistics block overrun"),
    **{
        f"length-{code}-{length}": (
            isb(option(code, bytes(length))),
            "the options of a statistics block overrun, or have a length",
        )
        for code in (2, 3, 4, 5, 7, 8)
        for length in (0, 4, 7, 9, 16)
    },
    "started": (isb(statistics_time(2, 1 << 63)), "a length or a time"),
    "ended": (isb(statistics_time(3, (1 << 64) - 1)), "a length or a time"),
    "time": (statistics((1 << 64) - 1), "a statistics block has a time that cannot"),
    "trailer": (
        statistics(0)[:-4] + bytes(4),
        "a block of 24 bytes does not end with its length",
    ),
    "too-long": (struct.pack("<II", 5, (1 << 20) + 4), "more than anybody writes"),
}


def receive_all(merge, parts):
    for part in parts:
        merge.receive_data(0, part)


@pytest.mark.parametrize(("bad", "reason"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_wrong_is_named(bad, reason, trusted):
    good = NG + packet(S) + statistics(2 * S)
    for parts in ([good + bad], [bytes([octet]) for octet in good + bad]):
        merge = started(1)
        if trusted:
            merge.trust(0)
        with pytest.raises(CorruptError, match=reason) as caught:
            receive_all(merge, parts)
        assert caught.value.offset == len(good)
        assert merge.heartbeat(0) == Heartbeat(2 * S, 1, 1, *NOTHING, b"")
        assert times(merge) == [S]
        assert merge.done


def test_before_any_interface():
    merge = started(1)
    with pytest.raises(CorruptError, match="interface 0, which was not described"):
        merge.receive_data(0, section() + statistics(0))


def test_a_promise_that_the_output_cannot_hold():
    far = (1 << 32) * S
    for trusted, pcapng, fits in (
        (False, False, True),
        (True, True, True),
        (True, False, False),
    ):
        merge = started(1, pcapng=pcapng)
        if trusted:
            merge.trust(0)
        if fits:
            merge.receive_data(0, NG + statistics(far))
            assert merge.heartbeat(0).promised_ns == far
            continue
        merge.receive_data(0, NG + statistics(far - 1))
        with pytest.raises(CorruptError, match="or does not fit the output"):
            merge.receive_data(0, statistics(far))


def test_cut_anywhere():
    data = (
        NG + packet(S) + statistics(2 * S, options=option(1, b"word")) + packet(3 * S)
    )
    for cut in range(len(data) + 1):
        merge = started(1)
        merge.receive_data(0, data[:cut])
        merge.receive_data(0, data[cut:])
        assert merge.heartbeat(0) == Heartbeat(2 * S, 1, 1, *NOTHING, b"word")
        merge.receive_eof(0)
        assert times(merge) == [S, 3 * S]


# --- Clocks ---


def test_shift_moves_records_and_promises():
    merge = started(2)
    merge.trust(0)
    merge.shift(0, -3 * S)
    merge.receive_data(0, NG + packet(BASE + 3 * S) + statistics(BASE + 4 * S))
    merge.receive_data(1, NG + packet(BASE + S + 1) + packet(BASE + S))
    assert merge.watermark(0) == BASE + S
    assert merge.heartbeat(0).promised_ns == BASE + 4 * S
    assert merge.progress(0)[2] == BASE + 3 * S
    merge.receive_eof(1)
    assert times(merge) == [BASE]
    merge.receive_eof(0)
    assert times(merge) == [BASE + S, BASE + S + 1]


def test_shift_counts_from_now_on():
    merge = started(1, disorder_ns=0)
    merge.receive_data(0, NG + packet(S))
    merge.shift(0, 5 * S)
    merge.receive_data(0, packet(2 * S))
    merge.shift(0, 0)
    merge.receive_data(0, packet(3 * S))
    merge.receive_eof(0)
    assert times(merge) == [S, 3 * S, 7 * S]


LAST = (1 << 32) * S - 1


@pytest.mark.parametrize(
    ("delta_ns", "fits", "too_far"),
    [
        (-5, [5, 6, LAST, LAST + 5], [4, LAST + 6]),
        (5, [0, LAST - 5], [LAST - 4, LAST]),
        (1 << 62, [], [0, LAST]),
        (-(1 << 62), [1 << 62], [(1 << 62) - 1, LAST, (1 << 63) - 1]),
    ],
)
def test_shift_to_where_nothing_can_be(delta_ns, fits, too_far):
    for timestamp_ns in fits:
        merge = started(1)
        merge.shift(0, delta_ns)
        merge.trust(0)
        merge.receive_data(0, NG + packet(timestamp_ns) + statistics(timestamp_ns))
        merge.receive_eof(0)
        assert times(merge) == [timestamp_ns + delta_ns]
    for timestamp_ns in too_far:
        merge = started(1)
        merge.shift(0, delta_ns)
        with pytest.raises(CorruptError, match="timestamp does not fit the output"):
            merge.receive_data(0, NG + packet(timestamp_ns))
        merge = started(1)
        merge.shift(0, delta_ns)
        merge.trust(0)
        with pytest.raises(CorruptError, match="statistics block has a time"):
            merge.receive_data(0, NG + statistics(timestamp_ns))
        assert times(merge) == []


def test_shift_of_classic_pcap():
    merge = started(1)
    merge.shift(0, -2 * S)
    merge.receive_data(0, pcap([Record(3 * S)]))
    with pytest.raises(CorruptError, match="timestamp does not fit"):
        merge.receive_data(0, pcap([Record(2 * S - 1000)])[24:])
    assert times(merge) == [S]


def test_shift_in_pcapng_goes_to_the_end_of_63_bits():
    merge = Merge(1, nano=True, pcapng=True)
    merge.start(SLL)
    merge.shift(0, 7)
    merge.receive_data(0, NG + packet((1 << 63) - 8))
    with pytest.raises(CorruptError, match="timestamp does not fit"):
        merge.receive_data(0, packet((1 << 63) - 7))
    ((_, units, _),) = parse_blocks(drain(merge))
    assert units == (1 << 63) - 1


def test_shift_has_bounds():
    merge = started(1)
    for delta_ns in ((1 << 62) + 1, -(1 << 62) - 1):
        with pytest.raises(ValueError, match="a shift of"):
            merge.shift(0, delta_ns)
    with pytest.raises(OverflowError):
        merge.shift(0, 1 << 63)


def test_a_shift_that_was_far_leaves_a_watermark_that_is_one():
    merge = started(1)
    merge.shift(0, 1 << 62)
    merge.reopen(0, since_ns=(1 << 63) - 1)
    assert merge.watermark(0) == (1 << 63) - 1
    merge.shift(0, -(1 << 62))
    merge.reopen(0, since_ns=-(1 << 63))
    assert merge.watermark(0) == -(1 << 63)


# --- How far it is ---


def test_progress_of_pcap():
    merge = started(1)
    assert merge.progress(0) == (0, 0, -1)
    data = pcap([Record(5 * S, b"abc"), Record(2 * S)])
    merge.receive_data(0, data[:23])
    assert merge.progress(0) == (0, 0, -1)
    merge.receive_data(0, data[23:42])
    assert merge.progress(0) == (24, 24, -1)
    merge.receive_data(0, data[42:58])
    assert merge.progress(0) == (43, 24, 5 * S)
    merge.receive_data(0, data[58:])
    assert merge.progress(0) == (59, 24, 5 * S)
    merge.receive_eof(0)
    assert merge.progress(0) == (59, 24, 5 * S)


def test_progress_of_pcapng():
    merge = started(1)
    merge.receive_data(0, NG)
    assert merge.progress(0) == (len(NG), len(NG), -1)
    skipped = block(99, bytes(100))
    merge.receive_data(0, skipped[:-1])
    assert merge.progress(0) == (len(NG), len(NG), -1)
    merge.receive_data(0, skipped[-1:] + statistics(0))
    first = len(NG) + len(skipped) + 24
    assert merge.progress(0) == (first, first, -1)
    merge.receive_data(0, packet(S) + statistics(9 * S))
    assert merge.progress(0) == (first + 36 + 24, first, S)
    # What is described anew belongs to what packets need from here on.
    again = section() + interface(tsresol=9)
    merge.receive_data(0, again + statistics(10 * S))
    second = first + 36 + 24 + len(again) + 24
    assert merge.progress(0) == (second, second, S)
    merge.receive_data(0, packet(S))
    assert merge.progress(0) == (second + 36, second, S)


def test_an_input_that_sent_nothing():
    merge = started(1)
    assert merge.heartbeat(0) is None
    merge.receive_data(0, pcap_header()[:3])
    assert merge.progress(0) == (0, 0, -1)
