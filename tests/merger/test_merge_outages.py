"""Inputs that are not waited for, come back, and bring again what they had brought."""

from __future__ import annotations

import threading

import pytest

from ddump_common.errors import BadMagicError, CorruptError, FormatError, TruncatedError
from ddump_merger._merge import Merge, Seam
from ddump_merger.counters import Counters
from support.captures import (
    SLL,
    SLL2,
    Cooked,
    Record,
    enhanced_packet,
    interface,
    parse_records,
    pcap,
    pcap_header,
    pcap_record,
    pcapng,
    section,
    statistics,
)
from support.merges import drain

S = 1_000_000_000
NG = section() + interface(tsresol=9)
HEADER = pcap_header(nano=True)
NEVER = -(1 << 63)


def record(timestamp_ns, data=b"x"):
    return pcap_record(Record(timestamp_ns, data), nano=True)


def packet(timestamp_ns, data=b"x"):
    return enhanced_packet(timestamp_ns, Record(0, data))


def started(inputs, *, link_type=SLL, disorder_ns=0, **options):
    """A merge whose inputs have sent the header of a capture."""
    merge = Merge(inputs, nano=True, disorder_ns=disorder_ns, **options)
    merge.start(link_type)
    for i in range(inputs):
        merge.receive_data(i, HEADER)
    return merge


def times(merge):
    return [each.timestamp_ns for each in parse_records(drain(merge), nano=True)]


def texts(merge):
    return [each.data for each in parse_records(drain(merge), nano=True)]


# --- Suspended ---


def test_a_suspended_input_is_not_waited_for():
    merge = started(2)
    merge.receive_data(0, record(1 * S) + record(5 * S))
    merge.receive_data(1, record(2 * S))
    assert times(merge) == [1 * S, 2 * S]
    merge.suspend(1)
    merge.suspend(1)
    assert merge.lagging() == 0
    assert merge.watermark(1) == 2 * S
    assert times(merge) == [5 * S]
    merge.receive_eof(0)
    assert merge.lagging() == -1
    assert not merge.done


def test_what_a_suspended_input_brings_goes_out():
    merge = started(2)
    merge.suspend(1)
    merge.receive_data(0, record(4 * S))
    merge.receive_data(1, record(6 * S) + record(3 * S) + record(5 * S))
    assert times(merge) == [3 * S, 4 * S]  # what is later waits for the others
    assert merge.watermark(1) == 6 * S
    merge.receive_data(1, record(2 * S))
    assert times(merge) == [2 * S]
    merge.receive_data(0, record(7 * S))
    assert times(merge) == [5 * S, 6 * S, 7 * S]
    assert merge.counters(1) == Counters(4, 4, late=1)


def test_resume_waits_again_from_where_it_came_to():
    merge = started(2)
    merge.suspend(1)
    merge.receive_data(1, record(6 * S))
    merge.advance(1, 7 * S)
    merge.receive_data(0, record(6 * S) + record(8 * S))
    merge.resume(1)
    merge.resume(1)
    assert merge.lagging() == 1
    assert times(merge) == [6 * S, 6 * S]
    merge.advance(1, 9 * S)
    assert times(merge) == [8 * S]


def test_all_suspended():
    merge = started(2)
    for i in range(2):
        merge.suspend(i)
        merge.receive_data(i, record((9 - i) * S))
    assert merge.lagging() == -1
    assert times(merge) == [8 * S, 9 * S]
    assert not merge.done
    for i in range(2):
        merge.receive_eof(i)
    assert merge.done


def test_an_ended_input_that_is_resumed_stays_ended():
    merge = started(2)
    merge.suspend(0)
    merge.receive_eof(0)
    merge.resume(0)
    assert merge.lagging() == 1
    merge.suspend(1)
    merge.refuse(1)
    assert merge.done


@pytest.mark.parametrize("live", [False, True])
def test_over_its_limit_a_suspended_input_forces_the_merge_only_when_live(live):
    merge = started(2)
    merge.limit(1, 20_000, live=live)
    merge.suspend(1)
    merge.advance(0, 3 * S - 1)
    for n in range(100):
        merge.receive_data(1, record(3 * S + n, bytes(1000)))
    out = times(merge)
    if live:
        assert merge.buffered(1) <= 20_000
        assert 70 < len(out) < 100
    else:
        assert out == []
        merge.advance(0, 4 * S)
        assert len(times(merge)) == 100


