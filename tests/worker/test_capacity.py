"""What may be leased, and when no more."""

from __future__ import annotations

import pytest

from ddump_worker.capacity import Capacity, ExhaustedError


def test_leases_add_up_and_end():
    capacity = Capacity(max_streams=3, max_memory=100)
    first, second = capacity.lease(40), capacity.lease(30)
    assert (capacity.streams, capacity.memory) == (2, 70)
    first.release()
    first.release()
    assert (capacity.streams, capacity.memory) == (1, 30)
    second.release()
    assert (capacity.streams, capacity.memory) == (0, 0)


def test_a_lease_counts_with_what_was_really_granted():
    capacity = Capacity(max_streams=3, max_memory=100)
    lease = capacity.lease(80)
    lease.memory = 50
    assert capacity.memory == 50
    capacity.lease(50)


def test_too_many_streams():
    capacity = Capacity(max_streams=1, max_memory=100)
    lease = capacity.lease(1)
    for attempt in (capacity.check, capacity.lease):
        with pytest.raises(ExhaustedError, match="all 1 streams") as caught:
            attempt(1)
        assert caught.value.resource == "streams"
        assert caught.value.hint
    lease.release()
    capacity.check(1)


def test_too_much_memory():
    capacity = Capacity(max_streams=9, max_memory=100)
    capacity.lease(60)
    capacity.check(40)
    with pytest.raises(ExhaustedError, match="60B of 100B, and 41B more") as caught:
        capacity.lease(41)
    assert caught.value.resource == "memory"
    assert capacity.streams == 1
