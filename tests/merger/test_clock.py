"""Who is moved by the clock, and when it looks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from ddump_merger._merge import Merge
from ddump_merger.clock import Clock
from ddump_merger.lane import Lane, LaneState
from ddump_merger.target import HttpTarget, parse_target
from support.captures import Record, pcap

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
NOW = START + 3600 * SECOND


@dataclass
class Moves:
    """A merge that notes who is moved by the clock."""

    merge: Merge
    moved: list

    def advance(self, index, timestamp_ns):
        self.moved.append((index, timestamp_ns))
        self.merge.advance(index, timestamp_ns)

    def __getattr__(self, name):
        return getattr(self.merge, name)


class Run:
    """A clock of open lanes that were last heard of so many seconds ago."""

    def __init__(self, heard, words=None):
        words = words or [f"http://h{n}" for n in range(len(heard))]
        targets = [parse_target(word) for word in words]
        now = asyncio.get_running_loop().time()
        self.lanes = [
            Lane(
                index=index,
                target=target,
                source=None,
                live=isinstance(target, HttpTarget) and target.live,
                heard=now - ago,
                state=LaneState.OPEN,
            )
            for index, (target, ago) in enumerate(zip(targets, heard, strict=True))
        ]
        self.merge = Merge(len(heard))
        self.moved = []
        self.woken = asyncio.Event()
        self.clock = Clock(
            Moves(self.merge, self.moved), self.lanes,
            hold_ns=SECOND, on_move=self.woken.set, now_ns=lambda: NOW,
        )  # fmt: skip
        self.clock._due = now

    def delay(self):
        """Return in how many seconds the clock looks again, and stop it."""
        delay = self.clock._timer.when() - asyncio.get_running_loop().time()
        self.clock.stop()
        return delay


async def test_who_was_silent_is_moved():
    run = Run([0.5, 1.5, 60])
    run.clock._look()
    assert run.moved == [(1, NOW - SECOND), (2, NOW - SECOND)]
    assert run.woken.is_set()
    assert not run.clock.running  # nothing is held back


async def test_files_and_who_has_ended_are_never_moved():
    run = Run([60, 60, 60], words=["http://a", "b", "http://c"])
    run.lanes[2].state = LaneState.ENDED
    run.clock._look()
    assert [index for index, _ in run.moved] == [0]


async def test_it_looks_again_while_something_is_held_back():
    run = Run([0, 60])
    run.merge.start(113)
    run.merge.receive_data(0, pcap([Record(START, b"x")]))
    run.clock._look()
    assert 0.05 < run.delay() <= 0.1  # hold / 10


async def test_it_waits_for_the_first_who_falls_silent():
    run = Run([0.25, 0.5])
    run.clock.start()
    timer = run.clock._timer
    run.clock.start()
    assert run.clock._timer is timer
    assert 0.45 < run.delay() <= 0.5


async def test_it_looks_by_itself():
    run = Run([0.95])
    run.clock.start()
    async with asyncio.timeout(5):
        await run.woken.wait()
    assert run.moved == [(0, NOW - SECOND)]


async def test_files_alone_need_no_clock():
    run = Run([60, 60], words=["a", "b"])
    run.clock.start()
    assert not run.clock.running
    run.clock.stop()


async def test_a_process_that_slept_has_not_listened():
    run = Run([60, 60])
    run.clock._due -= 0.6  # more than half of hold too late
    run.clock._look()
    assert run.moved == []


async def test_a_process_that_did_not_read_has_not_listened():
    run = Run([60, 60])
    run.clock.pause()
    run.clock._look()
    assert run.moved == []
    for lane in run.lanes:
        lane.heard -= 60
    run.clock.resume()
    run.clock._look()
    assert run.moved == []  # it counts from anew
    for lane in run.lanes:
        lane.heard -= 60
    run.clock._look()
    assert len(run.moved) == 2


async def test_who_is_ahead_is_not_moved():
    run = Run([60, 60])
    run.lanes[0].ahead = True
    run.clock._look()
    assert [index for index, _ in run.moved] == [1]


@pytest.mark.parametrize(
    ("words", "states", "moved"),
    [
        # Streams flow on while another target is still connecting,
        (["http://a", "http://b"], ["open", "connecting"], [0, 1]),
        (["http://a", "http://b"], ["connecting", "connecting"], [0, 1]),
        # files wait for it,
        (["a", "http://b"], ["open", "connecting"], []),
        # and when there are both, the stream counts for more.
        (["a", "http://b", "http://c"], ["open", "open", "connecting"], [1, 2]),
        # Windows are as files: they wait,
        (["http://a?last=1m", "http://b"], ["open", "connecting"], []),
        (["http://a?last=1m&follow=1", "http://b?last=1m"], ["open", "connecting"], []),
        # and hold streams back while they are open, not while they connect.
        (["http://a?last=1m", "http://b"], ["open", "open"], [1]),
        (["http://a?last=1m", "http://b"], ["connecting", "open"], [1, 0]),
    ],
)
async def test_who_is_held_by_a_target_that_connects(words, states, moved):
    run = Run([60] * len(words), words=words)
    for lane, state in zip(run.lanes, states, strict=True):
        lane.state = LaneState(state)
    run.clock._look()
    assert [index for index, _ in run.moved] == moved


async def test_who_sends_heartbeats_is_never_moved():
    run = Run([60, 60])
    run.lanes[0].trusted = True
    run.clock._look()
    assert run.moved == [(1, NOW - SECOND)]


async def test_nobody_looks_when_all_send_heartbeats():
    run = Run([60])
    run.lanes[0].trusted = True
    run.merge.receive_data(0, pcap([Record(START)]))
    run.clock.start()
    assert not run.clock.running


async def test_who_is_away_is_not_moved():
    """The merge does not wait for it, so it has not to be moved."""
    run = Run([60, 60])
    run.lanes[0].state = LaneState.BROKEN
    run.clock._look()
    assert run.moved == [(1, NOW - SECOND)]
