"""What a worker counted against what came."""

from __future__ import annotations

import pytest

from ddump_common.note import EndReason, StreamNote
from ddump_merger.books import Books
from ddump_merger.counters import Heartbeat
from ddump_merger.losses import Losses


def heartbeat(
    read=10, delivered=10, dropped=0, interface=0, received=10, note="", ended=None
):
    return Heartbeat(
        1,
        1,
        read,
        0,
        ended,
        received,
        interface,
        dropped,
        delivered,
        f"{note}".encode(),
    )


def last(**counts):
    """Return the heartbeat that a stream ends with."""
    return heartbeat(ended=1, **counts)


def test_nothing_is_lost_of_what_nobody_told():
    assert Books().losses == Losses()


def test_all_that_a_heartbeat_says():
    books = Books()
    note = StreamNote(ended=EndReason.COMPLETE, skipped=7)
    books.check(last(read=8, dropped=3, interface=4, received=13, note=note))
    assert books.losses == Losses(
        received=13, dropped=3, interface_dropped=4, skipped=7, missing=2
    )
    assert books.current == books.losses
    assert not books.overdelivered


def test_the_last_heartbeat_counts_and_all_streams():
    books = Books()
    books.check(heartbeat(dropped=1))
    books.check(last(dropped=5))
    books.close()
    books.close()
    assert books.current == Losses()
    books.check(last(dropped=2))
    assert books.losses.dropped == 7
    assert books.losses.received == 20


def test_what_nobody_tells_is_not_known():
    books = Books()
    books.check(last(dropped=None, interface=None, received=None, delivered=None))
    assert books.losses == Losses()
    books.close()
    books.check(last(dropped=2))
    assert books.losses.dropped == 2
    assert books.losses.received is None  # of one stream only: that means nothing


def test_what_was_missing_once_stays_so():
    books = Books()
    books.check(heartbeat(read=7))
    books.check(heartbeat(read=10))
    assert books.losses.missing == 3


def test_a_worker_that_counts_too_few():
    books = Books()
    books.check(heartbeat(read=11))
    assert books.overdelivered
    assert books.losses.missing == 0
    assert books.losses.surplus == 1
    books.check(heartbeat())
    books.close()
    books.check(heartbeat(read=13))
    assert books.losses.surplus == 4


@pytest.mark.parametrize("note", ["\xff\xfe", "skipped: many", "ended: soon"])
def test_a_note_that_is_none(note):
    books = Books()
    books.check(heartbeat(note=note))
    assert books.losses.skipped == 0


def test_what_was_received_is_known_when_a_stream_has_ended():
    books = Books()
    books.check(heartbeat(received=7))
    assert books.losses.received is None
    books.check(last(received=9))
    assert books.losses.received == 9
    books.close()
    assert books.losses.received == 9
    books.check(heartbeat(received=5))
    assert books.losses.received is None


def test_of_a_stream_that_broke_it_is_never_known_what_was_received():
    books = Books()
    books.check(heartbeat(received=7))
    books.close()
    assert books.losses.received is None
    books.check(last(received=5))
    books.close()
    assert books.losses.received is None


def test_what_was_told_once_is_not_taken_back():
    books = Books()
    books.check(heartbeat(dropped=500, interface=400, received=600, read=13))
    books.check(last(dropped=0, interface=None, received=0, read=10))
    assert books.losses == Losses(
        received=600, dropped=500, interface_dropped=400, surplus=3
    )


def test_counts_are_no_greater_than_everybody_can_show():
    books, huge = Books(), (1 << 64) - 1
    for _ in range(2):
        books.check(last(received=huge, dropped=huge, interface=huge, delivered=huge))
        books.close()
    most = (1 << 63) - 1
    assert books.losses == Losses(
        received=most, dropped=most, interface_dropped=most, missing=most
    )