def test_a_window_does_not_force_by_the_watermark_that_it_is_not_held_to():
    merge = started(2)
    merge.limit(1, 1000, live=False)
    merge.suspend(1)
    merge.advance(0, 3 * S - 1)
    merge.advance(1, 3 * S - 1)
    for _ in range(100):
        merge.receive_data(1, record(1 * S, bytes(100)))
    assert len(times(merge)) == 100  # in turn: input 0 has nothing as early as that
    for _ in range(100):
        merge.receive_data(1, record(4 * S, bytes(100)))
    assert times(merge) == []
    merge.reopen(1, since_ns=3 * S - 1)  # by chance where input 0 is, too
    assert times(merge) == []
    merge.resume(1)  # now it is one of the two that hold back
    assert len(times(merge)) > 90


# --- Opened anew ---


def test_reopen_goes_on_and_what_was_brought_stays():
    merge = started(2)
    merge.receive_data(0, record(1 * S) + record(2 * S, b"torn")[:-1])
    merge.receive_data(1, record(9 * S))
    with pytest.raises(TruncatedError):
        merge.receive_eof(0)
    merge.reopen(0, since_ns=1 * S)
    assert merge.link_type(0) is None
    assert merge.progress(0) == (0, 0, -1)
    assert merge.lagging() == 0
    assert merge.watermark(0) == S
    assert times(merge) == [1 * S]
    merge.receive_data(0, pcapng([Record(2 * S, b"whole")], byte_order=">"))
    assert merge.link_type(0) == SLL
    assert texts(merge) == [b"whole"]
    assert merge.counters(0) == Counters(2, 6)
    merge.receive_eof(0)
    merge.receive_eof(1)
    assert times(merge) == [9 * S]
    assert merge.done


def test_reopen_of_an_open_input_forgets_what_was_not_whole():
    merge = started(1)
    merge.receive_data(0, record(5 * S) + record(6 * S, bytes(5000))[:-1])
    assert merge.buffered(0) > 5000
    merge.reopen(0, since_ns=4 * S)
    assert merge.watermark(0) == 4 * S
    merge.receive_data(0, HEADER + record(5 * S, b"again"))
    assert texts(merge) == [b"x", b"again"]
    assert merge.buffered(0) == 0
    merge.reopen(0, since_ns=0)
    with pytest.raises(TruncatedError, match="it has not even a header"):
        merge.receive_eof(0)


def test_reopen_in_the_middle_of_everything():
    for cut in range(1, len(NG) + 40):
        merge = Merge(1, nano=True)
        merge.start(SLL)
        data = NG + interface(tsresol=9) + packet(S)
        merge.receive_data(0, data[:cut])
        merge.reopen(0, since_ns=0)
        merge.receive_data(0, pcap([Record(7 * S)]))
        merge.receive_eof(0)
        assert times(merge) == [7 * S]
        assert merge.buffered(0) == 0


def test_a_merge_that_was_done_is_not_when_an_input_is_open_again():
    merge = started(2)
    merge.receive_eof(0)
    merge.receive_eof(1)
    assert merge.done
    assert merge.watermark(1) == (1 << 63) - 1
    merge.reopen(1, since_ns=0)
    assert not merge.done
    assert merge.lagging() == 1
    merge.receive_data(1, HEADER + record(S))
    merge.receive_eof(1)
    assert not merge.done
    assert times(merge) == [S]
    assert merge.done
    merge.refuse(1)
    merge.reopen(1, since_ns=0)
    merge.receive_data(1, HEADER + record(S))
    assert times(merge) == [S]
    assert not merge.done


def test_after_a_fault():
    merge = started(1)
    with pytest.raises(CorruptError):
        merge.receive_data(0, record(S) + b"\xff" * 16)
    merge.reopen(0, since_ns=S)
    merge.receive_data(0, HEADER + record(2 * S))
    merge.receive_eof(0)
    assert times(merge) == [S, 2 * S]


