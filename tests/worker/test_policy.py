"""Which segments go: never more than have to, never fewer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ddump_worker.policy import excess, plan

SIZES = st.lists(st.integers(0, 100), max_size=12)


@given(SIZES, st.integers(0, 500))
def test_as_few_go_as_must_for_the_rest_to_fit(sizes, limit):
    count = excess(sizes, limit=limit)
    assert sum(sizes[count:]) <= limit
    if count:
        assert sum(sizes[count - 1 :]) > limit


def test_none_fit_into_less_than_nothing():
    assert excess([0, 0], limit=-1) == 2


@given(
    present=SIZES,
    held=SIZES,
    size=st.integers(20, 500),
    segment_size=st.integers(1, 10),
    free=st.integers(0, 500),
    reserve=st.integers(0, 500),
    pinned=st.booleans(),
)
def test_the_ring_keeps_its_limit_and_the_disk_its_reserve(
    present, held, size, segment_size, free, reserve, pinned
):
    decided = plan(
        present,
        held,
        size=size,
        segment_size=segment_size,
        free=free,
        reserve=reserve,
        pinned=pinned,
    )
    least = 2 * segment_size
    assert least <= decided.limit <= size
    left = present[decided.evict :]
    assert sum(left) + segment_size <= decided.limit
    if decided.evict:
        assert sum(present[decided.evict - 1 :]) + segment_size > decided.limit

    evicted = 0 if decided.hold else sum(present[: decided.evict])
    revoked = sum(held[: decided.revoke])
    if decided.limit > least:
        assert free + revoked + evicted - segment_size >= reserve
    if decided.limit < size:
        # It is not shorter than it has to be.
        assert decided.limit in (least, sum(present) + free + revoked - reserve)


def test_a_ring_with_room_evicts_nothing():
    decided = plan(
        [10, 10], [5], size=100, segment_size=10, free=500, reserve=50, pinned=True
    )
    assert (decided.limit, decided.revoke, decided.evict) == (100, 0, 0)


def test_a_full_ring_evicts_the_oldest_and_can_hold_it():
    decided = plan(
        [10] * 10, [5], size=100, segment_size=10, free=500, reserve=50, pinned=True
    )
    assert (decided.limit, decided.revoke, decided.evict) == (100, 0, 1)
    assert decided.hold


def test_what_is_held_goes_before_the_ring_gets_shorter():
    decided = plan(
        [10] * 10,
        [5, 5, 5],
        size=100,
        segment_size=10,
        free=45,
        reserve=50,
        pinned=False,
    )
    assert (decided.limit, decided.revoke, decided.evict) == (100, 1, 1)
    assert not decided.hold


def test_the_oldest_held_goes_for_a_younger_one_to_be_held():
    decided = plan(
        [10] * 10,
        [5, 5, 5],
        size=100,
        segment_size=10,
        free=50,
        reserve=50,
        pinned=True,
    )
    assert (decided.limit, decided.revoke, decided.evict) == (100, 2, 1)
    assert decided.hold


def test_a_disk_that_others_fill_leaves_two_segments():
    decided = plan(
        [10] * 10, [], size=100, segment_size=10, free=0, reserve=500, pinned=False
    )
    assert (decided.limit, decided.evict) == (20, 9)
