"""What the kernel dropped, by when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_worker.drops import Drops
from ddump_worker.sidecar import Mark

EVER = (0, (1 << 63) - 1)


def test_what_was_dropped_counts_where_it_may_have_been():
    drops = Drops()
    drops.add(5, since_ns=100, until_ns=200)
    drops.add(0, since_ns=200, until_ns=300)
    drops.add(7, since_ns=300, until_ns=400)
    assert drops.total == 12
    assert drops.within(*EVER) == 12
    assert drops.within(0, 100) == 0
    assert drops.within(0, 101) == 5
    assert drops.within(200, 250) == 5
    assert drops.within(201, 300) == 0
    assert drops.within(250, 301) == 7


def test_of_an_earlier_run_that_told_no_moment_none_is_known():
    assert Drops(3).within(10, 11) == Drops(3).total == 3
    assert Drops(3).marks == []
    assert Drops().within(*EVER) == 0


def test_what_an_earlier_run_told_is_known_again():
    drops = Drops()
    drops.add(5, since_ns=100, until_ns=200)
    drops.add(7, since_ns=300, until_ns=400)
    again = Drops(drops.total, drops.marks)
    assert again.total == 12
    assert again.within(150, 250) == 5
    assert again.marks == drops.marks == [Mark(100, 200, 5), Mark(300, 400, 7)]
    # Some may be of the run before that, which did not tell.
    older = Drops(15, drops.marks)
    assert older.within(150, 250) == 3 + 5
    assert older.marks == drops.marks


@pytest.mark.parametrize("mark", [Mark(100, 200, 4), Mark(200, 100, 3)])
def test_what_cannot_be_tells_no_moment(mark):
    assert Drops(3, [mark]).within(10, 11) == Drops(3, [mark]).total == 3
    assert Drops(3, [mark]).marks == []


def test_a_clock_that_goes_back_loses_none():
    drops = Drops()
    drops.add(5, since_ns=200, until_ns=100)
    assert drops.within(150, 160) == 5


counts = st.lists(st.integers(0, 9), max_size=2000)
moments = st.integers(0, 2_100)


@given(counts, moments, moments)
def test_memory_is_bounded_and_none_is_forgotten(packets, one, other):
    drops = Drops()
    for moment, count in enumerate(packets):
        drops.add(count, since_ns=moment, until_ns=moment + 1)
    since_ns, until_ns = sorted((one, other))
    within = sum(packets[max(since_ns, 0) : until_ns])
    assert drops.total == sum(packets)
    assert within <= drops.within(since_ns, until_ns) <= sum(packets)
    assert len(drops._marks) <= 256