def test_suspended_and_opened_anew():
    merge = started(2)
    merge.receive_data(0, record(5 * S))
    merge.suspend(0)
    with pytest.raises(TruncatedError):
        merge.receive_data(0, record(6 * S)[:5]) or merge.receive_eof(0)
    merge.reopen(0, since_ns=5 * S)
    assert merge.lagging() == 1  # not waited for yet
    merge.receive_data(1, record(9 * S))
    assert times(merge) == [5 * S, 9 * S]
    assert merge.released_ns == 9 * S
    assert merge.watermark(0) == 5 * S
    merge.receive_data(0, HEADER + record(6 * S) + record(8 * S))
    assert times(merge) == [6 * S, 8 * S]
    assert merge.counters(0).late == 2
    merge.resume(0)
    merge.receive_data(1, record(10 * S))
    assert times(merge) == []
    merge.receive_data(0, record(11 * S))
    assert times(merge) == [10 * S]


def test_trust_and_refill_end_with_the_capture():
    merge = started(1)
    merge.trust(0)
    merge.refill(0, 99 * S)
    merge.reopen(0, since_ns=0)
    merge.receive_data(0, NG + packet(S) + statistics(9 * S))
    assert merge.watermark(0) == S
    assert times(merge) == [S]
    assert merge.counters(0) == Counters(1, 1)
    merge.trust(0)
    assert merge.watermark(0) == 9 * S
    merge.receive_data(0, statistics(8 * S))
    merge.reopen(0, since_ns=0)
    assert merge.heartbeat(0) is None
    merge.trust(0)
    assert merge.watermark(0) == 0
    merge.receive_data(0, NG + statistics(2 * S) + statistics(S))
    assert merge.heartbeat(0).blocks == 2
    assert merge.counters(0).backwards == 2  # of both captures


def test_since_is_by_the_inputs_own_clock():
    merge = started(1)
    merge.shift(0, -3 * S)
    merge.reopen(0, since_ns=10 * S)
    assert merge.watermark(0) == 7 * S


def test_reopen_needs_a_merge_that_was_started():
    merge = Merge(1)
    with pytest.raises(ValueError, match="has not been started"):
        merge.reopen(0, since_ns=0)


def test_no_such_input():
    merge = started(1)
    for call in (merge.suspend, merge.resume, merge.trust, merge.heartbeat):
        for i in (-1, 1):
            with pytest.raises(IndexError, match="there is no input"):
                call(i)
    for call in (merge.shift, merge.refill):
        with pytest.raises(IndexError):
            call(1, 0)
    for call in (merge.progress, merge.watermark):
        with pytest.raises(IndexError):
            call(1)
    with pytest.raises(IndexError):
        merge.reopen(1, since_ns=0)
    with pytest.raises(IndexError):
        merge.describe(1, 0, 0)


# --- Link types ---

PACKET = Cooked(packet_type=4, payload=b"payload")


@pytest.mark.parametrize("link_type", [SLL, SLL2])
def test_each_record_is_converted_from_what_it_came_as(link_type):
    merge = Merge(2, nano=True, disorder_ns=0)
    merge.start(link_type)
    captures = [
        pcap([Record(1 * S, PACKET.sll2())], nano=True, link_type=SLL2),
        pcap([Record(2 * S, PACKET.sll())], nano=True),
        pcapng([Record(3 * S, PACKET.sll2())], link_type=SLL2),
        pcapng([Record(4 * S, PACKET.sll())]),
    ]
    for capture in captures:  # nothing leaves in between: input 1 is waited for
        merge.reopen(0, since_ns=0)
        merge.receive_data(0, capture)
    assert drain(merge) == b""
    merge.receive_eof(0)
    merge.refuse(1)
    written = PACKET.sll() if link_type == SLL else PACKET.sll2()
    assert parse_records(drain(merge), nano=True) == [
        Record(n * S, written) for n in range(1, 5)
    ]


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_a_link_type_that_does_not_fit_takes_nothing_with_it(make):
    merge = started(2)
    merge.receive_data(0, record(S))
    merge.reopen(0, since_ns=0)
    with pytest.raises(FormatError, match="link type 1 cannot become the output's 113"):
        merge.receive_data(0, make([Record(2 * S)], link_type=1))
    assert merge.link_type(0) == 1
    merge.receive_eof(1)
    assert times(merge) == [S]
    assert merge.done


# --- Asked for once more ---


