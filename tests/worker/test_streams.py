"""The life of streams, and the sums over them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from ddump_common.answers import StreamState
from ddump_common.api import CaptureQuery, RingQuery
from ddump_worker.denial import ForbiddenError
from ddump_worker.heartbeat import Tally
from ddump_worker.identity import Identity, IdentityKind
from ddump_worker.interfaces import Interface
from ddump_worker.streams import TRANSITIONS, DropMeter, Streams
from support.orders import client, order

QUERY = CaptureQuery(filter="udp")


class Capture:
    """What a stream asks of a live capture, with numbers that a test sets."""

    granted = 1 << 20
    skipped = 0
    position_ns = None
    received = 9

    def __init__(self, packets=0, data_bytes=0, dropped=0):
        self.packets, self.data_bytes, self.dropped = packets, data_bytes, dropped
        self.stopped = self.refreshed = self.undelivered = 0
        self.failures = []

    def stop(self):
        self.stopped += 1

    def refresh(self):
        self.refreshed += 1

    def fail(self, failure):
        self.failures.append(str(failure))


def interface(index: int, dropped: int) -> Interface:
    return Interface(
        name=f"if{index}",
        index=index,
        up=True,
        loopback=False,
        promiscuous=False,
        dropped=dropped,
    )


def begin(streams: Streams, *, interfaces=(), chosen=frozenset()):
    return streams.open(
        order=order(QUERY),
        started_ns=7,
        interfaces=interfaces,
        chosen=chosen,
    )


async def test_a_stream_goes_through_its_states():
    streams = Streams()
    stream = begin(streams)
    assert streams.states() == {"opening": 1, "running": 0, "draining": 0, "closed": 0}
    stream.run(Capture())
    assert streams.states()["running"] == 1
    stream.move(StreamState.DRAINING)
    assert streams.states()["draining"] == 1
    streams.close(stream)
    assert streams.states() == {"opening": 0, "running": 0, "draining": 0, "closed": 1}
    assert len(streams) == 0


@pytest.mark.parametrize("state", StreamState)
async def test_only_the_table_s_transitions_are_possible(state):
    for target in StreamState:
        stream = begin(Streams())
        stream.state = state
        if target in TRANSITIONS[state]:
            stream.move(target)
            assert stream.state is target
        else:
            with pytest.raises(RuntimeError, match=f"{state} cannot become {target}"):
                stream.move(target)


async def test_an_account_before_and_after_the_handle_is_open():
    stream = begin(Streams())
    assert stream.info().buffer_bytes == 0
    stream.run(Capture(3, 400, 2))
    info = stream.info()
    assert (info.id, info.client, info.filter) == (1, "1.2.3.4:5", "udp")
    assert info.identity == "anonymous"
    assert (info.packets, info.bytes, info.dropped) == (3, 400, 2)
    assert (info.buffer_bytes, info.started_ns) == (1 << 20, 7)


async def test_a_window_s_account_is_its_own():
    streams = Streams()
    window = streams.open(order=order(RingQuery(follow=True)), started_ns=7)
    assert not streams.open(order=order(QUERY), started_ns=0).info().window
    pull = Capture(5, 600, 9)
    pull.skipped, pull.position_ns, pull.granted = 8, 77, 0
    window.run(pull)
    streams.refresh([interface(1, 5)])
    info = window.info()
    assert (info.window, info.skipped, info.position_ns) == (True, 8, 77)
    assert (info.packets, info.dropped, info.interface_dropped) == (5, 9, 5)
    # The recorder lost them, and each pull of the same packets would count them.
    for _ in range(2):
        totals = streams.totals()
        assert (totals.packets, totals.dropped) == (5, 0)
        if window.state is not StreamState.CLOSED:
            streams.close(window)


async def test_what_is_counted_for_heartbeats_is_of_the_moment():
    stream = begin(Streams(), interfaces=[interface(1, 5)])
    with pytest.raises(RuntimeError, match="does not run"):
        stream.tally()
    capture = Capture(packets=3, dropped=2)
    stream.run(capture)
    stream.refresh([interface(1, 9)])
    before_ns = time.time_ns()
    tally = stream.tally()
    assert before_ns <= tally.counted_ns <= time.time_ns()
    assert replace(tally, counted_ns=0) == Tally(
        received=9, interface_dropped=4, dropped=2, delivered=3, skipped=0, counted_ns=0
    )
    assert capture.refreshed == 2


async def test_what_was_left_in_the_ring_at_the_end_is_dropped():
    stream = begin(Streams())
    capture = Capture(packets=3, dropped=2)
    stream.run(capture)
    assert stream.tally().dropped == 2
    capture.undelivered = 4
    tally = stream.tally()
    assert tally.delivered + tally.dropped == tally.received == 9
    assert stream.info().dropped == 2


async def test_of_a_window_that_is_followed_interfaces_are_asked_from_then_on():
    host = [interface(1, 5), interface(2, 7)]
    stream = Streams().open(
        order=order(RingQuery(follow=True)),
        started_ns=1,
        interfaces=host,
        chosen=frozenset({2}),
    )
    capture = Capture(packets=3)
    stream.run(capture)
    assert stream.tally().interface_dropped == 0
    stream.refresh([interface(1, 6), interface(2, 10)])
    assert stream.tally().interface_dropped == 3
    # What it names may go: it is in the ring.
    stream.refresh([interface(1, 6)])
    assert (capture.failures, stream.failure([])) == ([], None)


async def test_of_a_window_no_interface_is_asked():
    stream = Streams().open(order=order(RingQuery()), started_ns=1)
    capture = Capture(packets=3, dropped=2)
    capture.received, capture.skipped = None, 7
    stream.run(capture)
    stream.refresh([interface(1, 5)])
    assert replace(stream.tally(), counted_ns=0) == Tally(
        received=None,
        interface_dropped=None,
        dropped=2,
        delivered=3,
        skipped=7,
        counted_ns=0,
    )


async def test_totals_are_those_of_ended_and_running_streams():
    streams = Streams()
    first = begin(streams, interfaces=[interface(1, 5)])
    first.run(Capture(10, 1000, 1))
    begin(streams).run(Capture(2**40, 2**45, 2**33))
    first.refresh([interface(1, 9)])
    before = streams.totals()
    assert (before.packets, before.bytes) == (2**40 + 10, 2**45 + 1000)
    assert (before.dropped, before.interface_dropped) == (2**33 + 1, 4)
    assert (before.streams, before.refused) == (2, 0)
    streams.close(first)
    assert streams.totals() == before
    last = begin(streams)
    last.run(Capture())
    last._capture.undelivered = 2**40
    assert streams.close(last).undelivered == 2**40
    assert streams.totals().undelivered == 2**40
    streams.refused["filter"] += 2
    streams.refused["memory"] += 1
    assert streams.totals().refused == 3


async def test_refreshing_asks_each_open_capture():
    streams = Streams()
    opening, running = begin(streams), begin(streams)
    capture = Capture()
    running.run(capture)
    streams.refresh([])
    assert capture.refreshed == 1
    assert opening.info().dropped == 0
    assert [info.id for info in streams.infos()] == [1, 2]


async def test_interfaces_that_go_are_told_once_and_all_of_them_end_it(caplog):
    host = [interface(1, 0), interface(2, 0), interface(3, 0)]
    streams = Streams()
    opening = begin(streams, interfaces=host, chosen=frozenset({1}))
    every = begin(streams, interfaces=host)
    some = begin(streams, interfaces=host, chosen=frozenset({1, 2}))
    captures = Capture(), Capture()
    every.run(captures[0])
    some.run(captures[1])
    for present in (host, host[1:], host[1:], host[2:]):
        streams.refresh(present)
    assert opening.info().state == "opening"
    assert captures[0].failures == []
    assert captures[1].failures == ["gone from this host: if1, if2"]
    assert caplog.messages == ["stream 3: gone from this host: if1"]


async def test_stopping_reaches_streams_in_each_state():
    streams = Streams()
    running, opening = begin(streams), begin(streams)
    first, second, third = Capture(), Capture(), Capture()
    running.run(first)
    streams.stop()
    assert first.stopped == 1
    opening.run(second)
    assert second.stopped == 1
    late = begin(streams)
    late.run(third)
    assert third.stopped == 1


async def test_all_closed_is_waited_for():
    streams = Streams()
    await streams.all_closed()
    stream = begin(streams)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(streams.all_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        streams.close(stream)
    assert waiting.done()


class TestDropMeter:
    def test_it_sums_what_is_added(self):
        meter = DropMeter([interface(1, 10), interface(2, 20)], frozenset())
        meter.observe([interface(1, 11), interface(2, 25)])
        meter.observe([interface(1, 11), interface(2, 26)])
        assert meter.dropped == 7

    def test_only_the_chosen(self):
        meter = DropMeter([interface(1, 10), interface(2, 20)], frozenset({2}))
        meter.observe([interface(1, 90), interface(2, 21)])
        assert meter.dropped == 1

    def test_a_counter_that_starts_anew(self):
        meter = DropMeter([interface(1, 10)], frozenset())
        meter.observe([interface(1, 3)])
        meter.observe([interface(1, 5)])
        assert meter.dropped == 5

    def test_an_interface_that_is_new(self):
        meter = DropMeter([], frozenset())
        meter.observe([interface(7, 4)])
        meter.observe([])
        meter.observe([interface(7, 6)])
        assert meter.dropped == 6


async def test_an_identity_has_so_many_at_once_wherever_it_comes_from():
    streams = Streams()
    alice = Identity(kind=IdentityKind.USER, name="alice")
    first = order(who=client(alice, "1.1.1.1:1"), max_streams=2)
    second = order(RingQuery(), who=client(alice, "2.2.2.2:2"), max_streams=2)
    streams.check(first)
    opened = [streams.open(order=each, started_ns=1) for each in (first, second)]
    for refuse in (streams.check, lambda each: streams.open(order=each, started_ns=1)):
        with pytest.raises(ForbiddenError, match="max-streams = 2") as refusal:
            refuse(first)
        assert refusal.value.retry_after_seconds > 0
    assert len(streams) == 2
    # A certificate of that name is somebody else.
    other = Identity(kind=IdentityKind.CERT, name="alice")
    streams.open(order=order(who=client(other), max_streams=1), started_ns=1)
    streams.close(opened[0])
    streams.open(order=first, started_ns=1)
