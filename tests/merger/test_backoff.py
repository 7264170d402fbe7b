"""How long to wait before a target is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_merger.backoff import Backoff

SECOND = 1_000_000_000


def test_the_longest_wait_doubles_up_to_ten_seconds():
    backoff = Backoff(lambda: 1 - 2**-53)  # as near to 1 as chance comes
    waits = [backoff.next_ns() / SECOND for _ in range(8)]
    assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 10, 10])


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 100))
def test_any_wait_up_to_the_longest_may_be(chance, tries):
    backoff = Backoff(lambda: chance)
    waits = [backoff.next_ns() for _ in range(tries)]
    assert all(0 <= wait <= 10 * SECOND for wait in waits)
    assert waits == sorted(waits)


def test_chance_is_what_spreads():
    waits = {Backoff().next_ns() for _ in range(50)}
    assert len(waits) > 40
    assert max(waits) < SECOND // 4


@given(st.integers(0, 10**12))
def test_what_is_asked_for_is_the_least_up_to_a_minute(asked_ns):
    wait = Backoff(lambda: 0.5).next_ns(asked_ns=asked_ns)
    assert wait == max(SECOND // 8, min(asked_ns, 60 * SECOND))


def test_a_stream_that_lived_makes_it_begin_again():
    backoff = Backoff(lambda: 0.5)
    for _ in range(9):
        backoff.next_ns()
    backoff.reset(lived_ns=5 * SECOND - 1)
    assert backoff.next_ns() == 5 * SECOND
    backoff.reset(lived_ns=5 * SECOND)
    assert backoff.next_ns() == SECOND // 8


def test_breaks_every_two_seconds_are_not_waited_after_for_long():
    backoff = Backoff(lambda: 1.0)
    waits = []
    for _ in range(20):
        backoff.reset(lived_ns=2 * SECOND)
        waits.append(backoff.next_ns())
    assert max(waits) == SECOND // 4