def test_refilled_records_are_not_late_and_make_nobody_late():
    merge = started(2)
    merge.suspend(0)
    merge.receive_data(1, record(5 * S))
    assert times(merge) == [5 * S]
    merge.reopen(0, since_ns=2 * S)
    merge.refill(0, 8 * S)
    assert merge.released_ns == 5 * S
    merge.receive_data(0, HEADER + b"".join(record(n * S) for n in (2, 4, 3, 7, 8, 1)))
    assert times(merge) == [1 * S, 2 * S, 3 * S, 4 * S]
    merge.advance(1, 9 * S)
    assert times(merge) == [7 * S, 8 * S]
    assert merge.released_ns == 8 * S
    assert merge.counters(0) == Counters(6, 6, refilled=5)
    # 7 s is out, but for what is late only 8 s counts, which was no refill.
    merge.receive_data(1, record(7 * S))
    assert times(merge) == [7 * S]
    assert merge.counters(1) == Counters(2, 2, late=1)


def test_a_forced_refill_does_not_break_the_order_of_the_others():
    merge = started(2)
    merge.limit(0, 10_000, live=True)
    merge.suspend(0)
    merge.refill(0, 100 * S)
    merge.receive_data(1, record(2 * S))
    assert times(merge) == [2 * S]
    merge.receive_data(0, b"".join(record(50 * S, bytes(1000)) for _ in range(50)))
    assert len(times(merge)) > 30
    assert merge.released_ns == 2 * S
    merge.receive_data(1, record(4 * S) + record(3 * S))
    assert times(merge) == [3 * S, 4 * S]
    assert merge.counters(1) == Counters(3, 3)


def test_what_is_late_of_an_input_that_catches_up_is_refilled():
    """Until it is waited for again: what is older than what was out then."""
    merge = started(2)
    merge.suspend(0)
    merge.reopen(0, since_ns=0)
    merge.refill(0, 2 * S)
    merge.receive_data(1, record(9 * S))
    merge.receive_eof(1)
    assert times(merge) == [9 * S]
    merge.receive_data(0, HEADER + record(S) + record(5 * S))
    assert times(merge) == [S, 5 * S]
    merge.resume(0)
    merge.receive_data(0, record(7 * S))
    assert times(merge) == [7 * S]
    assert merge.counters(0) == Counters(3, 3, refilled=3)
    merge.receive_data(0, record(8 * S) + record(12 * S))
    merge.advance(0, 12 * S)
    assert times(merge) == [8 * S, 12 * S]
    merge.receive_data(0, record(8 * S) + record(10 * S))
    merge.receive_eof(0)
    assert times(merge) == [8 * S, 10 * S]
    assert merge.counters(0) == Counters(7, 7, late=1, refilled=5)


def test_an_input_that_is_where_the_others_are_has_nothing_to_catch_up():
    merge = started(2)
    merge.receive_data(1, record(5 * S))
    merge.receive_eof(1)
    merge.suspend(0)
    assert times(merge) == [5 * S]
    merge.reopen(0, since_ns=5 * S)
    merge.refill(0, 5 * S)
    merge.resume(0)
    merge.receive_data(0, HEADER + record(6 * S) + record(5 * S - 1))
    merge.receive_eof(0)
    assert times(merge) == [5 * S - 1, 6 * S]
    assert merge.counters(0).refilled == 1  # before what it was to be refilled until


def test_refill_is_by_the_inputs_own_clock_and_for_what_comes_from_now_on():
    merge = started(1)
    merge.shift(0, 10 * S)
    merge.receive_data(0, record(1 * S))
    merge.refill(0, 3 * S)
    merge.receive_data(0, record(3 * S - 1) + record(3 * S))
    assert times(merge) == [11 * S, 13 * S - 1, 13 * S]
    assert merge.counters(0).refilled == 1


# --- The seam ---


def seam_of(*parts, since_ns=NEVER):
    seam = Seam(since_ns)
    for part in parts:
        seam.receive_data(part)
    return seam


