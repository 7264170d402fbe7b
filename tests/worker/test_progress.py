"""How far a capture is delivered, by what the kernel counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ddump_worker.progress import IN_FLIGHT_NS, PATIENCE_SECONDS, Progress

NOW = 10**18


class Reader:
    """A capture whose packets a test counts; ``now`` is in seconds."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.packets = 0
        self.waiting = 0
        self.now = 0.0

    def read(self, packets: int = 0, *, more: bool = False) -> int | None:
        """Deliver ``packets`` of those that wait; return until when all is, after NOW."""
        self.packets += packets
        self.waiting -= packets
        if self.progress.advance(self.packets, more=more, began=self.now):
            self.progress.set_mark(
                NOW + int(self.now * 10**9),
                packets=self.packets,
                undelivered=self.waiting,
                began=self.now,
            )
        complete_ns = self.progress.complete_ns
        return None if complete_ns is None else complete_ns - NOW + IN_FLIGHT_NS


def test_where_nothing_waits_all_is_delivered():
    reader = Reader()
    assert reader.read() == 0
    reader.now = 0.25
    assert reader.read() == 250_000_000


def test_nothing_is_known_before_what_waited_first_is_delivered():
    reader = Reader()
    reader.waiting = 2
    assert reader.read() is None
    assert reader.read(1) is None
    reader.now = 0.25
    assert reader.read(1) == 250_000_000


def test_what_waits_holds_it_at_the_mark_also_when_the_clock_goes_on():
    reader = Reader()
    reader.read()
    reader.waiting, reader.now = 3, 0.1
    assert reader.read() == 0
    reader.now = 0.9
    assert reader.read(2) == 0
    # The mark is reached, and more has come since: as far as the mark, and no further.
    reader.waiting += 5
    assert reader.read(1) == 100_000_000


def test_a_mark_is_reached_while_there_is_always_more():
    reader = Reader()
    reader.waiting = 10
    passed = []
    for number in range(1, 50):
        reader.now = number / 1000
        reader.waiting += 5
        passed.append(reader.read(5, more=True))
    assert passed[-1] > 40_000_000
    assert len(set(passed)) > 10


def test_what_never_comes_holds_it_for_a_second_once():
    reader = Reader()
    reader.waiting = 2
    assert reader.read() is None
    reader.now = PATIENCE_SECONDS / 2
    assert reader.read() is None
    # A read that left something behind has not seen that it is not there.
    reader.now = 2 * PATIENCE_SECONDS
    assert reader.read(more=True) is None
    assert reader.read() == reader.now * 10**9
    assert reader.progress.missing(2) == 0
    reader.now += 1
    assert reader.read() == reader.now * 10**9
    # One of them was only late.
    reader.read(1)
    assert reader.progress.missing(2) == 1


def test_a_clock_that_was_set_begins_anew():
    reader = Reader()
    reader.read()
    reader.waiting = 1
    reader.progress.restart()
    assert reader.read() is None
    reader.now = 0.5
    assert reader.read(1) == 500_000_000


steps = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=200
)


@given(steps)
def test_no_packet_from_before_what_is_complete_is_delivered_later(steps):
    """Each step packets come, some are read, and the rest is in an open block or left."""
    reader = Reader()
    stamps = []
    for number, (come, read, more) in enumerate(steps):
        reader.now = number / 1000
        stamps += [int(reader.now * 10**9)] * come
        reader.waiting += come
        complete = reader.read(min(read, reader.waiting), more=more)
        if complete is not None:
            assert all(each >= complete for each in stamps[reader.packets :])
