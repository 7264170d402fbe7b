"""The kernel of stored records against a plain reading: any packets, any timestamps, any
batches, any window, any size of what is asked for; and bytes that are anything."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from ddump_worker._ring import Index
from support.captures import SLL, SLL2, Record
from support.stored import (
    COOKED,
    body_of,
    cut_all,
    follow_all,
    parts_of,
    readable,
    records_in,
    window_of,
)

S = 1_000_000_000
GREATEST = (1 << 32) * S - 1

# The machine may be busy: how long an example takes is not what is judged here.
settings.register_profile("ring", deadline=None)
calm = settings.get_profile("ring")

# Few different times, so that many are equal; some anywhere.
moments = st.one_of(st.integers(0, 12), st.integers(0, GREATEST))
# From many records in a block to a block for each.
sizes = st.sampled_from([20, 20, 60, 1500, 33_000, 65_520, 65_521, 262_144])
link_types = st.sampled_from([SLL, SLL2])
batches = st.sampled_from([1 << 10, 1 << 16, 1 << 18, 1 << 22])
targets = st.sampled_from([1, 100, 70_000, 1 << 18, 1 << 22])
# Enough records for several slices, or whatever comes.
COUNTS = st.sampled_from([0, 60])
bounds = st.one_of(st.integers(-1, 14), st.integers(-(1 << 63), (1 << 63) - 1))


def record(number, timestamp_ns, size):
    """A record that is told apart from every other."""
    return Record(timestamp_ns, number.to_bytes(4, "big") + bytes(size - 4))


@st.composite
def rising(draw):
    """Times as a host has them: mostly rising, with steps back and jumps."""
    time = draw(st.integers(0, 1000 * S))
    times = []
    steps = st.one_of(
        st.integers(0, 3), st.integers(-5, 1000), st.sampled_from([-S, S, 3600 * S])
    )
    for step in draw(st.lists(steps, min_size=draw(COUNTS), max_size=90)):
        time = max(0, time + step)
        times.append(time)
    return times


@st.composite
def segments(draw):
    """The records of each segment, in order of arrival."""
    found = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        any_times = st.lists(moments, min_size=draw(COUNTS), max_size=90)
        times = draw(st.one_of(rising(), any_times))
        records = []
        for time in times:
            records.append(record(number, time, draw(sizes)))
            number += 1
        found.append(records)
    return found


@st.composite
def windows(draw, records):
    """Two bounds, often at or beside the time of a record."""
    times = [each.timestamp_ns + n for each in records for n in (0, 1)]
    bound = st.one_of(st.sampled_from(times), bounds) if times else bounds
    return draw(bound), draw(bound)


@calm
@given(st.data(), segments(), batches, targets, link_types, st.booleans())
def test_a_window_is_a_stable_sort_of_all_that_is_in_it(
    data, segments, batch, max_bytes, link_type, pcapng
):
    records = [each for segment in segments for each in segment]
    since, until = data.draw(windows(records))
    expected = window_of(records, since, until)
    with parts_of(*segments, link_type=link_type, batch=batch) as parts:
        for part, segment in zip(parts.segments, segments, strict=True):
            assert part.index.packets == len(segment)
            inside = window_of(segment, since, until)
            assert part.index.overlaps(since, until) or not inside
        cutter = parts.cutter(since_ns=since, until_ns=until, pcapng=pcapng)
        cut = cut_all(cutter, parts.descriptors, max_bytes, pcapng=pcapng)
        assert records_in(cut, pcapng=pcapng) == expected
        assert cutter.packets == len(expected)
        assert cutter.data_bytes == sum(len(each.data) for each in expected)
        assert cutter.skipped == 0
        cutter = parts.cutter(since_ns=since, until_ns=until, pcapng=pcapng)
        followed = follow_all(cutter, parts.segments, max_bytes)
        assert records_in(followed, pcapng=pcapng) == [
            each for each in records if since <= each.timestamp_ns < until
        ]


@calm
@given(st.data(), segments(), targets)
def test_what_is_gone_is_counted_and_the_rest_leaves(data, segments, max_bytes):
    """Whichever parts go, and whenever: what is neither given nor counted is not in it."""
    with parts_of(*segments) as parts:
        cutter = parts.cutter()
        descriptors = parts.descriptors
        out = []
        while not cutter.exhausted:
            if data.draw(st.integers(0, 3)) == 0:
                descriptors[data.draw(st.integers(0, len(descriptors) - 1))] = -1
            out += records_in(cutter.cut(descriptors.__getitem__, max_bytes))
        expected = window_of(parts.records)
        kept = iter(expected)
        assert all(each in kept for each in out)  # in order, each once
        for segment, descriptor in zip(parts.segments, descriptors, strict=True):
            if descriptor >= 0:
                assert all(each in out for each in segment.records)
        assert len(expected) - len(out) <= cutter.skipped <= len(expected)


@calm
@given(
    st.lists(st.tuples(moments, st.sampled_from([1, 20, 60]), st.integers(0, 9))),
    st.binary(max_size=90),
    st.integers(0, 4000),
    st.integers(1, 4000),
    link_types,
)
def test_any_bytes_are_indexed_as_far_as_they_are_records(
    shapes, noise, at, batch, link_type
):
    body = body_of(
        Record(time, bytes(size), max(size, COOKED[link_type]) + more)
        for time, size, more in shapes
    )
    body = body[:at] + noise + body[at + len(noise) :]
    records, size, corrupt = readable(body, link_type)
    index = Index(link_type=link_type)
    assert index.append(body) == size
    parts = Index(link_type=link_type)
    done = 0
    while done < size:
        taken = parts.append(body[done : done + batch])
        batch *= 2
        done += taken
    for each in (index, parts):
        assert each.committed == 24 + size
        assert each.packets == len(records)
    times = [each.timestamp_ns for each in records]
    assert (index.least_ns, index.greatest_ns) == (
        min(times, default=None),
        max(times, default=None),
    )
    assert index.corrupt == corrupt
    with parts_of([]) as file:
        (descriptor,) = file.descriptors
        os.pwrite(descriptor, body, 24)
        scanned = Index(link_type=link_type)
        scanned.scan(descriptor, 24 + len(body))
        assert scanned.committed == index.committed
        assert scanned.packets == index.packets
        assert scanned.corrupt == corrupt
