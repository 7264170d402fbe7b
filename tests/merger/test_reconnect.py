"""Streams that break and come back: what is asked, joined, waited for, and told."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from ddump_common.api import Link, RingQuery
from ddump_common.errors import (
    BrokenStreamError,
    RefusedError,
    UnreachableError,
    UntrustedError,
)
from ddump_common.note import EndReason
from ddump_common.ring import RingNote
from ddump_common.window import Interval, WindowReport
from ddump_merger.backoff import Backoff
from ddump_merger.config import ClockMode
from ddump_merger.lane import LaneState
from ddump_merger.outage import Outage
from ddump_merger.skew import Skew
from support.beats import Beats
from support.captures import Record, parse_pcap, pcap, pcap_header
from support.scripted import SECOND, START, Forever, Run, Script, until

RECORDS = [Record(START + n * 1_000_000, b"%d" % n) for n in range(100)]
NOW = START + 3600 * SECOND
CUT = BrokenStreamError("cut")
WHOLE = WindowReport(covered=Interval(begin_ns=START, end_ns=NOW))
RING = RingNote(link=Link.SLL, recording=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Wait for no more than a turn of the loop between two tries."""
    monkeypatch.setattr(Backoff, "next_ns", lambda self, *, asked_ns=0: 0)
    monkeypatch.setattr("ddump_merger.reconnect._ADOPTION_PAUSE_NS", SECOND // 100)


@pytest.fixture
def build(tmp_path):
    def build(*scripts, **options):
        return Run(tmp_path / "out", scripts, **options)

    return build


def broken(records=RECORDS[:60], promised=50, *steps):
    """A stream that breaks after some packets were promised."""
    beats = Beats(START)
    return Script(
        [
            beats.header + beats.heartbeat(START),
            beats.packets(*records),
            beats.heartbeat(RECORDS[promised].timestamp_ns),
            *(steps or [CUT]),
        ],
        trusted=True,
    )


def refill(records=RECORDS[50:], *, window=WHOLE, ended=EndReason.DURATION, **counts):
    """What a ring has, up to its present and its end."""
    beats = Beats(NOW)
    return Script(
        [
            beats.header + beats.heartbeat(START),
            beats.packets(*records),
            beats.heartbeat(NOW, **counts),
            beats.heartbeat(NOW + 1, ended=ended, **counts),
        ],
        trusted=True,
        window=window,
    )


def told_outage(run, lane=0):
    (outage,) = run.lanes[lane].outages
    return outage


# --- With a ring ---


async def test_a_ring_fills_the_gap(build, caplog):
    """What had come already is left out, packet by packet."""
    run = build(broken(), peers={0: {"rings": [RING], "streams": [refill()]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run) == Outage(
        begin_ns=RECORDS[50].timestamp_ns, end_ns=NOW, reason="cut", refilled=40,
        filled=True,
    )  # fmt: skip
    assert not run.lanes[0].incomplete
    assert run.merge.counters(0).joined == 10
    assert run.lanes[0].losses.missing == 0
    (asked,) = run.peers[0].asked
    assert asked.query == RingQuery(since_ns=RECORDS[50].timestamp_ns, follow=True)
    assert asked.path == "/ring"
    assert caplog.messages[0] == "h0: cut; trying it again"
    assert caplog.messages[1].startswith("h0: back, and nothing is lost of ")
    assert run.scripts[0].closed == 1


async def test_twins_are_left_out_as_often_as_they_came(build):
    twin = Record(RECORDS[55].timestamp_ns, b"twin")
    first = broken(sorted([*RECORDS[:60], twin], key=lambda r: r.timestamp_ns))
    rest = sorted([*RECORDS[50:], twin, twin], key=lambda r: r.timestamp_ns)
    run = build(first, peers={0: {"rings": [RING], "streams": [refill(rest)]}})
    found = parse_pcap(await run.to_the_end())
    assert found.count(twin) == 2
    assert len(found) == 102


async def test_twins_that_breaks_part_are_left_out_as_often_as_they_came(build):
    """One had come when the stream broke, and again when the refill did."""
    twin = Record(RECORDS[55].timestamp_ns, b"twin")
    first = broken([*RECORDS[:56], twin])
    beats = Beats(NOW)
    second = Script(
        [
            beats.header + beats.heartbeat(RECORDS[50].timestamp_ns),
            beats.packets(*RECORDS[50:56], twin),
            CUT,
        ],
        trusted=True,
        window=WHOLE,
    )
    rest = refill([*RECORDS[50:56], twin, twin, *RECORDS[56:]])
    run = build(first, peers={0: {"rings": [RING], "streams": [second, rest]}})
    found = parse_pcap(await run.to_the_end())
    assert found.count(twin) == 2
    assert len(found) == 102
    assert told_outage(run).filled


async def test_it_breaks_again_while_it_is_refilled(build):
    """What both streams had brought is left out of the third."""
    beats = Beats(NOW)
    second = Script(
        [
            beats.header + beats.heartbeat(RECORDS[50].timestamp_ns),
            beats.packets(*RECORDS[50:70]),
            beats.heartbeat(RECORDS[55].timestamp_ns),
            BrokenStreamError("cut again"),
        ],
        trusted=True,
        window=WHOLE,
    )
    peer = {"rings": [RING], "streams": [second, refill(RECORDS[55:])]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert [each.query.since_ns for each in run.peers[0].asked] == [
        RECORDS[50].timestamp_ns, RECORDS[55].timestamp_ns,
    ]  # fmt: skip
    assert told_outage(run).reason == "cut"
    assert told_outage(run).filled


async def test_it_breaks_before_anything_came_of_the_second(build):
    second = Script([CUT], trusted=True, window=WHOLE)
    peer = {"rings": [RING], "streams": [second, refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert len({each.query.since_ns for each in run.peers[0].asked}) == 1
    assert told_outage(run).filled


async def test_it_breaks_twice_and_each_is_told(build):
    beats = Beats(NOW)
    second = Script(
        [
            beats.header + beats.packets(*RECORDS[50:80]),
            beats.heartbeat(NOW),
            BrokenStreamError("cut again"),
        ],
        trusted=True,
        window=WHOLE,
    )
    last = Record(NOW + 5000, b"last")
    peer = {"rings": [RING], "streams": [second, refill([last])]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:80], last]
    first, other = run.lanes[0].outages
    assert first.filled
    assert other.filled
    assert (first.refilled, other.refilled) == (20, 0)
    assert other.begin_ns == NOW
    assert other.reason == "cut again"


@pytest.mark.parametrize(
    "lacks",
    [
        {"window": WindowReport(covered=None, gaps=(Interval(begin_ns=0, end_ns=1),))},
        {"window": WindowReport(covered=None, omitted=3)},
        {"window": None},
        {"dropped": 1},
        {"skipped": 1},
        {"delivered": 100},
    ],
)
async def test_what_the_ring_lacks_is_told(build, caplog, lacks):
    script = refill(**lacks)
    run = build(broken(), peers={0: {"rings": [RING], "streams": [script]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert not told_outage(run).filled
    assert run.lanes[0].incomplete
    assert any("packets may be missing" in message for message in caplog.messages)


async def test_a_ring_that_looks_through_its_past_is_waited_for(build):
    adopting = replace(RING, adopting=True)
    peer = {"rings": [adopting, adopting, RING], "streams": [refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.peers[0].rings == [RING]


async def test_a_ring_that_says_so_for_ever_is_asked_all_the_same(build, monkeypatch):
    monkeypatch.setattr("ddump_merger.reconnect._LONGEST_ADOPTION_NS", SECOND // 10)
    adopting = replace(RING, adopting=True)
    run = build(broken(), peers={0: {"rings": [adopting], "streams": [refill()]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled


async def test_too_much_since_the_last_promise_is_not_joined_exactly(build):
    big = [Record(each.timestamp_ns, bytes(1000)) for each in RECORDS]
    beats = Beats(START)
    first = Script(
        [
            beats.header + beats.heartbeat(START),
            *map(beats.packets, big[:60]),
            CUT,
        ],
        trusted=True,
    )
    run = build(
        first, buffer_bytes=20_000,
        peers={0: {"rings": [RING], "streams": [refill(big[60:])]}},
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == big
    (asked,) = run.peers[0].asked
    assert START < asked.query.since_ns <= big[59].timestamp_ns
    assert not told_outage(run).filled


async def test_a_tail_that_cannot_be_read_is_not_joined(build, caplog):
    """A second section before the last promise describes what follows it."""
    beats, other = Beats(START), Beats(START, nano=False)
    first = Script(
        [
            beats.header + beats.heartbeat(START),
            beats.packets(*RECORDS[:50]),
            other.header,
            other.packets(*RECORDS[50:60]),
            CUT,
        ],
        trusted=True,
    )
    run = build(first, peers={0: {"rings": [RING], "streams": [refill(RECORDS[60:])]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS


async def test_garbage_of_a_ring_ends_no_live_target(build, caplog):
    """It is not asked again: the target itself goes on."""
    bad = Script([b"\xff" * 100], trusted=True, window=WHOLE)
    run = build(
        broken(), Script([pcap(RECORDS)]),
        peers={0: {"rings": [RING], "streams": [bad, again()]}},
    )  # fmt: skip
    await run.to_the_end()
    assert run.errors == [None, None]
    assert run.merge.counters(0).packets == 80
    assert [type(each.query) is RingQuery for each in run.peers[0].asked] == [
        True, False,
    ]  # fmt: skip
    assert not told_outage(run).filled
    assert "h0: its ring: not a capture file" in caplog.text
    assert not run.lanes[1].incomplete


async def test_a_ring_without_what_had_come_proves_nothing(build):
    """It may be another host's."""
    run = build(
        broken(), peers={0: {"rings": [RING], "streams": [refill(RECORDS[60:])]}}
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.merge.counters(0).joined == 0
    assert not told_outage(run).filled


async def test_promises_of_the_future_are_not_believed(build, caplog):
    beats = Beats(START)
    liar = Script(
        [
            beats.header + beats.packets(*RECORDS[:50]),
            beats.heartbeat(NOW + 3600 * SECOND),
            CUT,
        ],
        trusted=True,
        sample=Skew(offset_ns=0, error_ns=1000),
    )
    peer = {"rings": [RING], "streams": [again()]}
    run = build(liar, duration_ns=SECOND, peers={0: peer})
    assert run.lanes[0].distrusted == ""
    await run.to_the_end()
    assert run.merge.counters(0).packets == 70
    assert run.lanes[0].distrusted == "its heartbeats promise what is yet to come"
    assert "h0: its heartbeats promise what is yet to come" in caplog.text
    assert not told_outage(run).filled


@pytest.mark.usefixtures("_impatient")
async def test_promises_that_stand_still_are_not_waited_for(build, caplog):
    """Others go on by the clock; none of it is lost."""
    beats = Beats(START)
    held = asyncio.Event()
    steps = [beats.header + beats.heartbeat(START)]
    for number in range(10):
        steps += [beats.heartbeat(START, delivered=0, received=number), asyncio.Event()]
    frozen = Script(steps, trusted=True, sample=Skew(offset_ns=0, error_ns=1000))
    good = Script([pcap(RECORDS), held])
    run = build(frozen, good, hold_ns=SECOND // 100)

    async def beat():
        while frozen.steps:
            step = frozen.steps[0]
            if isinstance(step, asyncio.Event):
                await asyncio.sleep(0.02)
                step.set()
            await asyncio.sleep(0)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        beating = tasks.create_task(beat())
        await until(lambda: run.merge.counters(1).packets == 100)
        beating.cancel()
        held.set()
        run.fanin.interrupt()
        await running
    assert run.lanes[0].distrusted == ""
    assert [each for each in caplog.messages if "stand still" in each] == [
        "h0: its heartbeats stand still; nobody waits for it until they are in time again"
    ]


class Slow(Script):
    """A source that is read fifty times a second at most; ``clock`` is called each time."""

    due = 0.0
    clock = staticmethod(lambda: None)

    async def read(self):
        now = asyncio.get_running_loop().time()
        self.due = self.due if self.due > now - 0.02 else now + 0.02  # the rate
        await asyncio.sleep(self.due - now)
        self.due += 0.02
        self.clock()
        return await super().read()


@pytest.mark.usefixtures("_impatient")
async def test_who_is_late_is_not_waited_for_and_trusted_all_the_same(build, caplog):
    """As in a network that has less room than is sent; a break costs nothing even so."""
    beats = Beats(NOW)
    start_ns = NOW - 8 * SECOND
    late = [Record(start_ns + n * 20_000_000, b"%d" % n) for n in range(30)]
    soon = [Record(NOW + n * 20_000_000, b"%d" % n) for n in range(10)]
    steps = [beats.header + beats.heartbeat(start_ns)]
    steps += [
        beats.packets(each) + beats.heartbeat(each.timestamp_ns)
        for each in [*late, *soon]
    ]
    slow = Slow(
        [*steps, CUT], trusted=True, sample=Skew(offset_ns=0, error_ns=1000)
    )  # fmt: skip
    other = Beats(NOW)
    good = Script(
        [other.header + other.packets(Record(NOW, b"other")) + other.heartbeat(NOW),
         Forever],
        trusted=True,
    )  # fmt: skip
    run = build(
        slow,
        good,
        peers={0: {"rings": [RING], "streams": [refill(soon[-1:], ended=EndReason.DURATION)]}},
    )  # fmt: skip

    def clock():
        run.now_ns += 20_000_000

    slow.clock = clock
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.counters(1).packets == 1)
        assert slow.steps  # it is late still
        await until(lambda: run.lanes[0].ended)
        run.fanin.interrupt()
        await running
    assert [each.path for each in run.peers[0].asked] == ["/ring"]
    assert run.lanes[0].distrusted == ""
    assert told_outage(run).filled
    heard = [each for each in caplog.messages if "heartbeats" in each]
    assert len(heard) == 2, heard
    assert heard[0].startswith("h0: its heartbeats are 8s late; nobody waits for it")
    assert heard[1] == "h0: its heartbeats are in time again"


async def test_a_clock_that_is_set_is_measured_anew_before_a_stream_is_doubted(
    build, caplog
):
    beats = Beats(NOW)
    set_back, done = asyncio.Event(), asyncio.Event()
    script = Script(
        [
            beats.header + beats.heartbeat(NOW - SECOND // 10),
            set_back,
            beats.heartbeat(NOW),
            beats.packets(Record(NOW + 1)),
            done,
            Forever,
        ],
        trusted=True,
        sample=Skew(offset_ns=0, error_ns=1000),
    )
    ahead = Skew(offset_ns=2 * SECOND, error_ns=1000)
    run = build(script, peers={0: {"skews": [None, ahead]}})
    async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].has_header)
        run.now_ns -= 2 * SECOND  # ours
        set_back.set()
        await until(lambda: run.merge.received(0)[0] == 1)
        run.fanin.interrupt()
        await running
    assert run.lanes[0].skew == ahead
    assert run.lanes[0].distrusted == ""
    assert [each for each in caplog.messages if "heartbeats" in each] == []
    assert "h0: its clock is +2.000 s ± 0.001 ms from ours" in caplog.messages


@pytest.mark.parametrize("known", [True, False])
async def test_a_window_that_does_not_come_on_is_cut_short(build, known):
    """Its heartbeats go on, and promise no more; whatever is known of its clock."""
    beats = Beats(START)
    steps = [beats.header + beats.packets(*RECORDS[:9])]
    steps += [beats.heartbeat(START) for _ in range(50)]
    stuck = Slow(
        steps,
        trusted=True,
        window=WHOLE,
        sample=Skew(offset_ns=0, error_ns=1000) if known else None,
    )
    run = build(stuck, words=["http://h0?last=1h"], timeout_ns=SECOND // 5)
    assert parse_pcap(await run.to_the_end()) == RECORDS[:9]
    assert run.errors == [
        "nothing came for 200ms, but heartbeats that stand still (see --timeout)"
    ]
    assert 5 < len(stuck.steps) < 45


@pytest.mark.parametrize(
    ("told", "dropped", "certain"),
    [
        # What was dropped, as counted when, with which promise; how many it stays.
        ([(3, 41, 40), (10, 51, 50)], 3, False),
        ([(3, 41, 40), (3, 51, 50)], 3, True),
        ([(3, 41, 40), (8, 51, 40), (10, 56, 40)], 0, False),
        ([(0, 41, 40), (8, 51, 40), (10, 56, 40)], 0, True),
        ([(3, 41, 40), (8, 51, 50), (9, 56, 50), (10, 61, 50)], 3, False),
        ([(3, 41, 40), (3, 51, 50), (9, 56, 50), (10, 61, 50)], 3, True),
        ([(0, 41, 40), (0, 51, 50)], 0, True),
        ([(3, None, 40), (10, None, 50)], 0, False),
    ],
)
async def test_drops_that_a_ring_makes_good_count_once(build, told, dropped, certain):
    """Those that were counted after the moment from which on the ring is asked.

    Where some may be of before, that is not said to be whole.
    """
    beats = Beats(START)
    first = Script(
        [
            beats.header + beats.packets(*RECORDS[:60]),
            *(
                beats.heartbeat(
                    RECORDS[promised].timestamp_ns,
                    dropped=count,
                    counted_ns=None if when is None else RECORDS[when].timestamp_ns,
                )
                for count, when, promised in told
            ),
            CUT,
        ],
        trusted=True,
        window=WHOLE,
    )
    _, _, promised = told[-1]
    rest = refill(RECORDS[promised:])
    run = build(first, peers={0: {"rings": [RING], "streams": [rest]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.lanes[0].losses.dropped == dropped
    assert told_outage(run).filled == certain


@pytest.mark.parametrize("again", [0, 4])
@pytest.mark.parametrize("window", ["last=1h", "last=1h&follow=1"])
async def test_drops_that_a_ring_has_told_stay_counted(build, window, again):
    """They are of what is before its promise, and the next stream tells of the rest."""
    beats = Beats(START)
    first = Script(
        [
            beats.header + beats.packets(*RECORDS[:60]),
            beats.heartbeat(RECORDS[50].timestamp_ns, dropped=10, counted_ns=NOW),
            CUT,
        ],
        trusted=True,
        window=WHOLE,
    )
    rest = refill(RECORDS[50:], dropped=again)
    peer = {"rings": [RING], "streams": [rest]}
    run = build(first, words=[f"http://h0?{window}"], peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.lanes[0].losses.dropped == 10 + again
    assert told_outage(run).filled == (not again)


@pytest.mark.parametrize(("promised_ns", "lacks"), [(0, True), (SECOND, False)])
async def test_a_time_that_is_over_without_its_end(
    build, monkeypatch, promised_ns, lacks
):
    """What was promised has come; from there on nothing is known."""
    monkeypatch.setattr("ddump_merger.reader._DURATION_GRACE", 0.01)
    beats = Beats(NOW)
    silent = Script(
        [beats.header + beats.heartbeat(NOW + promised_ns), Forever], trusted=True
    )
    run = build(silent, duration_ns=SECOND // 10, peers={0: {}})
    await run.to_the_end()
    assert run.lanes[0].incomplete == lacks
    assert bool(run.errors[0]) == lacks


async def test_a_target_without_a_header_in_its_time_is_missing(build, monkeypatch):
    monkeypatch.setattr("ddump_merger.reader._DURATION_GRACE", 0.01)
    run = build(Script([Forever]), Script([pcap(RECORDS)]), duration_ns=1)
    await run.to_the_end()
    assert run.errors == ["no header of a capture came", None]
    assert run.lanes[0].incomplete


@pytest.mark.parametrize("silence", [0.0, 3600.0])
async def test_who_is_silent_when_it_is_interrupted_is_not_complete(
    build, monkeypatch, silence
):
    monkeypatch.setattr("ddump_merger.reader._LONGEST_SILENCE", silence)
    beats = Beats(START)
    part = Script([beats.header + beats.packets(*RECORDS), Forever], trusted=True)
    run = build(part, peers={0: {}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.received(0)[0] == 100)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert run.lanes[0].incomplete == (silence == 0)


@pytest.mark.parametrize("word", ["http://h0", "http://h0?since=0&follow=1"])
@pytest.mark.parametrize(("behind", "lacks"), [(1, False), (3, True)])
async def test_who_is_behind_when_it_is_interrupted_is_not_complete(
    build, utc, word, behind, lacks
):
    """It brings packets all the while, and what it did not bring yet is in no count."""
    beats = Beats(START)
    promise = beats.heartbeat(RECORDS[-1].timestamp_ns + 1)
    part = Script(
        [beats.header + beats.packets(*RECORDS) + promise, Forever],
        trusted=True,
        window=WHOLE,
        sample=Skew(offset_ns=0, error_ns=1000),
    )
    run = build(part, words=[word], peers={0: {}})
    run.now_ns = RECORDS[-1].timestamp_ns + behind * SECOND
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.received(0)[0] == 100)
        part.unread = [beats.heartbeat(RECORDS[-1].timestamp_ns + 2)]
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert run.lanes[0].incomplete == lacks
    assert run.errors == (
        ["behind at the end: nothing since 22:13:20.099"] if lacks else [None]
    )


async def test_other_packets_of_a_ring_are_written_and_counted(build):
    """They were not asked for: nobody can tell what they are."""
    strange = [Record(START + n * 1000, b"strange %d" % n) for n in range(10)]
    run = build(
        broken(), peers={0: {"rings": [RING], "streams": [refill(strange)]}}
    )  # fmt: skip
    found = parse_pcap(await run.to_the_end())
    assert found == [*RECORDS[:60], *strange]
    assert run.merge.counters(0).refilled == 10
    assert run.merge.counters(0).late == 0


async def test_who_comes_back_without_heartbeats(build):
    """Nobody can tell when the refill is over."""
    plain = Script([pcap(RECORDS[50:])], window=WHOLE)
    run = build(broken(), peers={0: {"rings": [RING], "streams": [plain]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert not told_outage(run).filled


async def test_others_do_not_wait_for_who_is_away(build):
    away = asyncio.Event()
    other = Beats(START)
    run = build(
        broken(),
        Script([other.header, other.packets(*RECORDS), other.heartbeat(NOW), Forever],
               trusted=True),
        peers={0: {"rings": [RING], "streams": [Script(opening=away)]}},
    )  # fmt: skip
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.counters(1).packets == 100)
        assert run.lanes[0].state is LaneState.BROKEN
        run.fanin.interrupt()
        assert len(parse_pcap(await running)) == 160
    assert run.lanes[0].incomplete
    assert told_outage(run).end_ns is None


async def test_others_wait_again_when_it_is_back(build):
    """What is refilled is not late; after it all is in order again."""
    rest = asyncio.Event()
    late = Record(NOW + 10_000, b"late?")
    other, beats = Beats(START), Beats(NOW)
    back = Script(
        [
            beats.header + beats.packets(*RECORDS[50:]),
            beats.heartbeat(NOW + 1),
            rest,
            beats.packets(late),
            beats.heartbeat(NOW + SECOND),
            Forever,
        ],
        trusted=True,
        window=WHOLE,
    )
    after, there = Record(NOW + 20_000, b"after"), asyncio.Event()
    run = build(
        broken(),
        Script([other.header, there, other.packets(after),
                other.heartbeat(NOW + SECOND), Forever], trusted=True),
        peers={0: {"rings": [RING], "streams": [back]}},
    )  # fmt: skip
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.received(0)[0] == 100)
        there.set()
        await until(lambda: run.merge.received(1)[0] == 1)
        await until(lambda: run.merge.counters(0).packets == 100)
        assert run.merge.counters(1).packets == 0
        rest.set()
        await until(lambda: run.merge.counters(1).packets == 1)
        run.fanin.interrupt()
        assert parse_pcap(await running) == [*RECORDS, late, after]
    assert [run.merge.counters(n).late for n in range(2)] == [0, 0]


@pytest.mark.parametrize("late", [1, 4, 6])
async def test_others_wait_for_who_is_back_as_if_it_had_not_been_away(build, late):
    """Its clock is 3 s behind theirs, and it is late by that: up to 5 s, as ever."""
    away, on, rest = asyncio.Event(), asyncio.Event(), asyncio.Event()
    there_ns = NOW - 3 * SECOND  # by its clock, as it comes back
    beats, other = Beats(there_ns), Beats(START)
    back = Script(
        [
            beats.header + beats.packets(*RECORDS[50:]) + beats.heartbeat(there_ns),
            rest,
            beats.heartbeat(NOW + SECOND),
            Forever,
        ],
        opening=away,
        trusted=True,
        window=WHOLE,
    )
    before, after = Record(NOW, b"before"), Record(NOW + 1000, b"after")
    first = broken()
    first.sample = Skew(offset_ns=-3 * SECOND, error_ns=1000)
    run = build(
        first,
        Script(
            [
                other.header + other.packets(before) + other.heartbeat(NOW + 1),
                on,
                other.packets(after) + other.heartbeat(NOW + SECOND),
                Forever,
            ],
            trusted=True,
        ),
        peers={0: {"rings": [RING], "streams": [back]}},
    )
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.counters(1).packets == 1)
        away.set()
        await until(lambda: run.lanes[0].outages[0].end_ns is not None)
        run.now_ns += late * SECOND
        await until(lambda: run.merge.received(0)[0] == 100)
        on.set()
        await until(lambda: run.merge.received(1)[0] == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert (run.merge.counters(1).packets == 1) == (late < 5)
        rest.set()
        await until(lambda: run.merge.counters(1).packets == 2)
        run.fanin.interrupt()
        await running
    assert run.merge.counters(0).late == run.merge.counters(1).late == 0


async def test_limits_go_on(build):
    run = build(
        broken(), words=["http://h0?packets=100&duration=2h"],
        peers={0: {"rings": [RING], "streams": [refill()]}},
    )  # fmt: skip
    await run.to_the_end()
    (asked,) = run.peers[0].asked
    assert asked.query.packets == 100 - 60 + 10
    assert asked.query.until_ns == NOW + 7200 * SECOND


async def test_limits_go_on_after_a_refill_that_breaks(build):
    """What both streams brought counts once; what waits to be released has come."""
    octets = [len(record.data) for record in RECORDS]
    beats = Beats(NOW)
    second = Script(
        [
            beats.header + beats.heartbeat(RECORDS[40].timestamp_ns),
            beats.packets(*RECORDS[40:70]),
            CUT,
        ],
        trusted=True,
        window=WHOLE,
    )
    rest = refill(RECORDS[40:], ended=EndReason.PACKETS)
    run = build(
        broken(RECORDS[:60], 40),
        words=[f"http://h0?packets=100&bytes={sum(octets)}"],
        peers={0: {"rings": [RING], "streams": [second, rest]}},
    )
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert [each.query.packets for each in run.peers[0].asked] == [60, 60]
    assert [each.query.bytes for each in run.peers[0].asked] == [sum(octets[40:])] * 2


async def test_nothing_is_left_to_ask_for(build):
    run = build(broken(), words=["http://h0?packets=60"], peers={0: {"rings": [RING]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert told_outage(run).filled
    assert not run.lanes[0].incomplete


async def test_a_duration_that_is_over_meanwhile(build):
    run = build(
        broken(), words=["http://h0?duration=1h"], peers={0: {"rings": [None]}},
    )  # fmt: skip
    hours = itertools.count()
    run.fanin._inlet.clock_ns = lambda: NOW + next(hours) * 3600 * SECOND
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert not told_outage(run).filled


# --- Without a ring ---


def again(records=RECORDS[80:], *, started_ns=RECORDS[80].timestamp_ns):
    """A stream of what comes from now on."""
    beats = Beats(started_ns)
    return Script(
        [
            beats.header + beats.heartbeat(started_ns),
            beats.packets(*records),
            beats.heartbeat(NOW, ended=EndReason.DURATION),
        ],
        trusted=True,
    )


@pytest.mark.parametrize(
    "told_ring",
    [None, {"recording": False}, {"partial": True}, {"link": Link.SLL2}],
)
async def test_without_a_ring_the_gap_is_told(build, caplog, told_ring):
    ring = None if told_ring is None else replace(RING, **told_ring)
    run = build(broken(), peers={0: {"rings": [ring], "streams": [again()]}})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:]]
    assert told_outage(run) == Outage(
        begin_ns=RECORDS[50].timestamp_ns, end_ns=RECORDS[80].timestamp_ns,
        reason="cut", refilled=0, filled=False,
    )  # fmt: skip
    assert run.lanes[0].incomplete
    (asked,) = run.peers[0].asked
    assert asked.path == "/capture"
    assert "packets may be missing" in caplog.messages[-1]


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 416, 503])
async def test_a_ring_that_refuses_is_done_without(build, status):
    refusing = Script(opening=RefusedError("no", status=status))
    peer = {"rings": [RING], "streams": [refusing, again()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:]]
    assert [each.path for each in run.peers[0].asked] == ["/ring", "/capture"]
    assert not told_outage(run).filled


@pytest.mark.parametrize("status", [302, 400, 401, 403, 503])
async def test_a_ring_that_cannot_be_asked_is_done_without(build, caplog, status):
    refusal = RefusedError("not for you", status=status)
    peer = {"rings": [refusal], "streams": [again()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:]]
    assert [each.path for each in run.peers[0].asked] == ["/capture"]
    assert not told_outage(run).filled
    assert "h0: its ring: not for you" in caplog.messages


async def test_a_ring_that_cannot_be_asked_now_is_asked_again(build):
    failing = RefusedError("bad gateway", status=502)
    peer = {"rings": [failing, failing, RING], "streams": [refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled


@pytest.mark.parametrize(
    "failure",
    [
        UnreachableError("refused"),
        *(RefusedError("no", status=status) for status in (429, 500, 502, 504)),
        RefusedError("as many streams as allowed", status=403, retry_after_ns=SECOND),
    ],
)
async def test_what_passes_is_tried_again(build, failure):
    failing = [Script(opening=failure) for _ in range(3)]
    peer = {"rings": [RING], "streams": [*failing, refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert len(run.peers[0].asked) == 4
    assert told_outage(run).filled


async def test_a_worker_that_does_not_answer_is_asked_again(build):
    peer = {"rings": [UnreachableError("refused"), RING], "streams": [refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS


@pytest.mark.parametrize(
    "refusal",
    [
        RefusedError("no", status=401),
        RefusedError("no", status=403),
        UntrustedError("no"),
    ],
)
async def test_who_refuses_for_good_has_ended(build, refusal):
    refusing = Script(opening=refusal)
    run = build(broken(), peers={0: {"rings": [None], "streams": [refusing]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert run.errors == ["no"]
    assert run.lanes[0].incomplete


async def test_who_is_not_trusted_any_more_is_not_asked_for_its_ring_again(build):
    peer = {"rings": [UntrustedError("it is revoked"), RING], "streams": [refill()]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert run.errors == ["it is revoked"]


async def test_what_is_asked_for_is_left_alone(build, monkeypatch):
    waits = []
    monkeypatch.setattr(
        Backoff, "next_ns", lambda self, *, asked_ns=0: waits.append(asked_ns) or 0
    )
    busy = RefusedError("busy", status=503, retry_after_ns=7 * SECOND)
    peer = {"rings": [None], "streams": [Script(opening=busy), again()]}
    run = build(broken(), peers={0: peer})
    await run.to_the_end()
    assert waits == [0, 7 * SECOND]


async def test_a_ring_that_is_there_the_second_time(build):
    """What was lost before stays lost, and nothing of the first stream comes again."""
    beats = Beats(NOW)
    short = Script([beats.header + beats.packets(*RECORDS[80:90]), CUT], trusted=True)
    now = Record(NOW, b"now")
    peer = {"rings": [None, RING], "streams": [short, refill([now])]}
    run = build(broken(), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:90], now]
    assert [each.path for each in run.peers[0].asked] == ["/capture", "/ring"]
    assert NOW - SECOND <= run.peers[0].asked[1].query.since_ns <= NOW
    assert told_outage(run).begin_ns == RECORDS[50].timestamp_ns
    assert not told_outage(run).filled


def set_back(run, *, seconds, outage):
    """Have the worker's clock be found ``seconds`` behind, after an outage of so many."""

    async def skew():
        if run.lanes[0].outages:
            run.now_ns += outage * SECOND
            run.lanes[0].heard -= outage
            return Skew(offset_ns=-seconds * SECOND, error_ns=1000)
        return Skew(offset_ns=0, error_ns=1000)

    run.now_ns = RECORDS[-1].timestamp_ns
    run.peers[0].skew = skew


async def test_a_clock_that_was_put_back_in_an_outage(build):
    """Some of what came meanwhile is older than what is asked for, and not told apart."""
    run = build(broken(), peers={0: {"rings": [RING], "streams": [refill()]}})
    set_back(run, seconds=2, outage=5)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert [each.path for each in run.peers[0].asked] == ["/ring"]
    assert not told_outage(run).filled
    began_ns = told_outage(run).begin_ns
    assert -(10**9) < began_ns - (RECORDS[-1].timestamp_ns - 2 * SECOND) <= 0


async def test_a_clock_that_was_put_back_beyond_what_is_asked_for(build):
    """A ring would bring nothing until the clock comes there."""
    moment_ns = RECORDS[-1].timestamp_ns - SECOND
    late = [replace(each, timestamp_ns=moment_ns + n) for n, each in enumerate(RECORDS)]
    fresh = again(late, started_ns=moment_ns)
    run = build(broken(), peers={0: {"rings": [RING], "streams": [fresh]}})
    set_back(run, seconds=2, outage=1)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.received(0)[0] == 160)
        run.fanin.interrupt()
        await running
    assert [each.path for each in run.peers[0].asked] == ["/capture"]
    assert not told_outage(run).filled
    assert told_outage(run).begin_ns < RECORDS[-1].timestamp_ns - 2 * SECOND
    assert told_outage(run).end_ns >= told_outage(run).begin_ns


async def test_a_clock_that_was_put_back_long_ago_costs_nothing(build):
    """What was promised since then was by the clock that it has now."""
    run = build(broken(), peers={0: {"rings": [RING], "streams": [refill()]}})
    set_back(run, seconds=2, outage=5)
    run.now_ns += 3 * SECOND
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled


# --- Ends that are none ---


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (EndReason.SHUTDOWN, "its worker shut down"),
        (None, "it ended without its worker saying why"),
    ],
)
async def test_an_early_end_is_a_break(build, ended, reason):
    beats = Beats(START)
    first = Script(
        [
            beats.header + beats.packets(*RECORDS[:60]),
            beats.heartbeat(RECORDS[59].timestamp_ns + 1, ended=ended),
        ],
        trusted=True,
    )
    run = build(first, peers={0: {"rings": [RING], "streams": [refill(RECORDS[60:])]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).reason == reason


@pytest.mark.parametrize("word", ["http://h0?last=5m", "http://h0"])
async def test_an_early_end_that_is_not_gone_on_with_is_an_error(build, word):
    beats = Beats(START)
    script = Script([beats.whole(*RECORDS, ended=EndReason.SHUTDOWN)], trusted=True)
    run = build(script, words=[word], reconnect=False)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == ["its worker shut down"]
    assert run.lanes[0].incomplete


async def test_a_cap_ends_a_target_for_good(build):
    """Asking again would go around it."""
    script = Script([Beats(START).whole(*RECORDS, ended=EndReason.CAP)], trusted=True)
    run = build(script, peers={0: {"rings": [RING], "streams": [refill()]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == ["its worker ended it: a limit of its rules was reached"]
    assert run.lanes[0].incomplete
    assert run.peers[0].asked == []


@pytest.mark.parametrize(
    "reason", [r for r in EndReason if r not in {EndReason.SHUTDOWN, EndReason.CAP}]
)
async def test_an_end_as_asked_for(build, reason):
    script = Script([Beats(START).whole(*RECORDS, ended=reason)], trusted=True)
    run = build(script)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == [None]
    assert not run.lanes[0].incomplete


# --- What is not gone on with ---


@pytest.mark.parametrize(
    ("words", "changes", "options"),
    [
        (["a"], {}, {}),
        (["http://h0?last=5m"], {}, {}),
        (["http://h0"], {}, {"reconnect": False}),
        (["http://h0"], {}, {"fail_fast": True}),
        (["http://h0"], {"bounded": True}, {}),
    ],
)
async def test_these_are_not_tried_again(build, words, changes, options):
    script = Script([pcap(RECORDS), CUT], **changes)
    peers = {} if words == ["a"] else {0: {"streams": [again()]}}
    run = build(script, words=words, peers=peers, **options)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == ["cut"]


async def test_who_never_opened_is_not_tried_again(build):
    run = build(
        Script(opening=UnreachableError("refused")), peers={0: {"streams": [again()]}}
    )
    assert await run.to_the_end() is None
    assert run.peers[0].asked == []


async def test_who_broke_before_its_header_is_not_tried_again(build):
    run = build(Script([pcap_header()[:10], CUT]), peers={0: {"streams": [again()]}})
    assert await run.to_the_end() is None
    assert run.peers[0].asked == []


async def test_a_plain_stream_goes_on_from_now(build):
    """Its gap is from its newest packet on until it was opened again."""
    peer = {"streams": [Script([pcap(RECORDS[80:])])]}
    run = build(Script([pcap(RECORDS[:60]), CUT]), peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:]]
    assert told_outage(run) == Outage(
        begin_ns=RECORDS[59].timestamp_ns, end_ns=NOW, reason="cut"
    )


async def test_a_follower_goes_on_as_one(build):
    script = broken()
    run = build(
        script, words=["http://h0?last=1h&follow=1"],
        peers={0: {"rings": [RING], "streams": [refill()]}},
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled


async def test_a_follower_whose_ring_is_gone_follows_from_now(build):
    run = build(
        broken(), words=["http://h0?last=1h&follow=1"],
        peers={0: {"rings": [None], "streams": [again()]}},
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[80:]]
    (asked,) = run.peers[0].asked
    assert asked.query.since_ns == NOW
    assert not told_outage(run).filled


# --- Windows ---


WINDOW = "http://h0?since=1700000000&until=1700000060"


async def test_a_window_goes_on_with_what_is_left_of_it(build):
    """It is joined as the refill of a live stream is, and nothing of it is one."""
    peer = {"rings": [RING], "streams": [refill(ended=EndReason.COMPLETE)]}
    run = build(broken(), words=[WINDOW], peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    begin_ns, end_ns = RECORDS[50].timestamp_ns, RECORDS[59].timestamp_ns + 1
    assert told_outage(run) == Outage(
        begin_ns=begin_ns, end_ns=end_ns, reason="cut", filled=True
    )
    assert not run.lanes[0].incomplete
    counters = run.merge.counters(0)
    assert (counters.late, counters.refilled, counters.joined) == (0, 0, 10)
    (asked,) = run.peers[0].asked
    until_ns = START + 60 * SECOND
    assert asked.query == RingQuery(since_ns=begin_ns, until_ns=until_ns)


async def test_a_window_that_promised_nothing_is_asked_for_whole(build):
    beats = Beats(START)
    first = Script([beats.header + beats.packets(*RECORDS[:9]), CUT], trusted=True)
    peer = {"rings": [RING], "streams": [refill(RECORDS, ended=EndReason.COMPLETE)]}
    run = build(first, words=[WINDOW], peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled
    assert run.peers[0].asked[0].query.since_ns == START


async def test_the_past_of_others_waits_for_a_window(build):
    """So nothing is late, nor older than what is out."""
    back = asyncio.Event()
    rest = refill(ended=EndReason.COMPLETE)
    rest.opening = back
    other = Record(RECORDS[95].timestamp_ns, b"other")
    peer = {"rings": [RING], "streams": [rest]}
    run = build(
        broken(),
        Script([Beats(START).whole(other)], trusted=True, window=WHOLE),
        words=[WINDOW, WINDOW.replace("h0", "h1")],
        peers={0: peer},
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.peers[0].asked and run.lanes[1].has_header)
        for _ in range(100):
            await asyncio.sleep(0)  # whatever could go out has gone
        assert run.merge.released_ns < RECORDS[60].timestamp_ns
        back.set()
    assert parse_pcap(running.result()) == [*RECORDS[:96], other, *RECORDS[96:]]
    assert run.merge.counters(0).late == run.merge.counters(0).refilled == 0


async def test_a_window_is_not_waited_for_for_ever(build):
    peer = {"rings": [UnreachableError("refused")]}
    run = build(
        broken(), Script([Beats(START).whole(*RECORDS[70:])], trusted=True),
        words=[WINDOW, WINDOW.replace("h0", "h1")],
        peers={0: peer}, timeout_ns=SECOND // 10,
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[70:]]
    assert run.errors == [
        "cut, and did not come back within 100ms (see --timeout)",
        None,
    ]
    assert told_outage(run).end_ns is None


async def test_a_window_that_brings_nothing_new_is_not_tried_for_ever(build):
    """Each of its streams opens, brings what had come before, and breaks."""

    def nothing_new():
        beats = Beats(START)
        return Script(
            [beats.header + beats.heartbeat(START), beats.packets(*RECORDS[50:60]), CUT],
            trusted=True, window=WHOLE,
        )  # fmt: skip

    class Endless(list):
        def pop(self, _):
            return nothing_new()

    run = build(
        broken(), words=[WINDOW], timeout_ns=SECOND // 10,
        peers={0: {"rings": [RING], "streams": Endless([None])}},
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert run.errors == ["cut, and did not come back within 100ms (see --timeout)"]
    assert len(run.peers[0].asked) > 1


async def test_who_is_not_waited_for_any_more_still_follows(build):
    """The past of others goes on without what is followed, and it comes all the same."""
    back = asyncio.Event()
    rest = refill()
    rest.opening = back
    peer = {"rings": [RING], "streams": [Script(opening=Forever), rest]}
    run = build(
        broken(), Script([Beats(START).whole(*RECORDS[70:80])], trusted=True),
        words=["http://h0?last=1h&follow=1", WINDOW.replace("h0", "h1")],
        peers={0: peer}, timeout_ns=SECOND // 10,
    )  # fmt: skip
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.released_ns >= RECORDS[79].timestamp_ns)
        back.set()
    found = parse_pcap(running.result())
    assert sorted(found, key=lambda each: (each.timestamp_ns, each.data)) == sorted(
        [*RECORDS, *RECORDS[70:80]], key=lambda each: (each.timestamp_ns, each.data)
    )
    assert run.merge.counters(0).late == 0
    assert run.merge.counters(0).refilled > 0
    assert told_outage(run).filled


BUSY = RefusedError("all 64 windows are in use", status=503)


@pytest.mark.parametrize("follow", ["", "&follow=1"])
@pytest.mark.parametrize(
    ("rings", "refusals"), [([BUSY, BUSY, RING], []), ([RING], [Script(opening=BUSY)])]
)
async def test_a_window_waits_for_a_place(build, follow, rings, refusals):
    """Its worker may not have noticed yet that the one before is gone."""
    rest = refill(ended=EndReason.COMPLETE)
    peer = {"rings": list(rings), "streams": [*refusals, rest]}
    words = [f"http://h0?since=1700000000{follow}"]
    run = build(broken(), words=words, peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).filled
    assert not run.lanes[0].incomplete


@pytest.mark.parametrize(
    "peer",
    [
        {"rings": [None]},
        {"rings": [RefusedError("416", status=416)]},
        {"rings": [RING], "streams": [Script(opening=RefusedError("x", status=416))]},
    ],
)
async def test_a_window_that_the_ring_has_no_more_is_cut_short(build, peer):
    run = build(broken(), words=[WINDOW], peers={0: peer})
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert run.errors == ["cut"]


async def test_what_the_ring_lost_meanwhile_of_a_window_is_told(build):
    """Of all that was left to come, packets may be missing."""
    gap = Interval(begin_ns=RECORDS[50].timestamp_ns, end_ns=RECORDS[70].timestamp_ns)
    report = WindowReport(covered=None, gaps=(gap,))
    rest = refill(RECORDS[70:], window=report, ended=EndReason.COMPLETE)
    run = build(
        broken(), words=[WINDOW], peers={0: {"rings": [RING], "streams": [rest]}}
    )
    assert parse_pcap(await run.to_the_end()) == [*RECORDS[:60], *RECORDS[70:]]
    outage = told_outage(run)
    assert (outage.end_ns, outage.filled) == (START + 60 * SECOND, False)
    assert run.lanes[0].incomplete


async def test_garbage_after_a_break_ends_a_window(build):
    rest = Script([b"garbage"], trusted=True, window=WHOLE)
    run = build(
        broken(), words=[WINDOW], peers={0: {"rings": [RING], "streams": [rest]}}
    )
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert "not a capture" in run.errors[0]


# --- Interrupts ---


async def test_an_interrupt_while_nobody_answers(build, monkeypatch):
    monkeypatch.setattr(Backoff, "next_ns", lambda self, *, asked_ns=0: 3600 * SECOND)
    run = build(broken(), peers={0: {"rings": [RING]}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].state is LaneState.BROKEN)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS[:60]
    assert run.lanes[0].incomplete
    assert run.errors == [None]


async def test_an_interrupt_while_it_is_opened_again(build):
    opening = Script(opening=Forever)
    run = build(broken(), peers={0: {"rings": [RING], "streams": [opening]}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.peers[0].asked)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS[:60]
    assert run.lanes[0].incomplete


async def test_an_interrupt_while_it_is_refilled(build):
    beats = Beats(NOW)
    part = Script(
        [beats.header + beats.packets(*RECORDS[50:70]), Forever],
        unread=[beats.packets(*RECORDS[70:75])],
        trusted=True,
        window=WHOLE,
    )
    run = build(broken(), peers={0: {"rings": [RING], "streams": [part]}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.received(0)[0] == 70)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS[:75]
    assert not told_outage(run).filled
    assert told_outage(run).refilled == 15
    assert run.lanes[0].incomplete


async def test_the_duration_ends_while_nobody_answers(build, monkeypatch):
    monkeypatch.setattr(Backoff, "next_ns", lambda self, *, asked_ns=0: 3600 * SECOND)
    monkeypatch.setattr("ddump_merger.reader._DURATION_GRACE", 0.1)
    run = build(broken(), duration_ns=1, peers={0: {"rings": [RING]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS[:60]
    assert run.errors == [None]
    assert run.lanes[0].incomplete


# --- Silence ---


@pytest.fixture
def _impatient(monkeypatch):
    for module in ("reader", "heartbeats", "stretch"):
        monkeypatch.setattr(f"ddump_merger.{module}.PATIENCE_NS", SECOND // 10)


@pytest.mark.usefixtures("_impatient")
async def test_a_silent_stream_that_promised_heartbeats_is_broken(build):
    run = build(
        broken(RECORDS[:60], 50, Forever),
        peers={0: {"rings": [RING], "streams": [refill()]}},
    )  # fmt: skip
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).reason == "nothing came for 100ms, not even a heartbeat"


@pytest.mark.usefixtures("_impatient")
async def test_a_silent_window_that_promised_heartbeats_is_broken(build):
    """Its worker has them while it looks, too: it is gone, whatever it may take."""
    peer = {"rings": [RING], "streams": [refill()]}
    run = build(
        broken(RECORDS[:60], 50, Forever), words=["http://h0?last=1h"], peers={0: peer}
    )
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert told_outage(run).reason == "nothing came for 100ms, not even a heartbeat"


@pytest.mark.usefixtures("_impatient")
async def test_a_silent_stream_that_promised_nothing_is_not(build):
    run = build(Script([pcap(RECORDS), Forever]), peers={0: {}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].has_header)
        await asyncio.sleep(0.3)  # three times the patience
        assert run.lanes[0].state is LaneState.OPEN
        run.fanin.interrupt()
        await running


@pytest.mark.usefixtures("_impatient")
async def test_packets_without_heartbeats_after_promising_them(build, caplog):
    """It is named once, and then silence counts as for a stream without."""
    beats = Beats(START)

    script = Slow(
        [beats.header, *map(beats.packets, RECORDS[:50]), Forever], trusted=True
    )
    other = Script([pcap(RECORDS[50:]), Forever])
    run = build(script, other, hold_ns=SECOND // 10, peers={0: {}})
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.counters(1).packets == 50)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert not run.lanes[0].trusted
    assert sum("no heartbeat for 100ms" in each for each in caplog.messages) == 1
    assert run.errors == [None, None]


@pytest.mark.usefixtures("_impatient")
async def test_nobody_is_silent_while_we_do_not_read(build):
    """It is not read for three times the patience: heartbeats wait in the connection."""
    script = broken(RECORDS[:60], 50, Forever)
    run = build(script, peers={0: {}})
    run.fanin._inlet.pause()
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].has_header)
        await asyncio.sleep(0.3)
        assert run.lanes[0].state is LaneState.OPEN
        run.fanin._inlet.go_on()
        run.fanin.interrupt()
        await running
    assert run.lanes[0].outages == []


# --- Books ---


async def test_what_did_not_come_is_said_once(build, caplog):
    beats = Beats(START)
    lost = Script(
        [
            beats.header + beats.packets(*RECORDS),
            beats.heartbeat(NOW, delivered=107),
            beats.heartbeat(NOW + 1, delivered=107),
            beats.heartbeat(NOW + 2, delivered=107, ended=EndReason.IDLE),
        ],
        trusted=True,
    )
    run = build(lost)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert caplog.messages == ["h0: 7 packets that its worker sent did not come"]
    assert run.lanes[0].losses.missing == 7
    assert run.lanes[0].incomplete


async def test_more_came_than_was_sent(build, caplog):
    beats = Beats(START)
    script = Script(
        [
            beats.header + beats.packets(*RECORDS),
            beats.heartbeat(NOW, delivered=3),
            beats.heartbeat(NOW, delivered=3, ended=EndReason.IDLE),
        ],
        trusted=True,
    )
    run = build(script)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert caplog.messages == ["h0: more packets came than its worker says it sent"]
    assert not run.lanes[0].incomplete


async def test_heartbeats_that_go_back_mean_nothing(build):
    beats = Beats(START)
    script = Script(
        [
            beats.header + beats.packets(*RECORDS[:50]),
            beats.heartbeat(RECORDS[50].timestamp_ns),
            beats.heartbeat(START),
            beats.heartbeat(0),
            beats.packets(*RECORDS[50:]),
            beats.heartbeat(NOW, ended=EndReason.IDLE),
        ],
        trusted=True,
    )
    run = build(script)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.merge.counters(0).backwards == 2
    assert not run.lanes[0].incomplete


# --- Clocks ---


async def test_a_clock_that_is_wrong_is_said(build, caplog):
    skew = Skew(offset_ns=3 * SECOND, error_ns=SECOND // 1000)
    script = Script(
        [Beats(START).whole(*RECORDS)], trusted=True,
        sample=Skew(offset_ns=5 * SECOND, error_ns=SECOND),
    )  # fmt: skip
    run = build(script, peers={0: {"skews": [skew]}})
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.lanes[0].skew == skew  # it has the lesser error
    assert run.lanes[0].shift_ns == 0
    (said,) = caplog.messages
    assert said.startswith("h0: its clock is +3.000 s ± 1.0 ms from ours")


async def test_a_clock_that_is_wrong_is_corrected(build):
    sample = Skew(offset_ns=3 * SECOND, error_ns=SECOND // 1000)
    script = Script([Beats(START).whole(*RECORDS)], trusted=True, sample=sample)
    run = build(script, clock=ClockMode.CORRECT, peers={0: {}})
    assert parse_pcap(await run.to_the_end()) == [
        Record(each.timestamp_ns - 3 * SECOND, each.data) for each in RECORDS
    ]
    assert run.lanes[0].shift_ns == -3 * SECOND


async def test_the_first_estimate_of_a_clock_stays(build):
    """Its packets are shifted by one number, unless the clock was set for certain."""
    good = Skew(offset_ns=3 * SECOND, error_ns=SECOND // 1000)
    worse = Skew(offset_ns=3 * SECOND + SECOND // 10, error_ns=SECOND // 5)
    peer = {"rings": [RING], "streams": [refill()], "skews": [good, worse]}
    run = build(broken(), clock=ClockMode.CORRECT, peers={0: peer})
    await run.to_the_end()
    assert run.lanes[0].skew == good
    assert run.lanes[0].shift_ns == -3 * SECOND


async def test_a_clock_that_was_set_meanwhile_is_corrected_anew(build):
    good = Skew(offset_ns=3 * SECOND, error_ns=SECOND // 1000)
    right = Skew(offset_ns=1000, error_ns=100)
    peer = {"rings": [RING], "streams": [refill()], "skews": [good, right]}
    run = build(broken(), clock=ClockMode.CORRECT, peers={0: peer})
    await run.to_the_end()
    assert run.lanes[0].skew == right
    assert run.lanes[0].shift_ns == -1000


@pytest.mark.parametrize("offset_ns", [(1 << 63) - 1, -(1 << 63) + 1])
async def test_a_clock_that_cannot_be(build, offset_ns):
    sample = Skew(offset_ns=offset_ns, error_ns=1)
    run = build(
        Script([Beats(START).header, Beats(START).packets(*RECORDS), CUT],
               trusted=True, sample=sample),
        Script([pcap(RECORDS)]),
        clock=ClockMode.CORRECT,
        peers={0: {"rings": [RING], "streams": [refill()]}},
    )  # fmt: skip
    assert len(parse_pcap(await run.to_the_end())) >= 100
    assert run.lanes[0].error is not None
    assert not run.lanes[1].incomplete


# --- The first loss ---


def losing(kind):
    """A stream with one loss, and its words."""
    beats = Beats(START)
    begin = [beats.header + beats.heartbeat(START), beats.packets(*RECORDS)]
    match kind:
        case "break":
            return Script([*begin, CUT], trusted=True), "cut"
        case "late":
            step = beats.heartbeat(NOW), beats.packets(Record(START + 1, b"late"))
            return Script([*begin, *step, Forever], trusted=True), "late packets: 1"
        case "dropped":
            counts, words = {"dropped": 2}, "2 packets dropped by the kernel"
        case "interface_dropped":
            counts = {"interface_dropped": 2}
            words = "2 packets dropped by interfaces"
        case "missing":
            counts = {"delivered": 102}
            words = "2 packets sent and not come"
        case _:
            counts = {"skipped": 2}
            words = "2 packets no longer in the ring"
    return Script(
        [*begin, beats.heartbeat(NOW, **counts), Forever], trusted=True
    ), words


@pytest.mark.parametrize(
    "kind",
    ["break", "late", "dropped", "interface_dropped", "missing", "skipped"],
)
async def test_the_first_loss_ends_all(build, kind):
    script, words = losing(kind)
    other = Beats(START)
    silent = Script([other.header + other.heartbeat(NOW + 1), Forever], trusted=True)
    run = build(script, silent, fail_fast=True, peers={0: {}, 1: {}})
    found = parse_pcap(await run.to_the_end())
    assert found[:100] == RECORDS
    assert run.errors[0].startswith(words)
    assert run.errors[1] is None
    assert run.lanes[0].incomplete


async def test_a_gap_ends_all(build):
    gap = WindowReport(covered=None, gaps=(Interval(begin_ns=0, end_ns=SECOND),))
    script = Script([pcap(RECORDS), Forever], window=gap)
    run = build(script, words=["http://h0?last=5m"], fail_fast=True, peers={0: {}})
    await run.to_the_end()
    assert "the ring may lack" in run.errors[0]


async def test_without_it_the_first_loss_ends_nothing(build):
    script, _ = losing("dropped")
    run = build(script, peers={0: {}})
    async with asyncio.timeout(2), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].losses.dropped == 2)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert run.errors == [None]


# --- Memory ---


@pytest.mark.parametrize("new", [0, 1])
async def test_a_target_that_breaks_again_and_again_keeps_no_more(build, new):
    """Each stream brings the same packets, and is cut before its first promise.

    Where it brings ``new`` ones as well, what is too much is forgotten, and that is said.
    """
    limit, waits = 20_000, asyncio.Event()

    def flapping(number, *steps):
        beats, brought = Beats(START), RECORDS[: 50 + new * number]
        return Script(
            [beats.header + beats.heartbeat(START), beats.packets(*brought), *steps, CUT],
            trusted=True, window=WHOLE,
        )  # fmt: skip

    streams = [flapping(number) for number in range(1, 50)]
    last = flapping(50, waits)
    run = build(
        flapping(0), buffer_bytes=limit,
        peers={0: {"rings": [RING], "streams": [*streams, last, refill(RECORDS)]}},
    )  # fmt: skip
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: len(run.peers[0].asked) == 50)
        kept = run.fanin._readers[0]._stretch.tails
        assert sum(map(len, kept)) <= limit + 10_000
        waits.set()
    if not new:
        assert parse_pcap(running.result()) == RECORDS
    assert told_outage(run).filled is not bool(new)
