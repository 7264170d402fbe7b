"""The kernel of stored records: indexing, cutting windows, following; what is hostile."""

from __future__ import annotations

import importlib
import os
import random
import struct
import subprocess
import threading
import tracemalloc

import pytest

from ddump_common.errors import FilterError
from ddump_worker._pcap import compile_filter
from ddump_worker._ring import HEADER_BYTES, Cutter, Index, UnreadableError
from support.captures import (
    SLL,
    SLL2,
    Cooked,
    Record,
    pcap,
    pcap_record,
)
from support.stored import (
    body_of,
    cut_all,
    follow_all,
    parts_of,
    readable,
    records_in,
    stored,
    tagged,
    untagged,
    window_of,
)

S = 1_000_000_000
ADDRESS = bytes.fromhex("02a1b2c3d4e5f607")
# Each fills a block, so that a few of them are several slices.
BLOCK = 65_536 - 16


def packet(number, size=60):
    return number.to_bytes(4, "big") + bytes(size - 4)


def packets(count, *, size=60, first_ns=S, step_ns=1000):
    return [Record(first_ns + n * step_ns, packet(n, size)) for n in range(count)]


def indexed(body, link_type=SLL):
    index = Index(link_type=link_type)
    return index, index.append(body)


def udp(source, destination, port, *, payload=b"", ifindex=1):
    header = struct.pack(
        ">BBHHHBBH4s4sHHHH",
        *(0x45, 0, 28 + len(payload), 1, 0, 64, 17, 0),
        *(bytes(map(int, address.split("."))) for address in (source, destination)),
        *(40000, port, 8 + len(payload), 0),
    )
    return Cooked(ifindex=ifindex, address=ADDRESS, payload=header + payload)