def test_what_came_before_is_left_out():
    before = [Record(S, b"a"), Record(S, b"b"), Record(2 * S, b"c")]
    after = [
        Record(S, b"b"),
        Record(S, b"a"),
        Record(2 * S, b"c"),
        Record(2 * S, b"d"),
        Record(3 * S, b"e"),
    ]
    seam = seam_of(pcapng(before))
    assert len(seam) == 3
    merge = started(1)
    merge.reopen(0, since_ns=S, seam=seam)
    merge.receive_data(0, pcap(after, nano=True, byte_order=">"))
    assert texts(merge) == [b"d", b"e"]
    assert len(seam) == 0
    assert merge.counters(0) == Counters(2, 2, joined=3)


@pytest.mark.parametrize(
    "other",
    [
        Record(S + 1, b"abc", 9),
        Record(S - 1, b"abc", 9),
        Record(S, b"abx", 9),
        Record(S, b"abc", 10),
        Record(S, b"abc\0", 9),
        Record(S, b"ab", 9),
        Record(S, b"", 9),
    ],
)
def test_what_differs_in_anything_is_another(other):
    seam = seam_of(pcapng([Record(S, b"abc", 9)]))
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.receive_data(0, pcapng([other]))
    assert parse_records(drain(merge), nano=True) == [other]
    assert merge.counters(0).joined == 0
    assert len(seam) == 1


def test_each_is_left_out_as_often_as_it_came():
    same = Record(S, b"same")
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([same] * 3)))
    merge.receive_data(0, pcapng([same] * 5))
    assert texts(merge) == [b"same"] * 2
    assert merge.counters(0).joined == 3


def test_earlier_ones_are_not_kept():
    seam = seam_of(pcapng([Record(S - 1), Record(S), Record(S + 1)]), since_ns=S)
    assert len(seam) == 2
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.receive_data(0, pcapng([Record(S - 1), Record(S), Record(S + 1)]))
    assert times(merge) == [S - 1]


def test_what_two_streams_brought_had_come_once():
    same = Record(S, b"same")
    seam = seam_of(pcapng([same, same, Record(S, b"first")])[:-1])
    assert len(seam) == 2  # the last was cut
    seam.next_stream()
    seam.receive_data(pcap([same, Record(S, b"first"), Record(S, b"other")]))
    assert len(seam) == 4
    assert seam.octets == 4 + 4 + 5 + 5
    seam.next_stream()
    seam.receive_data(pcapng([same] * 3))
    assert len(seam) == 5
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.receive_data(
        0, pcapng([same] * 4 + [Record(S, b"first"), Record(S, b"other")] * 2)
    )
    assert texts(merge) == [b"same", b"first", b"other"]
    with pytest.raises(ValueError, match="takes no more"):
        seam.next_stream()


def test_received_counts_what_has_not_left_and_not_what_was_left_out():
    merge = started(2)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([Record(S)])))
    merge.receive_data(
        0, pcapng([Record(S), Record(2 * S, b"ab"), Record(3 * S, b"c")])
    )
    assert merge.received(0) == (2, 3)
    merge.advance(1, 3 * S)
    assert times(merge) == [2 * S, 3 * S]
    assert merge.received(0) == (2, 3)
    assert merge.received(1) == (0, 0)


def test_joined_records_are_read_like_others():
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([Record(5 * S)])))
    merge.trust(0)
    merge.refill(0, 99 * S)
    merge.receive_data(0, pcapng([Record(5 * S)]) + statistics(4 * S))
    assert merge.heartbeat(0).read == 1
    assert merge.progress(0)[1:] == (len(NG), 5 * S)
    assert merge.watermark(0) == 5 * S
    assert merge.counters(0) == Counters(joined=1)
    assert merge.buffered(0) < 200


def test_the_seam_is_by_the_inputs_own_clock():
    merge = started(1)
    merge.shift(0, 7 * S)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([Record(S)])))
    merge.receive_data(0, pcapng([Record(S), Record(8 * S)]))
    assert times(merge) == [15 * S]


def test_the_seam_goes_when_a_promise_has_passed_it():
    seam = seam_of(pcapng([Record(S), Record(2 * S)]))
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.trust(0)
    merge.receive_data(0, NG + statistics(2 * S) + packet(S, b""))
    assert len(seam) == 1
    merge.receive_data(0, statistics(2 * S + 1))
    merge.receive_data(0, packet(2 * S, b""))  # whoever breaks a promise is not joined
    assert merge.counters(0).joined == 1
    assert len(seam) == 1


