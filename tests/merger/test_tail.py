"""What is kept of a stream since its last promise, and that it is what is needed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_merger._merge import Merge, Seam
from ddump_merger.tail import Tail
from support.beats import Beats
from support.captures import SLL, Record

START = 1_700_000_000_000_000_000


def fed(pieces, *, max_bytes=1 << 30):
    """Return a tail that follows a merge which reads the pieces, as a stream's does."""
    merge = Merge(1)
    merge.start(SLL)
    merge.trust(0)
    tail = Tail(max_bytes)
    told = None
    for piece in pieces:
        merge.receive_data(0, piece)
        offset, first, newest_ns = merge.progress(0)
        tail.receive_data(piece, offset=offset, newest_ns=newest_ns)
        heartbeat = merge.heartbeat(0)
        if heartbeat is not None and heartbeat != told:
            told = heartbeat
            tail.describe(first)
            tail.promise(heartbeat.promised_ns)
    return tail


def kept(tail, since_ns):
    """Return how many packets of the tail are not before a time."""
    seam = Seam(since_ns)
    for piece in tail.pieces():
        seam.receive_data(piece)
    return len(seam)


def split(data, cuts):
    """Return data in pieces; cuts are shares of it."""
    places = sorted({int(cut * len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


steps = st.lists(
    st.one_of(
        st.integers(0, 2000).map(lambda ago: ("packet", ago)),
        st.integers(0, 3000).map(lambda ago: ("heartbeat", ago)),
    ),
    max_size=60,
)


def stream(steps):
    """Return a stream that keeps its promises: its data, all records, the last promise."""
    beats = Beats(START)
    data = beats.header
    records, promised = [], START
    for n, (kind, ago) in enumerate(steps):
        now = START + n * 1000
        if kind == "packet":
            records.append(Record(max(now - ago, promised), b"%d" % n))
            data += beats.packets(records[-1])
        else:
            promised = max(promised, now - ago)
            data += beats.heartbeat(promised)
    return data, records, promised


@given(steps, st.lists(st.floats(0, 1), max_size=12))
def test_it_has_all_that_may_come_again(steps, cuts):
    data, records, _ = stream(steps)
    tail = fed(split(data, cuts))
    since = tail.since_ns
    assert tail.exact
    assert kept(tail, since) == sum(each.timestamp_ns >= since for each in records)
    assert tail.empty == all(each.timestamp_ns < since for each in records)


@given(steps, st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1))
def test_what_breaks_off_in_a_block_is_cut_there(steps, cuts, end):
    data, records, _ = stream(steps)
    data = data[: int(end * len(data))]
    tail = fed(split(data, cuts))
    seam = Seam(tail.since_ns)
    for piece in tail.pieces():
        seam.receive_data(piece)
    # Another section could follow.
    seam.receive_data(Beats(START).header)
    assert len(seam) <= len(records)


@given(steps, st.lists(st.floats(0, 1), max_size=30), st.integers(0, 600))
def test_what_is_too_much_is_forgotten_and_never_asked_for(steps, cuts, max_bytes):
    data, records, _ = stream(steps)
    pieces = split(data, cuts)
    tail = fed(pieces, max_bytes=max_bytes)
    since = tail.since_ns
    longest = max(map(len, pieces), default=0)
    assert len(tail) <= max_bytes + 2 * longest + 200
    assert kept(tail, since) == sum(each.timestamp_ns >= since for each in records)


def test_what_moves_on_is_dropped():
    """Megabytes pass, and what is kept is of the time since the last promise."""
    beats = Beats(START)
    pieces = [beats.header]
    for n in range(1000):
        moment = START + n * 1_000_000
        pieces.append(beats.packets(*[Record(moment, bytes(1000))] * 4))
        pieces.append(beats.heartbeat(moment - 10_000_000))
    tail = fed(pieces)
    assert tail.exact
    assert tail.since_ns == START + 989 * 1_000_000
    assert kept(tail, tail.since_ns) == 11 * 4
    assert len(tail) < 60_000


@pytest.mark.parametrize("at", range(1, 200))
def test_without_what_describes_them_packets_are_not_kept(at):
    """Too much came before the first heartbeat, wherever it was split."""
    beats = Beats(START)
    data = beats.header + beats.packets(*[Record(START + n, b"x") for n in range(9)])
    tail = fed([data[:at], data[at:], beats.heartbeat(START)], max_bytes=0)
    assert kept(tail, tail.since_ns) == max(0, START + 9 - tail.since_ns)


def test_an_overflow_is_over_when_the_promise_is_past_it():
    beats = Beats(START)
    many = [beats.packets(Record(START + n, bytes(1000))) for n in range(50)]
    tail = fed([beats.header, beats.heartbeat(START), *many], max_bytes=10_000)
    assert not tail.exact
    assert START < tail.since_ns < START + 50
    assert kept(tail, tail.since_ns) == START + 50 - tail.since_ns
    tail.promise(tail.since_ns)
    assert tail.exact
    assert tail.newest_ns == START + 49