class TestIndex:
    def test_of_nothing(self):
        index = Index(link_type=SLL)
        assert index.committed == HEADER_BYTES == 24
        assert (index.packets, index.least_ns, index.greatest_ns) == (0, None, None)
        assert not index.corrupt
        assert not index.overlaps(0, 1 << 62)
        assert index.link_type == SLL

    def test_of_records(self):
        records = [Record(t, packet(1)) for t in (5 * S + 1, 3 * S, 9 * S, 4 * S)]
        body = body_of(records)
        index, taken = indexed(body)
        assert taken == len(body)
        assert index.committed == 24 + len(body)
        assert index.packets == 4
        assert (index.least_ns, index.greatest_ns) == (3 * S, 9 * S)

    def test_of_several_batches(self):
        index = Index(link_type=SLL2)
        for record in packets(5000):
            assert index.append(pcap_record(record, nano=True)) == 76
        assert index.packets == 5000
        assert index.memory_bytes < 1000  # not an entry for each batch

    def test_a_block_is_chosen_by_its_times(self):
        index, _ = indexed(body_of([Record(5, packet(0)), Record(9, packet(1))]))
        assert index.overlaps(9, 10)
        assert index.overlaps(0, 6)
        assert index.overlaps(6, 7)  # it may: only the block's ends are known
        assert not index.overlaps(10, 1 << 62)
        assert not index.overlaps(0, 5)

    def test_a_step_back_hides_nothing_between(self):
        large = [Record(t * S, packet(t, BLOCK)) for t in (10, 2, 30, 4)]
        index, _ = indexed(body_of(large))
        assert not index.overlaps(11 * S, 30 * S)
        assert index.overlaps(2 * S, 2 * S + 1)

    @pytest.mark.parametrize("cut", range(1, 76 * 3))
    def test_a_torn_record_is_left(self, cut):
        body = body_of(packets(3))
        index, taken = indexed(body[:-cut])
        assert taken == (len(body) - cut) // 76 * 76 == index.committed - 24
        assert not index.corrupt
        assert index.append(body[taken:]) == len(body) - taken
        assert index.packets == 3

    @pytest.mark.parametrize("link_type", [SLL, SLL2])
    @pytest.mark.parametrize("at", range(1, 76 * 3))
    def test_zeros_end_it(self, at, link_type):
        body = body_of(packets(3))
        body = body[:at] + bytes(len(body) - at)
        records, size, corrupt = readable(body, link_type)
        index, taken = indexed(body, link_type)
        assert (taken, index.packets, index.corrupt) == (size, len(records), corrupt)

    @pytest.mark.parametrize(
        ("fraction", "caplen", "length", "link_type"),
        [
            (10**9, 60, 60, SLL),
            (0xFFFFFFFF, 60, 60, SLL),
            (0, 0, 60, SLL),
            (0, 61, 60, SLL),
            (0, 262_145, 262_145, SLL),
            (0, 0xFFFFFFFF, 0xFFFFFFFF, SLL),
            (0, 1, 15, SLL),
            (0, 1, 19, SLL2),
            (0, 60, (1 << 31) + 1, SLL),
        ],
    )
    def test_what_is_no_record_ends_it(self, fraction, caplen, length, link_type):
        good = body_of(packets(2))
        bad = struct.pack("<IIII", 1, fraction, caplen, length) + bytes(60)
        index, taken = indexed(good + bad, link_type)
        assert taken == len(good)
        assert index.corrupt

    @pytest.mark.parametrize("link_type", [SLL, SLL2])
    def test_the_extremes_of_a_record(self, link_type):
        least = 16 if link_type == SLL else 20
        for record in (
            Record(0, b"x", least),
            Record(0xFFFFFFFF * S + 999_999_999, b"x", 1 << 31),
            Record(0, bytes(262_144)),
        ):
            data = pcap_record(record, nano=True)
            index, taken = indexed(data, link_type)
            assert taken == len(data)
            assert index.least_ns == index.greatest_ns == record.timestamp_ns

    def test_memory_is_under_half_a_percent(self):
        for size in (60, 1500, 33_000):
            body = body_of(packets((8 << 20) // size, size=size))
            index, taken = indexed(body)
            assert index.memory_bytes < 0.005 * taken
            index = Index(link_type=SLL)
            for at in range(0, taken, (size + 16) * 100):
                index.append(body[at : at + (size + 16) * 100])
            assert index.memory_bytes < 0.005 * taken

    def test_another_link_type_is_refused(self):
        with pytest.raises(ValueError, match="link type 1 is neither 113 nor 276"):
            Index(link_type=1)

    def test_a_segment_that_is_too_large_is_refused(self):
        with pytest.raises(ValueError, match="at most"):
            Index(link_type=SLL).scan(0, (1 << 40) + 1)


class TestScan:
    @pytest.mark.parametrize("size", [60, 1500, 60_000, 262_144])
    def test_as_if_it_was_appended(self, size):
        with parts_of(packets(3 * (1 << 20) // (size + 16), size=size)) as parts:
            (segment,) = parts.segments
            index = Index(link_type=SLL)
            index.scan(segment.descriptor, segment.size)
            for name in ("committed", "packets", "least_ns", "greatest_ns", "corrupt"):
                assert getattr(index, name) == getattr(segment.index, name)

    def test_up_to_the_size(self):
        with parts_of(packets(10)) as parts:
            (segment,) = parts.segments
            index = Index(link_type=SLL)
            index.scan(segment.descriptor, 24 + 76 * 4 + 75)
            assert (index.packets, index.committed) == (4, 24 + 76 * 4)
            assert not index.corrupt
            index.scan(segment.descriptor, segment.size)  # it goes on
            assert index.packets == 10
            assert index.append(body_of(packets(1))) == 76

    def test_a_file_that_is_shorter_than_was_said(self):
        with parts_of(packets(10)) as parts:
            (segment,) = parts.segments
            index = Index(link_type=SLL)
            index.scan(segment.descriptor, 1 << 30)
            assert index.packets == 10
            assert not index.corrupt

    @pytest.mark.parametrize("size", [0, 3, 24])
    def test_a_file_without_records(self, size):
        with parts_of([]) as parts:
            os.ftruncate(parts.descriptors[0], size)
            index = Index(link_type=SLL)
            index.scan(parts.descriptors[0], size)
            assert index.committed == 24
            assert not index.corrupt

    @pytest.mark.parametrize("records", [1, 13_900, 20_000])
    def test_it_stops_at_what_is_corrupt(self, records):
        with parts_of(packets(20_001)) as parts:
            (segment,) = parts.segments
            os.pwrite(segment.descriptor, b"\xff" * 16, 24 + 76 * records)
            index = Index(link_type=SLL)
            index.scan(segment.descriptor, segment.size)
            assert index.packets == records
            assert index.corrupt

    def test_a_read_that_fails(self, tmp_path):
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Is a directory: a segment at byte 24"):
                Index(link_type=SLL).scan(folder, 100)
        finally:
            os.close(folder)

    def test_nobody_appends_meanwhile(self):
        with parts_of(packets(100_000)) as parts:
            (segment,) = parts.segments
            refused = None
            while refused is None:  # as soon as the other thread was seen at it
                index = Index(link_type=SLL)
                scan = threading.Thread(
                    target=index.scan, args=(segment.descriptor, segment.size)
                )
                scan.start()
                while scan.is_alive() and refused is None:
                    try:
                        index.append(b"")
                    except RuntimeError as exc:
                        refused = str(exc)
                scan.join()
                assert index.packets == 100_000
            assert refused == "the index is being made by another thread"


class TestWindow:
    def test_half_open(self):
        records = packets(10, step_ns=1)
        with parts_of(records) as parts:
            cutter = parts.cutter(since_ns=S + 2, until_ns=S + 7)
            assert cutter.position_ns == S + 2
            assert records_in(cut_all(cutter, parts.descriptors)) == records[2:7]
            assert cutter.position_ns == S + 7
            assert cutter.packets == 5
            assert cutter.data_bytes == 300

    @pytest.mark.parametrize("until_ns", [-5, 0, S, S + 2])
    def test_that_is_empty(self, until_ns):
        with parts_of(packets(10)) as parts:
            cutter = parts.cutter(since_ns=S + 3, until_ns=until_ns)
            assert cut_all(cutter, parts.descriptors) == b""
            assert cutter.read_bytes == 0

    def test_of_no_segments(self):
        cutter = Cutter(link_type=SLL, output_link_type=SLL)
        assert not cutter.exhausted
        assert cutter.cut([].__getitem__, 1) == b""
        assert cutter.exhausted

    def test_from_before_1970(self):
        with parts_of(packets(2, first_ns=0)) as parts:
            cutter = parts.cutter(since_ns=-(1 << 63))
            assert len(records_in(cut_all(cutter, parts.descriptors))) == 2
            assert records_in(follow_all(cutter, parts.segments))[0].timestamp_ns == 0

    def test_only_its_blocks_are_read(self):
        records = packets(100_000)
        with parts_of(
            *(records[n : n + 10_000] for n in range(0, 100_000, 10_000))
        ) as (parts):
            since = records[40_000].timestamp_ns
            until = records[70_000].timestamp_ns
            cutter = parts.cutter(since_ns=since, until_ns=until)
            data = cut_all(cutter, parts.descriptors)
            assert records_in(data) == records[40_000:70_000]
            assert cutter.read_bytes <= 1.1 * len(data)

    def test_overlapping_blocks_are_not_read_much_more_than_once(self):
        rng = random.Random(1)  # noqa: S311 - reproducible, not secret
        # As of two processors: up to 3 blocks out of order.
        records = [
            Record(S + n * 1000 + rng.randrange(2_500_000), packet(n))
            for n in range(200_000)
        ]
        with parts_of(records) as parts:
            cutter = parts.cutter()
            assert records_in(cut_all(cutter, parts.descriptors)) == window_of(records)
            assert cutter.read_bytes <= 1.5 * parts.segments[0].size

    def test_segments_that_overlap_leave_in_order(self):
        first = [Record(S + n * 10, packet(n, 3000)) for n in range(1500)]
        second = [Record(S + 9000 + n * 10, packet(n, 3000)) for n in range(1500)]
        with parts_of(first, second) as parts:
            data = cut_all(parts.cutter(), parts.descriptors, 1000)
            assert records_in(data) == window_of(first + second)

    def test_equal_times_leave_in_order_of_arrival_and_are_read_once(self):
        records = [Record(S, packet(n, 30_000)) for n in range(200)]
        with parts_of(records[:100], records[100:]) as parts:
            cutter = parts.cutter()
            assert records_in(cut_all(cutter, parts.descriptors)) == records
            assert cutter.read_bytes <= 1.5 * sum(each.size for each in parts.segments)

    @pytest.mark.parametrize("seconds", [-3600, 86_400])
    def test_clocks_that_jump_lose_nothing(self, seconds):
        before = packets(30, size=BLOCK, first_ns=10_000 * S)
        after = packets(30, size=BLOCK, first_ns=(10_000 + seconds) * S)
        with parts_of(before + after) as parts:
            assert records_in(cut_all(parts.cutter(), parts.descriptors)) == window_of(
                before + after
            )
            cutter = parts.cutter(since_ns=after[7].timestamp_ns, until_ns=1 << 62)
            data = cut_all(cutter, parts.descriptors)
            assert records_in(data) == window_of(
                before + after, after[7].timestamp_ns, 1 << 62
            )

    def test_memory_is_bounded_whatever_the_times_are(self):
        rng = random.Random(2)  # noqa: S311 - reproducible, not secret
        records = [
            Record(
                rng.randrange(1 << 31) * S, packet(n, rng.choice((20, 1500, 60_000)))
            )
            for n in range(1500)
        ]
        expected = body_of(window_of(records))
        assert len(expected) > 24 << 20
        with parts_of(records) as parts:
            cutter = parts.cutter()
            at = 0
            tracemalloc.start()
            try:
                while not cutter.exhausted:
                    data = cutter.cut(parts.descriptors.__getitem__, 1 << 16)
                    assert data == expected[at : at + len(data)]
                    at += len(data)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert at == len(expected)
            assert peak < 14 << 20

    def test_one_step_is_bounded(self):
        reject_all = struct.pack("=HBBI", 6, 0, 0, 0)
        with parts_of(packets(700, size=BLOCK)) as parts:
            cutter = parts.cutter(program=reject_all)
            assert cutter.cut(parts.descriptors.__getitem__, 1) == b""
            assert not cutter.exhausted
            assert 16 << 20 <= cutter.read_bytes <= 17 << 20
            position = cutter.position_ns
            assert S < position <= parts.records[300].timestamp_ns
            assert cut_all(cutter, parts.descriptors) == b""
            assert cutter.position_ns > position

    def test_what_was_committed_when_it_was_added(self):
        records = packets(100)
        with parts_of(records) as parts:
            (segment,) = parts.segments
            cutter = Cutter(link_type=SLL, output_link_type=SLL, nano=True)
            cutter.add(segment.index, 24 + 76 * 40)
            assert records_in(cut_all(cutter, parts.descriptors)) == records[:40]

    def test_an_index_that_grows_later_changes_nothing(self):
        records = packets(3000)
        with parts_of(records[:2000]) as parts:
            cutter = parts.cutter()
            parts.segments[0].index.append(body_of(records[2000:]))
            assert records_in(cut_all(cutter, parts.descriptors)) == records[:2000]

    def test_which_parts_are_needed(self):
        segments = [packets(20, size=BLOCK, first_ns=n * S) for n in (1, 2, 3)]
        with parts_of(*segments) as parts:
            cutter = parts.cutter(since_ns=2 * S)
            assert [cutter.needs(n) for n in range(3)] == [False, True, True]
            descriptors = [-1, *parts.descriptors[1:]]
            data = b""
            while cutter.needs(1):
                data += cutter.cut(descriptors.__getitem__, 1)
            descriptors[1] = -1
            data += cut_all(cutter, descriptors)
            assert records_in(data) == segments[1] + segments[2]
            assert cutter.skipped == 0
            with pytest.raises(ValueError, match="part 3 of 3"):
                cutter.needs(3)


class TestFollow:
    def test_in_order_of_arrival(self):
        records = [Record(S + (n * 7919) % 1000, packet(n)) for n in range(5000)]
        with parts_of(records[:3000], records[3000:]) as parts:
            for max_bytes in (1, 1000, 1 << 18):
                data = follow_all(parts.cutter(), parts.segments, max_bytes)
                assert records_in(data) == records

    def test_it_goes_on_where_the_window_ended(self):
        records = packets(5000)
        with parts_of(records) as parts:
            (segment,) = parts.segments
            cutter = Cutter(link_type=SLL, output_link_type=SLL, nano=True)
            offset = 24 + 76 * 2500  # in the middle of a block
            cutter.add(segment.index, offset)
            data = cut_all(cutter, parts.descriptors)
            while offset < segment.index.committed:
                part, offset = cutter.follow(
                    segment.descriptor, segment.index, offset, 5000
                )
                data += part
            assert records_in(data) == records
            assert cutter.packets == 5000

    def test_nothing_new(self):
        with parts_of(packets(3)) as parts:
            (segment,) = parts.segments
            end = segment.index.committed
            assert parts.cutter().follow(segment.descriptor, segment.index, end, 1) == (
                b"",
                end,
            )

    def test_the_window_s_times_apply_and_save_reads(self):
        records = packets(100, size=BLOCK, step_ns=S)
        with parts_of(records) as parts:
            since, until = records[30].timestamp_ns, records[60].timestamp_ns
            cutter = parts.cutter(since_ns=since, until_ns=until)
            assert records_in(follow_all(cutter, parts.segments)) == records[30:60]
            assert cutter.read_bytes == 30 * 65_536

    def test_one_step_is_bounded(self):
        with parts_of(packets(600, size=BLOCK)) as parts:
            (segment,) = parts.segments
            cutter = parts.cutter(program=struct.pack("=HBBI", 6, 0, 0, 0))
            data, offset = cutter.follow(segment.descriptor, segment.index, 24, 1 << 30)
            assert data == b""
            assert offset == 24 + (16 << 20)

    def test_what_is_gone_is_counted(self):
        with parts_of(packets(5000)) as parts:
            (segment,) = parts.segments
            cutter = parts.cutter()
            end = segment.index.committed
            assert cutter.follow(-1, segment.index, 24, 100) == (b"", end)
            assert cutter.skipped == 5000

    def test_an_offset_that_is_not_there(self):
        with parts_of(packets(3)) as parts:
            (segment,) = parts.segments
            for offset in (-1, 0, 23, segment.index.committed + 1):
                with pytest.raises(ValueError, match=f"{offset} is not in"):
                    parts.cutter().follow(0, segment.index, offset, 1)

    def test_an_offset_that_is_none_of_a_record(self):
        with parts_of(packets(3)) as parts:
            (segment,) = parts.segments
            with pytest.raises(UnreadableError, match="at byte 30: no whole record"):
                parts.cutter().follow(segment.descriptor, segment.index, 30, 1)


EXPRESSIONS = [
    "udp",
    "tcp",
    "host 10.0.0.7",
    "udp port 53 and not host 10.0.0.3",
    "net 10.0.0.0/30",
    "len > 50",
    "less 48",
    "udp[8] = 0x61",
    "inbound",
    "ip[0] = 0x45",
]


class TestFilter:
    @pytest.mark.parametrize("link_type", [SLL, SLL2])
    @pytest.mark.parametrize("expression", EXPRESSIONS)
    def test_as_tcpdump_does(self, expression, link_type, tmp_path):
        rng = random.Random(3)  # noqa: S311 - reproducible, not secret
        records = []
        for n in range(200):
            whole = udp(
                f"10.0.0.{rng.randrange(9)}",
                f"10.0.0.{rng.randrange(9)}",
                rng.choice((53, 80)),
                payload=b"ab"[n % 2 : n % 2 + 1] * rng.randrange(1, 9),
            )
            data = whole.sll() if link_type == SLL else whole.sll2()
            caplen = rng.choice((len(data), 20, 45))
            records.append(Record(S + n, data[:caplen], len(data)))
        path = tmp_path / "stored.pcap"
        path.write_bytes(pcap(records, nano=True, link_type=link_type))
        expected = subprocess.run(
            ["tcpdump", "--time-stamp-precision=nano", "-nr", path, "-w-", expression],
            check=True,
            capture_output=True,
        ).stdout[24:]
        program = compile_filter(expression, link_type=link_type, snaplen=262_144)
        with parts_of(records, link_type=link_type) as parts:
            data = cut_all(parts.cutter(program=program), parts.descriptors)
            assert data == expected
            cutter = parts.cutter(program=program)
            assert follow_all(cutter, parts.segments) == expected

    @pytest.mark.parametrize("pcapng", [False, True])
    @pytest.mark.parametrize(
        "expression",
        [*EXPRESSIONS, "port 53", "not port 53", "ether proto 0x8100",
         "not ether proto 0x88a8", "ether proto 0x9100"],
    )  # fmt: skip
    def test_of_tagged_packets_as_live_without_the_tag(
        self, expression, pcapng, tmp_path
    ):
        rng = random.Random(5)  # noqa: S311 - reproducible, not secret
        records = []
        for n in range(300):
            source, destination = (f"10.0.0.{rng.randrange(9)}" for _ in range(2))
            data = udp(source, destination, rng.choice((53, 80)), payload=b"ab").sll()
            for _ in range(rng.randrange(3)):
                # The kernel takes no tag of 0x9100 off.
                kind = rng.choice((b"\x81\x00", b"\x88\xa8", b"\x91\x00"))
                data = tagged(data, kind, rng.randrange(1 << 16))
            caplen = rng.choice((len(data), len(data), rng.randrange(1, 40)))
            records.append(Record(S + n, data[:caplen], len(data)))
        path = tmp_path / "untagged.pcap"
        path.write_bytes(pcap([untagged(each) for each in records], nano=True))
        found = subprocess.run(
            ["tcpdump", "--time-stamp-precision=nano", "-nr", path, "-w-", expression],
            check=True,
            capture_output=True,
        ).stdout[24:]
        times = {each.timestamp_ns for each in records_in(found)}
        expected = [each for each in records if each.timestamp_ns in times]
        program = compile_filter(expression, link_type=SLL, snaplen=262_144)
        with parts_of(records) as parts:
            cutter = parts.cutter(program=program, pcapng=pcapng)
            data = cut_all(cutter, parts.descriptors, pcapng=pcapng)
            assert records_in(data, pcapng=pcapng) == expected
            cutter = parts.cutter(program=program, pcapng=pcapng)
            data = follow_all(cutter, parts.segments)
            assert records_in(data, pcapng=pcapng) == expected

    def test_by_the_stored_interface_and_before_the_conversion(self):
        records = [
            Record(S + n, udp("10.0.0.1", "10.0.0.2", 53, ifindex=n % 3).sll2())
            for n in range(30)
        ]
        program = compile_filter("ifindex 2", link_type=SLL2, snaplen=262_144)
        with parts_of(records, link_type=SLL2) as parts:
            cutter = parts.cutter(program=program, output_link_type=SLL)
            data = records_in(cut_all(cutter, parts.descriptors))
        assert [each.timestamp_ns - S for each in data] == list(range(2, 30, 3))
        assert {len(each.data) for each in data} == {44}

    @pytest.mark.parametrize(
        "program",
        [
            b"1234567",
            b"123456789",
            struct.pack("=HBBI", 0x20, 0, 0, 0),  # it does not return
            struct.pack("=HBBI", 0xFFFF, 0, 0, 0),
            struct.pack("=HBBI", 0x15, 9, 9, 0) + struct.pack("=HBBI", 6, 0, 0, 1),
        ],
    )
    def test_what_libpcap_cannot_run_is_refused(self, program):
        with pytest.raises(FilterError, match="libpcap cannot run"):
            Cutter(program=program, link_type=SLL, output_link_type=SLL)

    @pytest.mark.parametrize("code", [0x10, 0x38, 0x8C, 0x120])
    def test_what_libpcap_would_abort_at_is_refused(self, code):
        program = struct.pack("=HBBI", code, 0, 0, 0) + struct.pack("=HBBI", 6, 0, 0, 1)
        with pytest.raises(FilterError, match=f"instruction {code:#x}|cannot run"):
            Cutter(program=program, link_type=SLL, output_link_type=SLL)

    def test_a_loop_is_refused(self):
        back = struct.pack("=HBBI", 5, 0, 0, 0xFFFFFFFF)
        end = struct.pack("=HBBI", 6, 0, 0, 1)
        with pytest.raises(FilterError, match="loop"):
            Cutter(program=back + end, link_type=SLL, output_link_type=SLL)


def cut_one(record, *, link_type=SLL, **options):
    """Return the only record, given by the window and by following, in each format."""
    found = []
    with parts_of([record], link_type=link_type) as parts:
        for pcapng in (False, True):
            options["pcapng"] = pcapng
            cut = cut_all(parts.cutter(**options), parts.descriptors, pcapng=pcapng)
            followed = follow_all(parts.cutter(**options), parts.segments)
            found += records_in(cut, pcapng=pcapng)
            found += records_in(followed, pcapng=pcapng)
    assert len(found) == 4
    assert len(set(found)) == 1
    return found[0]


# With this much of SLL2, that much of SLL is known from its beginning.
KNOWN_OF_SLL = [0] * 11 + [4] + list(range(6, 14)) + [16]


class TestForm:
    PACKETS = (
        Cooked(packet_type=4, address=ADDRESS, payload=b"payload"),
        Cooked(protocol=0x86DD, arphrd=772, packet_type=0, address_length=0),
        Cooked(protocol=0xFFFE, arphrd=0xFFFF, address_length=255, packet_type=255),
    )

    @pytest.mark.parametrize("packet", PACKETS)
    def test_each_link_type_becomes_the_other(self, packet):
        sll, sll2 = packet.sll(), packet.sll2()
        to_sll = cut_one(Record(S, sll2), link_type=SLL2, output_link_type=SLL)
        assert to_sll == Record(S, sll)
        assert cut_one(Record(S, sll), output_link_type=SLL2) == Record(S, sll2)

    def test_golden(self):
        sll2 = bytes.fromhex("0800 0000 00000003 0001 04 06 02a1b2c3d4e50000 4500")
        sll = bytes.fromhex("0004 0001 0006 02a1b2c3d4e50000 0800 4500")
        to_sll = cut_one(Record(S, sll2), link_type=SLL2, output_link_type=SLL)
        assert to_sll.data == sll
        without_index = sll2[:4] + bytes(4) + sll2[8:]
        assert cut_one(Record(S, sll), output_link_type=SLL2).data == without_index

    def test_values_that_eight_bits_do_not_hold_are_the_most_they_do(self):
        sll = Cooked(packet_type=0x0104, address_length=0x0206).sll()
        data = cut_one(Record(S, sll), output_link_type=SLL2).data
        assert data[10:12] == b"\xff\xff"

    @pytest.mark.parametrize("caplen", range(1, 24))
    def test_cut_in_the_header(self, caplen):
        packet = Cooked(packet_type=4, address=ADDRESS, payload=b"pay")
        known = KNOWN_OF_SLL[caplen] if caplen < 20 else caplen - 4
        stored_one = Record(S, packet.sll2()[:caplen], 1500)
        to_sll = cut_one(stored_one, link_type=SLL2, output_link_type=SLL)
        assert to_sll == Record(S, packet.sll()[:known], 1496)
        # The protocol comes last in SLL and first in SLL2.
        known = 0 if caplen < 15 else 1 if caplen == 15 else caplen + 4
        stored_one = Record(S, packet.sll()[:caplen], 1500)
        to_sll2 = cut_one(stored_one, output_link_type=SLL2)
        assert to_sll2 == Record(S, packet.sll2()[: min(known, 23)], 1504)

    @pytest.mark.parametrize("snaplen", [1, 15, 16, 19, 20, 21, 26, 27, 28, 262_144])
    def test_the_snaplen_is_that_of_what_leaves(self, snaplen):
        packet = self.PACKETS[0]
        for data, link_type in ((packet.sll(), SLL), (packet.sll2(), SLL2)):
            for converted, output in ((packet.sll(), SLL), (packet.sll2(), SLL2)):
                got = cut_one(
                    Record(S, data),
                    link_type=link_type,
                    output_link_type=output,
                    snaplen=snaplen,
                )
                assert got == Record(S, converted[:snaplen], len(converted))

    def test_what_grows_over_the_greatest_snaplen_is_cut(self):
        whole = Cooked(payload=bytes(262_144 - 16))
        got = cut_one(Record(S, whole.sll()), output_link_type=SLL2)
        assert got == Record(S, whole.sll2()[:262_144], 262_148)

    def test_microseconds_are_rounded_down(self):
        with parts_of([Record(7 * S + 123_456_789, packet(1))]) as parts:
            data = cut_all(parts.cutter(nano=False), parts.descriptors)
        assert struct.unpack_from("<IIII", data) == (7, 123_456, 60, 60)

    @pytest.mark.parametrize("nano", [False, True])
    def test_a_golden_block_whatever_the_precision(self, nano):
        record = Record(0x1234_5678_9ABC_DEF0, Cooked(payload=b"pay").sll(), 1500)
        with parts_of([record]) as parts:
            data = cut_all(
                parts.cutter(pcapng=True, nano=nano), parts.descriptors, pcapng=True
            )
        assert data == bytes.fromhex(
            "06000000 34000000 00000000 78563412 f0debc9a 13000000 dc050000"
            "0000 0001 0006 0000000000000000 0800 706179 00"
            "34000000"
        )


class TestLimits:
    @pytest.mark.parametrize("pcapng", [False, True])
    @pytest.mark.parametrize("max_bytes", [1, 500, 1 << 18])
    @pytest.mark.parametrize(
        ("limit", "expected"),
        [
            ({"packet_limit": 1}, 1),
            ({"packet_limit": 40}, 40),
            ({"byte_limit": 1}, 1),
            ({"byte_limit": 2400}, 40),
            ({"byte_limit": 2401}, 41),
            ({"packet_limit": 7, "byte_limit": 2400}, 7),
        ],
    )
    def test_it_ends_exactly_there(self, limit, expected, max_bytes, pcapng):
        records = packets(100)
        with parts_of(records) as parts:
            cutter = parts.cutter(**limit, pcapng=pcapng)
            data = cut_all(cutter, parts.descriptors, max_bytes, pcapng=pcapng)
            assert records_in(data, pcapng=pcapng) == records[:expected]
            assert cutter.finished
            assert cutter.packets == expected
            assert cutter.data_bytes == expected * 60
            cutter = parts.cutter(**limit, pcapng=pcapng)
            assert follow_all(cutter, parts.segments, max_bytes) == data

    def test_the_window_s_packets_count_for_what_follows(self):
        records = packets(100)
        with parts_of(records) as parts:
            (segment,) = parts.segments
            cutter = Cutter(
                link_type=SLL, output_link_type=SLL, nano=True, packet_limit=50
            )
            cutter.add(segment.index, 24 + 76 * 30)
            data = cut_all(cutter, parts.descriptors)
            part, offset = cutter.follow(
                segment.descriptor, segment.index, 24 + 76 * 30, 1 << 18
            )
            assert records_in(data + part) == records[:50]
            assert cutter.finished
            assert cutter.follow(segment.descriptor, segment.index, offset, 1) == (
                b"",
                offset,
            )

    def test_bytes_are_counted_as_they_leave(self):
        records = packets(100)
        with parts_of(records) as parts:
            cutter = parts.cutter(snaplen=10, byte_limit=100)
            assert len(records_in(cut_all(cutter, parts.descriptors))) == 10


class TestGone:
    def test_its_packets_are_counted_and_the_others_leave(self):
        segments = [packets(2000, first_ns=S + n) for n in range(3)]
        with parts_of(*segments) as parts:
            cutter = parts.cutter()
            descriptors = list(parts.descriptors)
            descriptors[1] = -1
            data = cut_all(cutter, descriptors)
            assert records_in(data) == window_of(segments[0] + segments[2])
            assert cutter.skipped == 2000

    def test_in_the_middle(self):
        records = packets(100, size=BLOCK)
        with parts_of(records) as parts:
            cutter = parts.cutter()
            data = cutter.cut(parts.descriptors.__getitem__, 1)
            data += cut_all(cutter, [-1])
            left = records_in(data)
            assert left == records[: len(left)]
            assert len(left) + cutter.skipped == 100

    def test_only_blocks_of_the_window_are_counted(self):
        records = packets(100, size=BLOCK, step_ns=S)
        with parts_of(records) as parts:
            cutter = parts.cutter(
                since_ns=records[10].timestamp_ns, until_ns=records[15].timestamp_ns
            )
            assert cut_all(cutter, [-1]) == b""
            assert cutter.skipped == 5


class TestHostile:
    """Files that are not what they were when they were indexed."""

    @pytest.fixture
    def parts(self):
        with parts_of(packets(3000), packets(3000, first_ns=2 * S)) as parts:
            yield parts

    def refused(self, parts, words):
        """Cut until the error; what came before it, and after it without the part."""
        cutter = parts.cutter()
        data = b""
        error = None
        while not error:
            try:
                data += cutter.cut(parts.descriptors.__getitem__, 1000)
            except UnreadableError as exc:
                error = exc
        assert error.part == 1
        with pytest.raises(UnreadableError, match=words):  # and again
            cutter.cut(parts.descriptors.__getitem__, 1000)
        assert cutter.skipped == 0
        data += cut_all(cutter, [parts.descriptors[0], -1])
        left = records_in(data)
        assert left[:3000] == parts.segments[0].records
        assert left == parts.records[: len(left)]
        assert len(left) + cutter.skipped == 6000
        (_, segment) = parts.segments
        cutter = parts.cutter()
        with pytest.raises(UnreadableError, match="not what was indexed") as caught:
            follow_all(cutter, [segment])
        assert caught.value.part == -1
        return error

    @pytest.mark.parametrize("size", [0, 24, 25, 40, 76 * 100 + 30, 76 * 3000 + 23])
    def test_a_file_that_was_cut(self, parts, size):
        os.ftruncate(parts.descriptors[1], size)
        error = self.refused(parts, "not what was indexed")
        assert f"at byte {max(size, 24)}: the file ends there" in str(error)

    @pytest.mark.parametrize("record", [0, 1, 861, 862, 863, 2999])
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ((2, 0, 0, 60), "no whole record"),
            ((2, 0, 61, 60), "no whole record"),
            ((2, 0, 262_144, 262_144), "no whole record|of another time"),
            ((2, 10**9, 60, 60), "no whole record"),
            ((1, 0, 60, 60), "a record of another time"),
            ((900, 0, 60, 60), "a record of another time"),
        ],
    )
    def test_a_header_that_was_changed(self, parts, record, fields, words):
        at = 24 + 76 * record
        os.pwrite(parts.descriptors[1], struct.pack("<IIII", *fields), at)
        error = self.refused(parts, words)
        assert f"not what was indexed, at byte {at}:" in str(error)

    def test_two_records_that_became_one(self, parts):
        header = struct.pack("<IIII", 2, 0, 60 + 76, 60 + 76)
        os.pwrite(parts.descriptors[1], header, 24)
        cutter = parts.cutter()
        words = "at byte 24: a block of another number of records"
        with pytest.raises(UnreadableError, match=words):
            cut_all(cutter, parts.descriptors)

    def test_data_that_was_changed_is_data(self, parts):
        os.pwrite(parts.descriptors[1], b"\xff" * 60, 24 + 16)
        data = records_in(cut_all(parts.cutter(), parts.descriptors))
        assert data[3000].data == b"\xff" * 60

    def test_a_read_that_fails(self, parts, tmp_path):
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            words = "Is a directory, at byte 24"
            cutter = parts.cutter()
            descriptors = [parts.descriptors[0], folder]
            with pytest.raises(UnreadableError, match=words) as caught:
                cut_all(cutter, descriptors)
            assert caught.value.part == 1
            with pytest.raises(UnreadableError, match=words):
                cutter.follow(folder, parts.segments[0].index, 24, 1)
            # The descriptor that was meant: nothing is lost.
            cut_all(cutter, parts.descriptors)
            assert cutter.packets == 6000
        finally:
            os.close(folder)


class TestMemory:
    """When there is no memory: an error, and the same call can be made again."""

    @pytest.fixture
    def attempt(self):
        """Return a function that calls another while one allocation fails, by number;
        None when that ended the call."""
        hooks = importlib.import_module("_testcapi")  # typeshed does not know it

        def attempt(number, call, *arguments):
            hooks.set_nomemory(number, number + 1)
            try:
                return call(*arguments)
            except MemoryError:
                return None
            finally:
                hooks.remove_mem_hooks()

        return attempt

    @pytest.mark.parametrize("number", range(40))
    def test_nothing_is_lost(self, attempt, number):
        rng = random.Random(4)  # noqa: S311 - reproducible, not secret
        # More than a slice keeps, so that memory is asked for again and again.
        records = [Record(rng.randrange(S), packet(n, 30_000)) for n in range(300)]
        body = body_of(records)
        with parts_of(records) as parts:
            (descriptor,) = parts.descriptors
            index = Index(link_type=SLL)
            attempt(number, index.append, body[:1_000_000])
            index.append(body[index.committed - 24 : 2_000_000])
            attempt(number, index.scan, descriptor, 24 + len(body))
            index.scan(descriptor, 24 + len(body))
            assert index.packets == 300
            cutter = Cutter(link_type=SLL, output_link_type=SLL, nano=True)
            if attempt(number, cutter.add, index, index.committed) is None:
                cutter.add(index, index.committed)
            data = attempt(number, cutter.cut, [descriptor].__getitem__, 1 << 18) or b""
            data += cut_all(cutter, [descriptor])
            assert data == body_of(window_of(records))


class TestUse:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"link_type": 1}, "link type 1"),
            ({"output_link_type": 1}, "link type 1"),
            ({"snaplen": 0}, "snaplen of 0"),
            ({"snaplen": 262_145}, "snaplen of 262145"),
        ],
    )
    def test_what_cannot_be(self, options, words):
        with pytest.raises(ValueError, match=words):
            Cutter(**{"link_type": SLL, "output_link_type": SLL, **options})

    def test_segments_that_cannot_be_added(self):
        cutter = Cutter(link_type=SLL, output_link_type=SLL)
        with pytest.raises(ValueError, match="a segment of link type 276"):
            cutter.add(Index(link_type=SLL2), 24)
        with pytest.raises(ValueError, match="24 of 25 bytes are indexed"):
            cutter.add(Index(link_type=SLL), 25)
        with pytest.raises(ValueError, match="a segment of link type 276"):
            cutter.follow(0, Index(link_type=SLL2), 24, 1)
        cutter.cut([].__getitem__, 1)
        with pytest.raises(ValueError, match="being cut already"):
            cutter.add(Index(link_type=SLL), 24)

    def test_arguments_that_cannot_be(self):
        with parts_of(packets(1)) as parts:
            cutter = parts.cutter()
            with pytest.raises(IndexError):
                cutter.cut([].__getitem__, 1)
            with pytest.raises(ValueError, match="0 bytes at most"):
                cutter.cut(parts.descriptors.__getitem__, 0)
            with pytest.raises(ValueError, match="0 bytes at most"):
                cutter.follow(-1, parts.segments[0].index, 24, 0)
            with pytest.raises(TypeError):
                cutter.cut(["0"].__getitem__, 1)
            assert len(records_in(cut_all(cutter, parts.descriptors))) == 1

    def test_by_two_threads_at_once(self):
        errors = []

        def attempt(call):
            try:
                call()
            except RuntimeError as exc:
                errors.append(str(exc))

        def descriptor_of(part):
            """Be in the middle of a call while another thread makes one."""
            calls = (
                lambda: cutter.cut([].__getitem__, 1),
                lambda: cutter.add(segment.index, 24),
                lambda: cutter.follow(-1, segment.index, 24, 1),
            )
            for call in calls:
                thread = threading.Thread(target=attempt, args=(call,))
                thread.start()
                thread.join()
            return parts.descriptors[part]

        with parts_of(packets(1)) as parts:
            (segment,) = parts.segments
            cutter = parts.cutter()
            data = cutter.cut(descriptor_of, 1000)
            assert len(records_in(data)) == 1
        assert errors == ["another thread is using the cutter"] * 3

    def test_many_cutters_at_once_on_one_index(self):
        records = packets(50_000)
        with parts_of(records) as parts:
            results = []

            def pull():
                results.append(cut_all(parts.cutter(), parts.descriptors))

            threads = [threading.Thread(target=pull) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [body_of(records)] * 4

    def test_followed_while_it_grows(self):
        records = packets(60_000)
        batches = [body_of(records[n : n + 500]) for n in range(0, 60_000, 500)]
        segment = stored([])
        try:
            cutter = Cutter(link_type=SLL, output_link_type=SLL, nano=True)
            end = 24 + sum(map(len, batches))

            def record():
                for batch in batches:
                    os.pwrite(segment.descriptor, batch, segment.index.committed)
                    segment.index.append(batch)

            recorder = threading.Thread(target=record)
            recorder.start()
            data = b""
            offset = 24
            while offset < end:
                part, offset = cutter.follow(
                    segment.descriptor, segment.index, offset, 1 << 18
                )
                data += part
            recorder.join()
            assert data == b"".join(batches)
        finally:
            os.close(segment.descriptor)