def test_of_one_who_is_not_trusted_it_stays():
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([Record(S), Record(2 * S)])))
    merge.receive_data(0, NG + statistics(9 * S) + packet(8 * S) + packet(S, b""))
    assert merge.counters(0).joined == 1


def test_a_seam_is_used_once():
    seam = seam_of(pcapng([Record(S)]))
    merge = started(2)
    merge.reopen(0, since_ns=0, seam=seam)
    with pytest.raises(ValueError, match="takes no more"):
        seam.receive_data(b"")
    merge.receive_eof(1)
    with pytest.raises(ValueError, match="the seam is in use"):
        merge.reopen(1, since_ns=0, seam=seam)
    assert merge.lagging() == 0
    merge.reopen(0, since_ns=0)  # without one
    merge.receive_data(0, pcapng([Record(S)]))
    assert times(merge) == [S]


def test_a_seam_outlives_the_merge_and_the_merge_the_seam():
    seam = seam_of(pcapng([Record(S)] * 5))
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    del merge
    assert len(seam) == 5
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam_of(pcapng([Record(S)] * 5)))
    merge.receive_data(0, pcapng([Record(S)] * 6))
    assert times(merge) == [S]


def test_no_capture_for_a_seam():
    for bad, error in (
        (b"<html>", BadMagicError),
        (pcap([Record(S)]) + b"\xff" * 16, CorruptError),
        (NG + statistics(0, number=3), CorruptError),
    ):
        seam = Seam(0)
        with pytest.raises(error):
            seam.receive_data(bad)
        with pytest.raises(ValueError, match="takes no more"):
            seam.receive_data(b"")
        merge = started(1)
        with pytest.raises(ValueError, match="its bytes were no capture"):
            merge.reopen(0, since_ns=0, seam=seam)
        assert merge.link_type(0) == SLL  # nothing has changed


def test_an_empty_seam():
    for seam in (Seam(0), seam_of(b""), seam_of(NG), seam_of(NG + packet(S)[:-1])):
        assert len(seam) == 0
        merge = started(1)
        merge.reopen(0, since_ns=0, seam=seam)
        merge.receive_data(0, NG + packet(S))
        assert times(merge) == [S]


def test_wrong_types():
    merge = started(1)
    with pytest.raises(TypeError):
        merge.reopen(0, since_ns=0, seam=object())
    with pytest.raises(TypeError):
        Seam(0).receive_data(None)
    with pytest.raises(OverflowError):
        Seam(1 << 63)


def test_a_seam_of_many_that_are_one_or_nearly():
    # What an enemy would send: equal packets, and packets that differ in little. Work
    # that is quadratic would take hours.
    count = 300_000
    equal = pcap_record(Record(S, b"equal"), nano=True) * count
    rising = b"".join(record(S + n, b"") for n in range(count))
    seam = seam_of(HEADER, equal, rising)
    assert len(seam) == 2 * count
    merge = started(1)
    merge.reopen(0, since_ns=0, seam=seam)
    merge.receive_data(0, HEADER + rising + equal)
    assert merge.counters(0).joined == 2 * count
    assert merge.data_to_send() == b""


def test_a_merge_is_not_changed_while_a_loop_runs():
    merge = started(1)
    chunk = b"".join(record(S, b"") for n in range(200_000))
    used = Seam(0)
    other = started(1)
    other.reopen(0, since_ns=0, seam=used)
    calls = {
        "trust": lambda: merge.trust(0),
        "shift": lambda: merge.shift(0, 0),
        "suspend": lambda: merge.suspend(0),
        "resume": lambda: merge.resume(0),
        "refill": lambda: merge.refill(0, 0),
        "reopen": lambda: merge.reopen(0, since_ns=0, seam=used),
        "undescribed": merge.undescribed,
        "describe": lambda: merge.describe(0, 0, 0),
    }
    told = {}
    enough = threading.Event()

    def work():
        while not enough.is_set():
            merge.receive_data(0, chunk)
            drain(merge)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive() and told.keys() != calls.keys():
        for name, call in calls.items():
            try:
                call()
            except RuntimeError as exc:
                told[name] = str(exc)
            except ValueError:  # the seam was used: what is not busy refuses it
                assert name == "reopen"
    enough.set()
    thread.join()
    assert told == dict.fromkeys(calls, "a merge cannot be used by two threads at once")
