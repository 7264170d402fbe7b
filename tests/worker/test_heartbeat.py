"""The statistics blocks of a stream: when they are due, what they say and promise."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from ddump_common.note import EndReason, StreamNote
from ddump_common.pcapng import InterfaceDescription, SectionHeader
from ddump_worker.heartbeat import Heartbeat, Tally
from support.pcapng_streams import Beat, PcapngStream

PREAMBLE = SectionHeader().serialize() + InterfaceDescription(link_type=113).serialize()
LIVE = Tally(
    received=9, interface_dropped=2, dropped=4, delivered=0, skipped=0, counted_ns=70
)
WINDOW = Tally(
    received=None,
    interface_dropped=None,
    dropped=1,
    delivered=0,
    skipped=7,
    counted_ns=80,
)


def heartbeat(tally=LIVE, *, promised_ns=50) -> Heartbeat:
    return Heartbeat(started_ns=100, promised_ns=promised_ns, tally=lambda: tally)


def read(*blocks: bytes) -> list[Beat]:
    stream = PcapngStream()
    stream.receive_data(PREAMBLE + b"".join(blocks))
    stream.receive_eof()
    return stream.beats


def test_the_first_is_at_once_and_then_four_a_second():
    beats = heartbeat()
    assert beats.due <= 0
    beats.block(1000.0)
    assert beats.due == 1000.25
    beats.block(1000.26)
    assert beats.due == 1000.5  # one that is late delays no other
    beats.block(1000.5)
    assert beats.due == 1000.75


def test_those_that_were_missed_are_not_made_up_for():
    beats = heartbeat()
    beats.block(10.0)
    beats.block(20.0)
    assert beats.due == 20.25


def test_it_says_what_is_counted():
    (beat,) = read(heartbeat().block(0))
    assert (beat.received, beat.dropped, beat.interface_dropped) == (9, 4, 2)
    assert (beat.started_ns, beat.ended_ns, beat.time_ns) == (100, None, 50)
    assert beat.note == StreamNote(counted_ns=70)


def test_a_window_has_its_own_counters():
    (beat,) = read(heartbeat(WINDOW).block(0))
    assert (beat.received, beat.dropped, beat.interface_dropped) == (None, 1, None)
    assert beat.note == StreamNote(counted_ns=80, skipped=7)


def test_a_promise_never_goes_back():
    beats = heartbeat(promised_ns=50)
    blocks = []
    for time_ns in (40, 60, 55, -1, 61):
        beats.promise(time_ns)
        blocks.append(beats.block(0))
    assert [beat.time_ns for beat in read(*blocks)] == [50, 60, 60, 60, 61]


@pytest.mark.parametrize("reason", EndReason)
def test_the_last_block_says_why_and_when(reason):
    beats = heartbeat(WINDOW)
    first, last = read(beats.block(0), beats.last_block(reason, ended_ns=200))
    assert first.note.ended is None
    assert last.note == StreamNote(ended=reason, counted_ns=80, skipped=7)
    assert (last.started_ns, last.ended_ns) == (100, 200)


def test_counts_are_those_of_the_moment():
    counts = [replace(LIVE, received=n) for n in (1, 1 << 40)]
    beats = Heartbeat(started_ns=1, promised_ns=0, tally=iter(counts).__next__)
    assert [beat.received for beat in read(beats.block(0), beats.block(1))] == [
        1,
        1 << 40,
    ]


def test_golden():
    """draft-ietf-opsawg-pcapng, 4.6, byte by byte."""
    beats = heartbeat(promised_ns=0x1122_3344_5566_7788)
    started = struct.pack("<HHII", 2, 8, 0, 100)
    ended = struct.pack("<HHII", 3, 8, 0, 0xFF)
    counts = b"".join(
        struct.pack("<HHQ", code, 8, count)
        for code, count in ((4, 9), (5, 2), (7, 4), (8, 0))
    )
    comment = struct.pack("<HH", 1, 28) + b"ended: complete; counted: 70"
    body = struct.pack("<III", 0, 0x1122_3344, 0x5566_7788) + (
        comment + started + ended + counts + bytes(4)
    )
    size = struct.pack("<I", 12 + len(body))
    assert beats.last_block(EndReason.COMPLETE, ended_ns=0xFF) == (
        struct.pack("<I", 5) + size + body + size
    )
