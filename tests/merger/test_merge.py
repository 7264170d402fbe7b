"""The merge: what leaves when, in which order, and what is counted."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest

from ddump_common.errors import CorruptError, FormatError
from ddump_merger._merge import Merge
from ddump_merger.counters import Counters
from support.captures import (
    SLL,
    SLL2,
    Record,
    interface,
    parse_records,
    pcap,
    pcap_header,
    pcap_record,
    pcapng,
    section,
)
from support.merges import drain, merge_whole

MS = 1_000_000
S = 1_000_000_000
NANO_HEADER = pcap_header(nano=True)


def record(timestamp_ns, data=b"x"):
    return pcap_record(Record(timestamp_ns, data), nano=True)


def started(inputs, *, link_type=SLL, **options):
    """A merge whose inputs have sent their headers, with nanoseconds on both sides."""
    merge = Merge(inputs, nano=True, **options)
    merge.start(link_type)
    for i in range(inputs):
        merge.receive_data(i, NANO_HEADER)
    return merge


def times(data):
    return [each.timestamp_ns for each in parse_records(data, nano=True)]


def texts(data):
    return b"".join(each.data for each in parse_records(data, nano=True))


# --- What comes out, to the byte ---


def test_golden_pcap():
    first = bytes.fromhex(
        "d4c3b2a1 0200 0400 00000000 00000000 00000400 71000000"
        "01000000 02000000 03000000 09000000 616263"
        "03000000 04000000 00000000 00000000"
    )
    second = bytes.fromhex(  # the other byte order, in nanoseconds
        "a1b23c4d 0002 0004 00000000 00000000 00040000 00000071"
        "00000002 3b9ac9ff 00000001 00000001 7a"
    )
    assert merge_whole([first, second]) == bytes.fromhex(
        "01000000 02000000 03000000 09000000 616263"
        "02000000 3f420f00 01000000 01000000 7a"
        "03000000 04000000 00000000 00000000"
    )
    assert merge_whole([first, second], nano=True) == bytes.fromhex(
        "01000000 d0070000 03000000 09000000 616263"
        "02000000 ffc99a3b 01000000 01000000 7a"
        "03000000 a00f0000 00000000 00000000"
    )


def test_golden_pcapng():
    first = NANO_HEADER + pcap_record(Record(0xF_FFFFFFFF, b"abcde", 7), nano=True)
    second = NANO_HEADER + pcap_record(Record(0x10_00000000, b"wxyz"), nano=True)
    assert merge_whole([first, second], nano=True, pcapng=True) == bytes.fromhex(
        "06000000 28000000 00000000 0f000000 ffffffff 05000000 07000000"
        "6162636465 000000 28000000"
        "06000000 24000000 01000000 10000000 00000000 04000000 04000000"
        "7778797a 24000000"
    )
    assert merge_whole([second], pcapng=True) == bytes.fromhex(
        "06000000 24000000 00000000 00000000 74931804 04000000 04000000"
        "7778797a 24000000"
    )


def test_a_time_far_ahead_of_classic_pcap_goes_into_pcapng():
    far = (
        section()
        + interface(tsresol=9)
        + bytes.fromhex(
            "06000000 20000000 00000000 ffffff7f ffffffff 00000000 00000000 20000000"
        )
    )
    assert merge_whole([far], nano=True, pcapng=True) == bytes.fromhex(
        "06000000 20000000 00000000 ffffff7f ffffffff 00000000 00000000 20000000"
    )
    with pytest.raises(CorruptError, match="timestamp does not fit") as caught:
        merge_whole([far])
    assert caught.value.offset == len(section() + interface(tsresol=9))


# --- Order ---


def test_order_is_time_then_input_then_arrival():
    captures = [
        pcap([Record(2 * S, b"a"), Record(5 * S, b"b"), Record(5 * S, b"c")]),
        pcap([Record(5 * S, b"d"), Record(1 * S, b"e"), Record(5 * S, b"f")]),
        pcap([Record(2 * S, b"g"), Record(1 * S, b"h")]),
    ]
    merged = parse_records(merge_whole(captures))
    assert b"".join(each.data for each in merged) == b"ehagbcdf"


def test_stragglers_keep_their_order_among_equals():
    # 9 opens the chain; all else goes to the heap, where equal times must stay in order.
    data = [b"%d" % n for n in range(10)]
    records = [Record(9 * S, b"X")] + [Record((n % 3) * S, data[n]) for n in range(10)]
    merged = parse_records(merge_whole([pcap(records)]))
    assert b"".join(each.data for each in merged) == b"0369147258X"


def test_a_thousand_inputs():
    captures = [
        pcap([Record((n * 7919 % 1000 + k * 1000) * 1000) for k in range(3)])
        for n in range(1000)
    ]
    merged = parse_records(merge_whole(captures))
    assert [each.timestamp_ns for each in merged] == [n * 1000 for n in range(3000)]


def test_total_disorder_is_sorted():
    count = 20_000
    records = [Record((count - n) * 1000) for n in range(count)]
    merged = parse_records(merge_whole([pcap(records)]))
    assert merged == records[::-1]


# --- Watermarks ---


def test_a_record_waits_for_every_open_input():
    merge = started(2, disorder_ns=0)
    merge.receive_data(0, record(5 * S))
    assert merge.data_to_send() == b""
    merge.receive_data(1, record(4 * S))
    assert times(merge.data_to_send()) == [4 * S]
    merge.receive_data(1, record(6 * S))
    assert times(merge.data_to_send()) == [5 * S]


def test_disorder_holds_back():
    merge = started(1)
    merge.receive_data(0, record(S) + record(S + 50 * MS - 1))
    assert merge.data_to_send() == b""
    merge.receive_data(0, record(S + 50 * MS))
    assert times(merge.data_to_send()) == [S]
    merge.receive_data(0, record(S + 10 * MS) + record(S + 100 * MS))
    assert times(merge.data_to_send()) == [S + 10 * MS, S + 50 * MS - 1, S + 50 * MS]
    merge.receive_eof(0)
    assert times(merge.data_to_send()) == [S + 100 * MS]
    assert merge.counters(0) == Counters(5, 5, 0, 0)


def test_at_the_watermark_the_lower_input_is_waited_for():
    # Input 0 may still deliver another record at 5: input 1's belongs behind it.
    merge = started(2, disorder_ns=0)
    merge.receive_data(1, record(5 * S, b"b") + record(6 * S))
    merge.receive_data(0, record(5 * S, b"a"))
    assert texts(merge.data_to_send()) == b"a"
    merge.receive_data(0, record(5 * S, b"A") + record(5 * S + 1, b"c"))
    assert texts(merge.data_to_send()) == b"Abc"


def test_a_later_head_is_not_behind_what_left_at_its_time():
    # After a record at 5 left, another one at 5 is not late, and must wait like others.
    merge = started(2, disorder_ns=0)
    merge.receive_data(0, record(5 * S, b"a"))
    merge.receive_data(1, record(5 * S, b"b"))
    assert texts(drain(merge)) == b"a"
    merge.advance(0, 5 * S + 1)
    assert texts(drain(merge)) == b"b"
    assert merge.counters(1) == Counters(1, 1, 0, 0)


def test_advance_moves_on_and_never_back():
    merge = started(2)
    merge.receive_data(0, record(5 * S))
    merge.advance(0, 6 * S)
    assert merge.data_to_send() == b""
    merge.advance(1, 6 * S)
    merge.advance(0, 2 * S)
    merge.advance(1, -(2**63))
    assert times(merge.data_to_send()) == [5 * S]


def test_advance_of_an_ended_input_changes_nothing():
    merge = started(2)
    merge.receive_data(1, record(5 * S))
    merge.receive_eof(0)
    merge.advance(0, 1)
    assert merge.lagging() == 1
    assert merge.data_to_send() == b""


def test_lagging_names_the_input_waited_for():
    merge = started(3, disorder_ns=0)
    assert merge.lagging() == 0
    merge.receive_data(0, record(5 * S))
    assert merge.lagging() == 1
    merge.receive_data(1, record(4 * S))
    assert merge.lagging() == 2
    merge.receive_data(2, record(6 * S))
    assert merge.lagging() == 1
    merge.receive_eof(1)
    assert merge.lagging() == 0
    merge.refuse(0)
    assert merge.lagging() == 2
    merge.receive_eof(2)
    assert merge.lagging() == -1


def test_an_input_without_a_record_holds_back():
    merge = started(2)
    merge.receive_data(0, record(5 * S))
    merge.receive_eof(0)
    assert merge.data_to_send() == b""
    assert not merge.done
    merge.receive_eof(1)
    assert times(merge.data_to_send()) == [5 * S]
    assert merge.done


# --- Late ---


def test_late_records_leave_at_once_and_are_counted():
    merge = started(2, disorder_ns=0)
    merge.receive_data(0, record(5 * S))
    merge.advance(1, 10 * S)
    assert times(merge.data_to_send()) == [5 * S]
    merge.receive_data(1, record(3 * S) + record(4 * S))
    assert times(merge.data_to_send()) == [3 * S, 4 * S]
    merge.receive_data(1, record(5 * S))  # not earlier: not late, but waits for input 0
    assert merge.data_to_send() == b""
    merge.receive_data(0, record(4 * S) + record(6 * S))
    assert times(merge.data_to_send()) == [4 * S, 5 * S, 6 * S]
    assert merge.counters(0) == Counters(3, 3, 1, 0)
    assert merge.counters(1) == Counters(3, 3, 2, 0)


# --- Limits ---


def many(start_ns, count, step_ns=MS, size=1000):
    return b"".join(record(start_ns + n * step_ns, bytes(size)) for n in range(count))


def test_a_live_input_over_its_limit_forces_the_oldest_out():
    merge = started(3, disorder_ns=0)
    merge.limit(0, 200_000, live=True)
    merge.receive_data(1, record(0) + record(S))
    merge.receive_data(0, record(S, b"first") + many(S + 1, 150))
    assert merge.buffered(0) > 150_000
    merge.receive_data(0, many(2 * S, 20))
    assert drain(merge) == b""  # input 2 is silent
    merge.receive_data(0, many(3 * S, 20))
    forced = times(drain(merge))
    assert forced[:3] == [0, S, S]  # whosever they are
    assert forced == sorted(forced)
    assert forced[-1] == S + 1 + 149 * MS  # the whole of its first chunk, no more
    assert merge.buffered(0) <= 200_000
    merge.receive_data(2, record(S))
    assert times(drain(merge)) == [S]
    assert merge.counters(1) == Counters(2, 2, 0, 0)
    assert merge.counters(2) == Counters(1, 1, 1, 0)
    assert merge.counters(0)[2] == 0


def test_a_window_over_its_limit_waits_for_the_others():
    merge = started(2)
    merge.limit(0, 10_000, live=False)
    merge.receive_data(0, many(S, 100))
    assert drain(merge) == b""
    assert merge.buffered(0) > 100_000


def test_a_window_that_holds_the_merge_back_itself_moves_on():
    merge = started(2, disorder_ns=10 * S)
    merge.limit(0, 50_000, live=False)
    merge.advance(1, 100 * S)
    data = many(S, 100)
    for at in range(0, len(data), 10_160):  # ten records at a time
        merge.receive_data(0, data[at : at + 10_160])
        forced = times(drain(merge))
        assert forced == sorted(forced)
        assert merge.buffered(0) <= 50_000
    assert merge.counters(0)[0] >= 50
    merge.receive_eof(0)
    drain(merge)
    assert merge.counters(0) == Counters(100, 100_000, 0, 0)


def test_windows_that_hold_back_together_both_move_on():
    merge = started(2, disorder_ns=S)
    for i in range(2):
        merge.limit(i, 20_000, live=False)
    for i in range(2):
        merge.receive_data(i, b"".join(many(n * MS, 1) for n in range(50)))
    drain(merge)
    # One chunk each, which its last record keeps: all had to go.
    assert [merge.buffered(i) for i in range(2)] == [0, 0]


def test_the_bound_is_64_mib_when_none_is_given():
    merge = started(1, disorder_ns=1000 * S)
    chunk = record(S, bytes(262_144)) * 8
    while merge.buffered(0) + len(chunk) + 1000 < 64 << 20:
        merge.receive_data(0, chunk)
        assert merge.data_to_send() == b""
    merge.receive_data(0, chunk)
    assert len(drain(merge)) >= len(chunk)
    assert (64 << 20) - 2 * len(chunk) < merge.buffered(0) <= 64 << 20


def test_nothing_is_forced_for_what_is_not_a_record():
    # Half a record is over the limit; to release others would not help.
    merge = started(2)
    merge.limit(0, 100, live=True)
    merge.receive_data(1, record(S))
    merge.receive_data(0, record(S, bytes(5000))[:-1])
    assert merge.buffered(0) > 4000
    assert merge.data_to_send() == b""


def test_an_ended_input_forces_nothing():
    merge = started(2)
    merge.limit(0, 100, live=True)
    merge.receive_data(0, many(S, 10))
    merge.receive_eof(0)
    assert merge.data_to_send() == b""


def test_buffered_counts_bytes_and_bookkeeping():
    merge = started(1)
    assert merge.buffered(0) == 0
    data = many(S, 100)
    merge.receive_data(0, data)
    assert merge.buffered(0) >= len(data) + 100 * 40
    merge.receive_data(0, data[:10])
    assert merge.buffered(0) >= len(data) + 100 * 40 + 10
    merge.receive_data(0, data[10:1016])
    merge.receive_eof(0)
    assert len(drain(merge)) == len(data) + 1016
    assert merge.buffered(0) == 0


def test_buffered_counts_stragglers():
    merge = started(1)
    merge.receive_data(0, b"".join(record(9 * S - n * MS, b"") for n in range(1000)))
    assert merge.buffered(0) >= 1000 * 40 + 16_000
    merge.receive_eof(0)
    assert len(times(drain(merge))) == 1000
    assert merge.buffered(0) == 0


# --- Ends ---


def test_refuse_forgets_what_was_not_released():
    merge = started(2, disorder_ns=0)
    merge.receive_data(0, record(1 * S) + record(5 * S))
    merge.receive_data(1, record(2 * S))
    assert times(drain(merge)) == [1 * S, 2 * S]
    merge.receive_data(0, record(5 * S)[:20])
    merge.refuse(0)
    assert merge.buffered(0) == 0
    assert merge.counters(0) == Counters(1, 1, 0, 0)
    merge.refuse(0)
    merge.receive_data(1, record(6 * S))
    merge.receive_eof(1)
    assert times(drain(merge)) == [6 * S]
    assert merge.done


def test_refuse_before_the_first_byte():
    merge = Merge(2)
    merge.refuse(1)
    merge.start(SLL)
    merge.receive_data(0, pcap([Record(S)]))
    merge.receive_eof(0)
    assert times(drain(merge)) == [S]


def test_an_ended_input_takes_no_more():
    merge = started(1)
    merge.receive_eof(0)
    merge.receive_eof(0)
    with pytest.raises(ValueError, match="input 0 has ended"):
        merge.receive_data(0, b"")


def test_an_error_keeps_what_came_before_and_frees_the_others():
    merge = started(2)
    merge.receive_data(1, record(3 * S))
    bad = record(2 * S) + record(4 * S)[:8] + b"\xff\xff\xff\xff" + bytes(100)
    with pytest.raises(CorruptError):
        merge.receive_data(0, bad)
    assert merge.lagging() == 1
    merge.receive_eof(0)  # has ended already: nothing more to say
    merge.receive_eof(1)
    assert times(drain(merge)) == [2 * S, 3 * S]
    assert merge.done


def test_max_packets():
    merge = started(2, disorder_ns=0, max_packets=3)
    merge.receive_data(0, many(S, 10))
    assert not merge.done
    merge.receive_eof(1)
    assert len(times(drain(merge))) == 3
    assert merge.done
    assert merge.data_to_send() == b""
    merge.receive_data(0, many(9 * S, 10))
    assert merge.data_to_send() == b""
    assert merge.counters(0)[0] == 3


def test_done_without_start():
    merge = Merge(1)
    merge.receive_data(0, pcap([Record(S)]))
    merge.receive_eof(0)
    assert merge.data_to_send() == b""
    assert not merge.done
    merge.start(SLL)
    assert not merge.done
    assert merge.data_to_send() != b""
    assert merge.done


def test_done_when_all_is_refused():
    merge = Merge(2)
    merge.refuse(0)
    assert not merge.done
    merge.refuse(1)
    assert merge.done


# --- Link types ---


def test_link_type_is_known_with_the_header():
    merge = Merge(2)
    header = pcap_header(link_type=0x1234567)
    merge.receive_data(0, header[:-1])
    assert merge.link_type(0) is None
    merge.receive_data(0, header[-1:])
    assert merge.link_type(0) == 0x1234567
    merge.receive_data(1, section() + interface(link_type=276)[:-1])
    assert merge.link_type(1) is None
    merge.receive_data(1, interface(link_type=276)[-1:])
    assert merge.link_type(1) == 276


def test_frame_check_sequence_bits_are_not_the_link_type():
    merge = Merge(1)
    merge.receive_data(0, pcap_header(link_type=0xF4000071))
    assert merge.link_type(0) == SLL


def test_other_link_types_pass_as_they_are():
    records = [Record(S, b"abc"), Record(2 * S, b"de", 1500)]
    captures = [pcap(records, link_type=1), pcapng(records, link_type=1)]
    merged = parse_records(merge_whole(captures, link_type=1))
    assert merged == [records[0], records[0], records[1], records[1]]


def test_start_refuses_what_cannot_be_converted():
    merge = Merge(3)
    merge.receive_data(0, pcap([Record(S)], link_type=SLL))
    merge.receive_data(1, pcap([Record(S)], link_type=1))
    for link_type, culprit in ((SLL, 1), (1, 0), (SLL2, 1), (101, 0)):
        with pytest.raises(ValueError, match=f"input {culprit} has link type"):
            merge.start(link_type)
    merge.receive_eof(1)
    with pytest.raises(ValueError, match="input 1 has link type 1"):
        merge.start(SLL)  # it still holds a record
    merge.refuse(1)
    merge.start(SLL)
    with pytest.raises(ValueError, match="has been started"):
        merge.start(SLL)


def test_an_input_that_comes_later_and_does_not_fit_ends():
    for capture in (
        pcap([Record(S)], link_type=1),
        pcapng([Record(S)], link_type=1),
        pcapng([Record(S)], link_type=228),
    ):
        merge = Merge(2, nano=True)
        merge.start(SLL)
        merge.receive_data(1, pcap([Record(2 * S)]))
        with pytest.raises(FormatError, match="cannot become the output's 113"):
            merge.receive_data(0, capture)
        assert merge.buffered(0) == 0
        assert merge.link_type(0) in {1, 228}
        merge.receive_eof(1)
        assert times(drain(merge)) == [2 * S]
        assert merge.counters(0) == Counters(0, 0, 0, 0)


# --- Output ---


def test_data_to_send_is_bounded_fresh_and_constant():
    merge = started(1)
    sent = many(S, 2000, size=777)
    merge.receive_data(0, sent)
    merge.receive_eof(0)
    parts = []
    while part := merge.data_to_send():
        parts.append((part, bytes(bytearray(part))))
    assert b"".join(part for part, _ in parts) == sent
    assert all(part == copy for part, copy in parts)
    assert len({id(part) for part, _ in parts}) == len(parts)
    assert all(200_000 < len(part) <= 263_000 for part, _ in parts[:-1])
    part, copy = parts[0]
    assert sys.getrefcount(part) == sys.getrefcount(copy)


@pytest.mark.parametrize("pcapng_out", [False, True])
def test_the_largest_packets(pcapng_out):
    records = [Record(S, bytes([n]) * 262_144, 0xFFFFFFFF) for n in range(3)]
    merge = Merge(1, pcapng=pcapng_out, nano=True)
    merge.start(SLL)
    merge.receive_data(0, pcap(records, nano=True))
    merge.receive_eof(0)
    if pcapng_out:
        merge.describe(0, 0, 0)
    sizes = []
    while part := merge.data_to_send():
        sizes.append(len(part))
        assert part.count(bytes([len(sizes) - 1])) >= 262_144
    assert sizes == [262_144 + (32 if pcapng_out else 16)] * 3


def test_received_chunks_are_kept_by_reference_and_given_back():
    merge = started(1, disorder_ns=0)
    chunk = many(S, 10)
    references = sys.getrefcount(chunk)
    merge.receive_data(0, chunk)
    assert sys.getrefcount(chunk) == references + 1
    merge.advance(0, 10 * S)
    assert drain(merge) == chunk
    assert sys.getrefcount(chunk) == references
    merge.receive_data(0, chunk)
    merge.refuse(0)
    assert sys.getrefcount(chunk) == references


def test_a_merge_that_goes_gives_everything_back():
    chunk = many(S, 10) + record(2 * S)[:-1]
    references = sys.getrefcount(chunk)
    for disorder_ns in (0, 100 * S):
        merge = started(2, disorder_ns=disorder_ns)
        merge.receive_data(0, chunk)
        merge.receive_data(1, b"".join(record(9 * S - n) for n in range(100)))
        assert sys.getrefcount(chunk) == references + 1
        del merge
        assert sys.getrefcount(chunk) == references


# --- Use that makes no sense ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": 0},
        {"inputs": -1},
        {"inputs": 1 << 17},
        {"inputs": 1, "disorder_ns": -1},
        {"inputs": 1, "disorder_ns": (1 << 62) + 1},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"a disorder of|inputs"):
        Merge(**arguments)


def test_unknown_inputs():
    merge = Merge(2)
    for call in (
        lambda i: merge.limit(i, 1, live=True),
        lambda i: merge.receive_data(i, b""),
        merge.receive_eof,
        merge.refuse,
        lambda i: merge.advance(i, 0),
        merge.link_type,
        merge.buffered,
        merge.counters,
    ):
        for i in (-1, 2):
            with pytest.raises(IndexError, match=f"no input {i}"):
                call(i)


def test_wrong_types_and_ranges():
    merge = Merge(1)
    with pytest.raises(TypeError):
        merge.receive_data(0, bytearray(24))
    with pytest.raises(TypeError):
        merge.receive_data(0, None)
    with pytest.raises(ValueError, match="limit of -1"):
        merge.limit(0, -1, live=True)
    with pytest.raises(OverflowError):
        merge.advance(0, 1 << 63)
    with pytest.raises(OverflowError):
        merge.start(-1)
    with pytest.raises(TypeError):
        pickle.dumps(merge)


def test_two_threads_at_once_are_told():
    merge = started(1)
    chunk = many(S, 100_000, step_ns=1, size=0)
    told = []
    begin = threading.Barrier(2)

    def work():
        begin.wait()
        for _ in range(20):
            try:
                merge.receive_data(0, chunk)
                merge.data_to_send()
            except RuntimeError as exc:
                told.append(str(exc))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == {"a merge cannot be used by two threads at once"}
    merge.receive_eof(0)
    drain(merge)
    received = merge.counters(0)[0]
    assert received % 100_000 == 0
    assert received // 100_000 >= 40 - len(told)
