"""The fan-in with targets that follow a script, a real merge, and a real sink."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess

import pytest

from ddump_common.api import Link
from ddump_common.errors import (
    BrokenStreamError,
    OutputError,
    UnreachableError,
)
from ddump_common.note import EndReason
from ddump_common.window import Interval, WindowReport
from ddump_merger.lane import LaneState
from ddump_merger.output import Output
from support.beats import Beats
from support.captures import (
    Record,
    parse_pcap,
    pcap,
    pcap_header,
    pcap_record,
    section,
)
from support.scripted import SECOND, START, Forever, Run, Script, until

RECORDS = [Record(START + n * 1_000_000, b"%d" % n) for n in range(100)]


@pytest.fixture
def build(tmp_path):
    def build(*scripts, **options):
        return Run(tmp_path / "out", scripts, **options)

    return build


async def test_streams_to_their_ends(build):
    run = build(
        Script([pcap(RECORDS[0::2])]),
        Script([pcap_header(), *map(pcap_record, RECORDS[1::2])]),
    )
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == [None, None]
    assert [lane.state for lane in run.lanes] == [LaneState.ENDED] * 2
    assert [script.closed for script in run.scripts] == [1, 1]
    assert not run.fanin.interrupted


async def test_files_are_read_when_the_merge_waits_for_them(build):
    """The second file is later as a whole: it is not read before the first has ended."""
    first, second = RECORDS[:50], RECORDS[50:]
    early = Script([pcap_header(), *(pcap_record(r) for r in first)])
    late = Script([pcap_header(), *(pcap_record(r) for r in second)])
    reads = []
    read = early.read

    async def watched():
        reads.append(late.reads)
        return await read()

    early.read = watched
    run = build(early, late, words=["a", "b"], disorder_ns=0)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert max(reads) <= 2  # its header, and the first record


async def test_a_target_that_fails_is_said_at_once_and_once(build, caplog):
    never = asyncio.Event()
    good = Script([pcap_header(), never])
    run = build(good, Script([pcap(RECORDS), BrokenStreamError("cut", hint="why")]))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[1].error)
        assert caplog.messages == ["h1: cut (why)"]
        assert not run.lanes[0].ended
        never.set()
        assert parse_pcap(await running) == RECORDS
    assert len(caplog.messages) == 1
    assert run.errors == [None, "cut (why)"]


async def test_a_target_that_does_not_open(build):
    run = build(Script(opening=UnreachableError("refused")), Script([pcap(RECORDS)]))
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == ["refused", None]
    assert not run.lanes[0].has_header


async def test_no_target_opens(build):
    run = build(Script(opening=UnreachableError("refused")))
    assert await run.to_the_end() is None


@pytest.mark.parametrize("words", [["a"], ["http://a"]])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "at byte 0"),
        (pcap_header()[:10], "at byte"),
        (section(), "ended before the header of a capture"),
    ],
)
async def test_what_has_no_header(build, words, data, expected):
    run = build(Script([data] if data else []), words=words)
    assert await run.to_the_end() is None
    assert expected in run.errors[0]


async def test_a_header_that_does_not_end(build):
    """A section may be long; its bytes are bounded by what a target may hold."""
    long = (
        section()[:4]
        + (1 << 20).to_bytes(4, "little")
        + bytes([0x4D, 0x3C, 0x2B, 0x1A])
    )
    run = build(
        Script([long, *[b"\0" * 1000] * 50, Forever]), words=["a"], buffer_bytes=20_000
    )
    assert await run.to_the_end() is None
    assert run.errors[0]


@pytest.mark.parametrize("words", [["a"], ["http://a"]])
async def test_what_came_before_an_error_counts(build, words):
    """Also when all of it came at once: the header, the records, and the error."""
    run = build(Script([pcap(RECORDS) + b"\xff" * 16]), words=words)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.lanes[0].has_header
    assert "at byte" in run.errors[0]


async def test_a_dissenter_among_files(build, caplog):
    scripts = [
        Script([pcap(RECORDS, link_type=1)]),
        Script([pcap_header(), Forever]),
        Script([pcap([], link_type=1)]),
    ]
    run = build(*scripts, words=["a", "b", "c"])
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == [
        None,
        "its packets have link type LINUX_SLL, the output link type 1: "
        "they cannot be mixed",
        None,
    ]
    assert [lane.has_header for lane in run.lanes] == [True, False, True]
    assert scripts[1].closed == 1


async def test_a_dissenter_that_has_ended_already(build):
    """What it brought before it broke is not let out either."""
    slow = asyncio.Event()
    broken = pcap(RECORDS) + b"\xff" * 16
    run = build(
        Script([broken]),
        Script([slow, pcap(RECORDS, link_type=1)]),
        Script([slow, pcap([], link_type=1)]),
        words=["a", "b", "c"],
    )
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].ended)
        slow.set()
        data = await running
    assert data[:24] == pcap_header(link_type=1)
    assert parse_pcap(data) == RECORDS
    assert "at byte" in run.errors[0]
    assert not run.lanes[0].has_header


async def test_the_last_that_is_left_is_a_dissenter(build):
    slow = asyncio.Event()
    broken = pcap(RECORDS, link_type=1) + b"\xff" * 16
    run = build(Script([broken]), Script([slow, pcap(RECORDS)]), words=["a", "b"])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].ended)
        slow.set()
        assert parse_pcap(await running) == RECORDS
    assert "cannot be mixed" in run.errors[1]


async def test_a_dissenter_beside_a_worker(build):
    run = build(
        Script([pcap(RECORDS)]), Script([pcap(RECORDS, link_type=1)]), link=Link.SLL
    )
    assert len(parse_pcap(await run.to_the_end())) == 100
    assert "link type" in run.errors[1]


async def test_when_all_have_ended_nothing_is_wanted(build):
    run = build(Script(), words=["a"])
    run.fanin._start(113)
    run.merge.refuse(0)
    run.fanin._want()
    assert not run.lanes[0].wanted.is_set()
    await finish(run)


# --- Ends that are asked for ---


async def test_an_interrupt_takes_what_has_arrived(build):
    scripts = [
        Script(
            [pcap(RECORDS[0:60:2]), Forever],
            unread=list(map(pcap_record, RECORDS[60::2])),
        ),
        Script([pcap(RECORDS[1::2]) + b"half", Forever]),
    ]
    run = build(*scripts, hold_ns=3600 * SECOND)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: all(lane.has_header for lane in run.lanes))
        run.fanin.interrupt()
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert run.errors == [None, None]  # it was us who cut it
    assert run.fanin.interrupted


async def test_an_interrupt_before_the_start(build):
    run = build(Script(opening=Forever))
    run.fanin.interrupt()
    assert await run.to_the_end() is None


async def test_an_interrupt_of_files_that_have_no_header_yet(build):
    run = build(Script(opening=Forever), words=["a"])
    run.fanin.interrupt()
    assert await run.to_the_end() is None


async def test_what_has_arrived_may_be_no_capture(build):
    run = build(Script([pcap(RECORDS), Forever], unread=[b"\xff" * 100]))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].has_header)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert "at byte" in run.errors[0]


async def test_enough_packets_end_all(build):
    scripts = [Script([pcap(RECORDS), Forever]), Script([pcap([]), Forever])]
    run = build(*scripts, count=7)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: all(lane.has_header for lane in run.lanes))
        run.merge.advance(1, RECORDS[50].timestamp_ns)
        run.fanin._inlet.wake.set()
        assert parse_pcap(await running) == RECORDS[:7]
    assert run.errors == [None, None]
    assert not run.fanin.interrupted


async def test_duration(build, monkeypatch):
    monkeypatch.setattr("ddump_merger.reader._DURATION_GRACE", 0.05)
    script = Script(
        [pcap(RECORDS[:50]), Forever], unread=[*map(pcap_record, RECORDS[50:])]
    )
    run = build(script, duration_ns=1)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.errors == [None]


# --- Windows of the ring ---

LAST = "http://{}?last=5m"
FOLLOW = "http://{}?last=5m&follow=1"


async def test_windows_are_read_when_the_merge_waits_for_them(build):
    """The second begins later as a whole: it is not read before the first has ended."""
    early = Script([pcap_header(), *map(pcap_record, RECORDS[:50])])
    late = Script([pcap_header(), *map(pcap_record, RECORDS[50:])])
    reads = []
    read = early.read

    async def watched():
        reads.append(late.reads)
        return await read()

    early.read = watched
    run = build(early, late, words=[LAST.format("a"), LAST.format("b")], disorder_ns=0)
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert max(reads) <= 2  # its header, and the first record


@pytest.mark.parametrize("word", [LAST, FOLLOW])
async def test_a_window_holds_a_live_stream_back_as_long_as_it_must(build, word):
    """It looks through its past, and nothing that it finds is late."""
    found = asyncio.Event()
    live = Script([pcap(RECORDS[50:]), Forever])
    beats = Beats(START)
    window = Script(
        [
            beats.header,
            *(beats.heartbeat(START - n) for n in range(100, 0, -1)),
            found,
            beats.packets(*RECORDS[:50]),
            beats.heartbeat(START + SECOND, ended=EndReason.COMPLETE),
        ],
        trusted=True,
    )
    run = build(
        live, window, words=["http://a", word.format("b")], hold_ns=SECOND // 100
    )
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        # The live stream was moved by the clock again and again.
        await until(lambda: run.fanin._inlet._clock.running)
        await asyncio.sleep(0.1)  # ten holds
        assert run.merge.counters(0)[0] == 0
        found.set()
        await until(lambda: run.lanes[1].ended)
        await until(lambda: run.merge.counters(0)[0] == 50)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS
    assert [run.merge.counters(n)[2] for n in range(2)] == [0, 0]


async def test_who_follows_is_live_when_it_has_caught_up(build):
    """By then its heartbeats have let go of what others brought meanwhile."""
    near, nearer = asyncio.Event(), asyncio.Event()
    present = START + 3600 * SECOND
    beats = Beats(START)
    quiet = Script(
        [
            beats.header + beats.packets(*RECORDS[:50]),
            beats.heartbeat(START),
            near,
            beats.heartbeat(present - 2 * SECOND),
            nearer,
            beats.heartbeat(present - SECOND // 2),
            Forever,
        ],
        trusted=True,
    )
    live = Script([pcap(RECORDS[50:]), Forever])
    run = build(
        quiet, live, words=[FOLLOW.format("a"), "http://b"], hold_ns=SECOND // 50
    )
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[1].has_header)
        await asyncio.sleep(0.1)  # five holds
        assert run.merge.counters(1)[0] == 0
        near.set()
        await until(lambda: run.merge.counters(1)[0] == 50)
        assert not run.lanes[0].live
        nearer.set()
        await until(lambda: run.lanes[0].live)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS


async def test_followers_alone_move_by_the_clock_when_they_have_caught_up(build):
    words = [FOLLOW.format("a"), FOLLOW.format("b")]
    run = build(
        Script([pcap(RECORDS), Forever]), Script([pcap([]), Forever]),
        words=words, hold_ns=SECOND // 50,
    )  # fmt: skip
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.merge.counters(0)[0] == 100)
        run.fanin.interrupt()
        assert parse_pcap(await running) == RECORDS


async def test_who_is_far_ahead_of_a_past_is_left_to_its_ring(build):
    """It has caught up, the other has not: nothing is forced out, and nothing late."""
    big = [Record(r.timestamp_ns, bytes(1000)) for r in RECORDS]
    beats = Beats(START)
    ahead = Script(
        [
            beats.header + beats.heartbeat(START + 3600 * SECOND),
            *map(beats.packets, big[50:]),
            Forever,
        ],
        trusted=True,
    )
    past = asyncio.Event()
    behind = Script([pcap_header(), past, *map(pcap_record, big[:50])])
    run = build(
        ahead, behind, words=[FOLLOW.format("a"), "http://b?last=5m"],
        hold_ns=SECOND // 50, buffer_bytes=20_000,
    )  # fmt: skip
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].ahead)
        reads = ahead.reads
        assert reads < 20
        await asyncio.sleep(0.1)  # five holds
        assert ahead.reads == reads
        assert run.merge.counters(0)[0] == 0
        past.set()
        await until(lambda: run.merge.counters(0)[0] == 50)
        await until(lambda: not run.lanes[0].ahead)
        run.fanin.interrupt()
        assert parse_pcap(await running) == big
    assert [run.merge.counters(n)[2] for n in range(2)] == [0, 0]


async def test_a_window_that_is_silent_for_too_long_is_cut_short(build, caplog):
    run = build(
        Script([pcap(RECORDS[0::2]), Forever]),
        Script([pcap(RECORDS[1::2])]),
        words=[LAST.format("a"), LAST.format("b")],
        timeout_ns=SECOND // 20,
    )
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert caplog.messages == ["a: nothing came for 50ms (see --timeout)"]
    assert [lane.incomplete for lane in run.lanes] == [True, False]


async def test_a_window_that_nobody_waits_for_may_be_silent(build):
    """The other is what the merge waits for; ten timeouts pass, and nobody is cut."""
    go = asyncio.Event()
    steps = [step for n in range(20) for step in (pcap_record(RECORDS[n]), go)]
    run = build(
        Script([pcap_header(), *steps]),
        Script([pcap_header(), *map(pcap_record, RECORDS[50:])]),
        words=[LAST.format("a"), LAST.format("b")],
        timeout_ns=SECOND // 5,
    )
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, go.set)
    assert len(parse_pcap(await run.to_the_end())) == 70
    assert run.errors == [None, None]


@pytest.mark.parametrize(
    ("gap", "incomplete"), [((), False), ((Interval(begin_ns=0, end_ns=SECOND),), True)]
)
async def test_gaps_are_said_when_it_opens(build, caplog, gap, incomplete):
    window = WindowReport(covered=None, gaps=gap)
    run = build(Script([pcap(RECORDS)], window=window), words=[LAST.format("a")])
    assert parse_pcap(await run.to_the_end()) == RECORDS
    assert run.lanes[0].incomplete is incomplete
    assert run.errors == [None]
    said = [message.split(" from ")[0] for message in caplog.messages]
    assert said == ["a: the ring may lack what came"] * incomplete


# --- Failures of the output ---


async def test_a_failure_of_the_output_ends_all(build, tmp_path):
    scripts = [Script([pcap(RECORDS), Forever]), Script(opening=Forever)]
    run = build(*scripts, output=Output(tmp_path / "/dev/full"), hold_ns=0)
    async with asyncio.timeout(5):
        with pytest.raises(BaseExceptionGroup) as caught:
            await run.fanin.run()
    assert caught.group_contains(OutputError)
    assert run.errors == [None, None]  # they are not to blame
    assert [script.closed for script in scripts] == [1, 1]


# --- Backpressure ---


async def test_nobody_reads_while_the_sink_is_full(build, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("ddump_merger.output._STDOUT", writer)
    big = [Record(START + n * SECOND, bytes(50_000)) for n in range(400)]
    script = Script([pcap_header(), *map(pcap_record, big)])
    run = build(script, output=Output(None))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        before = -1
        while script.reads != before or not script.reads:
            before = script.reads
            await asyncio.sleep(0.1)
        assert script.reads < 200  # the sink's 4 MiB, and what the merge holds
        assert not run.fanin._inlet._flow.is_set()
        drained = tasks.create_task(asyncio.to_thread(read_to_the_end, reader))
        await running
        os.close(writer)
        assert parse_pcap(await drained) == big


def read_to_the_end(fd):
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read()


# --- The clock ---


async def finish(run):
    run.fanin.interrupt()
    await run.to_the_end()


async def test_a_timer_does_not_outlive_the_run(build):
    run = build(Script([pcap(RECORDS)]))
    await run.to_the_end()
    assert not run.fanin._inlet._clock.running


async def test_opening_is_said_to_who_wants_to_know(build, caplog):
    caplog.set_level(logging.INFO, "ddump_merger")
    run = build(Script([pcap(RECORDS)]))
    await run.to_the_end()
    assert caplog.messages == ["h0: opened"]


# --- pcapng ---


async def test_a_pcapng_output_says_whose_each_packet_is(build):
    """Interfaces are described when the first of their packets leaves, the rest at the end."""
    run = build(
        Script([pcap(RECORDS[1::2])]),
        Script([pcap([])]),
        Script([pcap(RECORDS[0::2])]),
        words=["http://a", "http://b", "http://c"],
        pcapng=True,
    )
    await run.to_the_end()
    shown = await asyncio.to_thread(
        subprocess.check_output,
        ["tshark", "-nr", run.path, "-T", "fields", "-e", "frame.interface_name"],
        text=True,
    )
    assert shown.split() == ["c", "a"] * 50
    counted = await asyncio.to_thread(
        subprocess.check_output, ["capinfos", run.path], text=True
    )
    assert "Number of interfaces in file: 3" in counted
    assert "Name = b" in counted


async def test_an_interrupted_pcapng_output_ends_as_any(build):
    run = build(Script([pcap(RECORDS), Forever]), pcapng=True)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.to_the_end())
        await until(lambda: run.lanes[0].has_header)
        run.fanin.interrupt()
        data = await running
    kinds = []
    while data:
        kinds.append(int.from_bytes(data[:4], "little"))
        data = data[int.from_bytes(data[4:8], "little") :]
    assert kinds == [0x0A0D0D0A, 1, *[6] * 100, 5]  # and what was counted, at the end


async def test_a_pcapng_output_without_a_target_is_none(build):
    run = build(Script(opening=UnreachableError("refused")), pcapng=True)
    assert await run.to_the_end() is None
