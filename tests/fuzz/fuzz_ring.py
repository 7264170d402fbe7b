"""The invariant: whatever bytes a segment has, and whatever becomes of its file after it
was indexed,

* ``append`` and ``scan`` index the same: the valid records at the beginning, as a plain
  reading finds them;
* of files that stay as they are, a window is the stable sort of what is in it, and
  following is what is in it in order of arrival, whatever the program is that libpcap
  takes; and in enhanced packet blocks it is the same;
* a program takes of packets with a VLAN tag those that it takes without;
* of files that change, nothing but an UnreadableError comes out, what leaves is
  whole records of the window in order of time, and without the part at fault the others
  go on to their end;
* no read or write leaves its buffer (run it under ASan: fuzz.sh).

Usage: fuzz_ring.py --seconds N [--seed S]. It prints the seed of each failure, which
runs that case again.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddump_common.errors import FilterError
from ddump_worker._pcap import compile_filter
from ddump_worker._ring import Index, UnreadableError
from support.captures import SLL, SLL2, Cooked, Record
from support.fuzzing import fuzz
from support.hostile import EDGES
from support.stored import (
    body_of,
    cut_all,
    follow_all,
    parts_of,
    readable,
    records_in,
    tagged,
    untagged,
    window_of,
)

S = 1_000_000_000
ALL = (-(1 << 63), (1 << 63) - 1)


def any_records(rng, link_type):
    """Records as a host has them, or with any times; small, large, cut in the header."""
    time = rng.randrange(1 << 31) * S
    random_times = rng.random() < 0.3
    step = rng.choice((0, 1, 1000, S))
    sizes = rng.choice(((0, 30), (0, 2000), (20_000, 70_000), (60_000, 262_124)))
    most = min(1500, (6 << 20) // (sizes[1] + 40))
    records = []
    for _ in range(rng.randrange(most + 1)):
        time += rng.randrange(-2, 6) * step
        if random_times:
            time = rng.randrange(1 << 32) * S + rng.randrange(S)
        whole = Cooked(ifindex=rng.randrange(4), address=rng.randbytes(8))
        data = whole.sll() if link_type == SLL else whole.sll2()
        if link_type == SLL and rng.random() < 0.3:
            data = tagged(data, rng.choice((b"\x81\x00", b"\x88\xa8", b"\x91\x00")))
        data += bytes(rng.randrange(*sizes))
        length = len(data)
        if rng.random() < 0.1:
            data = data[: rng.randrange(1, 30)]
        records.append(Record(min(max(time, 0), (1 << 32) * S - 1), data, length))
    return records


def tampered(rng, body):
    """``body`` with fields of any value, holes, pieces that are missing or repeated."""
    data = bytearray(body)
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 4] = struct.pack("<I", rng.choice(EDGES))
            case 1:
                size = rng.randrange(100)
                data[at : at + size] = rng.randbytes(size)
            case 2:
                del data[at : at + rng.randrange(100)]
            case 3:
                data[at:] = bytes(rng.randrange(1000))
            case _:
                data[at:at] = data[: rng.randrange(200)]
    return bytes(data)


def check_index(rng, body, link_type):
    """Append and scan the bytes; both must find what a plain reading does."""
    records, size, corrupt = readable(body, link_type)
    times = [each.timestamp_ns for each in records]
    appended = Index(link_type=link_type)
    batch = rng.choice((100, 10_000, 1 << 20))
    at = 0
    while True:
        taken = appended.append(body[at : at + batch])
        at += taken
        if appended.corrupt or at + batch >= len(body):
            break
        if taken == 0:
            batch *= 2
    if not appended.corrupt:
        appended.append(body[at:])
    scanned = Index(link_type=link_type)
    with parts_of([]) as parts:
        os.pwrite(parts.descriptors[0], body, 24)
        scanned.scan(parts.descriptors[0], 24 + len(body))
    for index in (appended, scanned):
        assert index.committed == 24 + size
        assert index.packets == len(records)
        assert index.least_ns == min(times, default=None)
        assert index.greatest_ns == max(times, default=None)
        assert index.corrupt == corrupt


def any_program(rng, link_type):
    """A program, most often one that libpcap takes."""
    if rng.random() < 0.5:
        return b""
    expression = rng.choice(("udp", "len > 40", "host 10.0.0.1 or tcp[13] & 2 != 0"))
    data = bytearray(compile_filter(expression, link_type=link_type, snaplen=262_144))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(data) // 8) * 8
        field = rng.choice((rng.randbytes(8), struct.pack("=I", rng.choice(EDGES))))
        data[at + 8 - len(field) : at + 8] = field
    return bytes(data)


def check_tags(segments, found, options):
    """The program takes the same packets when they come without their tags."""
    plain = [[untagged(each) for each in records] for records in segments]
    with parts_of(*plain) as parts:
        cutter = parts.cutter(**options)
        data = cut_all(cutter, parts.descriptors, pcapng=options["pcapng"])
        records = records_in(data, pcapng=options["pcapng"])
    assert [each.timestamp_ns for each in records] == [
        each.timestamp_ns for each in found
    ]


def any_window(rng, records):
    times = [each.timestamp_ns for each in records] or [0]
    return [
        rng.choice((edge, rng.choice(times), rng.choice(times) + 1)) for edge in ALL
    ]


def check_output(data, window, options):
    """Whole records, in order, in the window, cut as asked."""
    since, until = window
    records = records_in(data, pcapng=options["pcapng"])
    times = [each.timestamp_ns for each in records]
    assert times == sorted(times)
    assert all(since <= time < until for time in times)
    assert all(len(each.data) <= options["snaplen"] for each in records)


def change(rng, descriptor):
    """Change the file as nobody should."""
    size = os.fstat(descriptor).st_size
    at = rng.randrange(size + 1)
    match rng.randrange(4):
        case 0:
            os.ftruncate(descriptor, at)
        case 1:
            os.pwrite(descriptor, rng.randbytes(rng.randrange(1, 400)), at)
        case 2:
            os.pwrite(descriptor, struct.pack("<I", rng.choice(EDGES)), at)
        case _:
            os.pwrite(descriptor, bytes(rng.randrange(1, 4000)), at)


def cut_changing(rng, cutter, descriptors):
    """Cut while the files change; a part at fault is given up."""
    data = []
    faults = 0
    while not cutter.exhausted and not cutter.finished:
        kept = [each for each in descriptors if each >= 0]
        if kept and rng.random() < 0.2:
            change(rng, rng.choice(kept))
        try:
            data.append(
                cutter.cut(descriptors.__getitem__, rng.choice((1, 5000, 1 << 18)))
            )
        except UnreadableError as exc:
            descriptors[exc.part] = -1
            faults += 1
    assert faults == sum(each < 0 for each in descriptors)  # each part once
    return b"".join(data)


def follow_changing(rng, cutter, segments, *, pcapng):
    for segment in segments:
        offset = 24
        while offset < segment.index.committed and not cutter.finished:
            if rng.random() < 0.2:
                change(rng, segment.descriptor)
            try:
                data, after = cutter.follow(
                    segment.descriptor, segment.index, offset, rng.choice((1, 1 << 18))
                )
            except UnreadableError:
                data, after = cutter.follow(-1, segment.index, offset, 1)
            records_in(data, pcapng=pcapng)
            assert after > offset or cutter.finished
            offset = after


def check(seed):
    """Make one case of the seed and judge it."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    link_type = rng.choice((SLL, SLL2))
    segments = [any_records(rng, link_type) for _ in range(rng.randrange(1, 4))]
    for records in segments:
        assert readable(body_of(records), link_type)[0] == records
        check_index(rng, tampered(rng, body_of(records)), link_type)
    everything = [each for records in segments for each in records]
    window = any_window(rng, everything)
    options = {
        "output_link_type": rng.choice((SLL, SLL2)),
        "snaplen": rng.choice((*range(1, 30), 100, 262_144, 262_144)),
        "since_ns": window[0],
        "until_ns": window[1],
        "program": any_program(rng, link_type),
        "pcapng": rng.random() < 0.5,
    }
    if rng.random() < 0.2:
        options["packet_limit"] = rng.randrange(1, 300)
        options["byte_limit"] = rng.randrange(1, 1 << 20)
    with parts_of(*segments, link_type=link_type) as parts:
        whole = parts.cutter(since_ns=window[0], until_ns=window[1])
        target = rng.choice((1000, 1 << 18))
        data = cut_all(whole, parts.descriptors, target)
        assert data == body_of(window_of(everything, *window))
        try:
            cutter = parts.cutter(**options)
        except FilterError:
            return
        pcapng = options["pcapng"]
        data = cut_all(cutter, parts.descriptors, target, pcapng=pcapng)
        check_output(data, window, options)
        records = records_in(data, pcapng=pcapng)
        assert cutter.packets == len(records)
        assert cutter.data_bytes == sum(len(each.data) for each in records)
        other = parts.cutter(**options | {"pcapng": not pcapng})
        data = cut_all(other, parts.descriptors, target, pcapng=not pcapng)
        assert records_in(data, pcapng=not pcapng) == records
        if link_type == SLL and "byte_limit" not in options:
            check_tags(segments, records, options)
        followed = follow_all(parts.cutter(**options), parts.segments)
        if not cutter.finished:
            assert window_of(records_in(followed, pcapng=pcapng)) == records
        cutter = parts.cutter(**options)
        data = cut_changing(rng, cutter, parts.descriptors)
        check_output(data, window, options)
        follow_changing(rng, parts.cutter(**options), parts.segments, pcapng=pcapng)


if __name__ == "__main__":
    fuzz(check)
