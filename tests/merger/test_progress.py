from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from ddump_common.errors import UnreachableError
from ddump_common.units import SECONDS
from ddump_common.window import WindowReport
from ddump_merger._merge import Merge
from ddump_merger.console import say
from ddump_merger.counters import Counters
from ddump_merger.lane import Lane, LaneState
from ddump_merger.losses import Losses
from ddump_merger.outage import Outage
from ddump_merger.progress import Progress
from ddump_merger.skew import Skew
from ddump_merger.target import parse_target
from support.captures import Record, pcap

START = 1_700_000_000_000_000_000


@pytest.fixture
def merge():
    merge = Merge(3)
    merge.start(113)
    merge.receive_data(
        0, pcap([Record(START, bytes(1234)), Record(START + 1000, b"x")])
    )
    merge.refuse(1)
    merge.refuse(2)
    merge.advance(0, START)
    assert merge.data_to_send()
    return merge


@pytest.fixture
def lanes():
    words = ["http://web1", "we\x1b[31mird=http://h", "x" * 50]
    lanes = [
        Lane(index=n, target=parse_target(word), source=None, live=True, heard=0.0)
        for n, word in enumerate(words)
    ]
    lanes[0].state = LaneState.OPEN
    lanes[1].error = UnreachableError("no\x1b[2J", hint="sorry")
    return lanes


def drawn(progress, height=20, width=120):
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
    )
    progress._live.console = console
    console.print(progress.table())
    return console.file.getvalue()


def test_the_table(lanes, merge):
    lines = drawn(Progress(lanes, merge)).splitlines()
    assert lines[0].split() == ["target", "packets", "bytes", "late", "held", "state"]
    fields = lines[1].split()
    assert fields[:4] == ["web1", "1", "1.23kB", "0"]
    assert fields[-1] == "open"
    assert r"we\x1b[31mird" in lines[2]
    assert r"no\x1b[2J (sorry)" in lines[2]
    assert lines[3].startswith("x" * 39 + "…")
    assert "\x1b[31m" not in "".join(lines)


def test_the_table_fits_the_terminal(lanes, merge):
    lines = drawn(Progress(lanes, merge), height=5).splitlines()
    assert lines[3].split() == ["and", "1", "more"]
    assert len(lines) == 4


class Counted:
    """Stands where the merge does, for what it takes long to come to."""

    def __init__(self, *counters):
        self.all = counters

    def counters(self, index):
        return self.all[index]

    def buffered(self, _index):
        return 64 << 20


# 2023-11-22, 15:03:00 in Berlin
MOMENT = 1_700_661_780 * SECONDS


@pytest.mark.usefixtures("berlin")
def test_what_is_lost_is_shown_where_it_can_be_read(lanes, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: MOMENT + SECONDS)
    merge = Counted(
        Counters(packets=123_456_789, octets=98_765_432_100, refilled=12345),
        Counters(packets=7, late=1_234_567),
        Counters(),
    )
    web, other, _ = lanes
    web.losses = Losses(dropped=123_400, interface_dropped=56, missing=3, skipped=4)
    web.skew = Skew(offset_ns=3_002_000_000, error_ns=400_000)
    web.window = WindowReport(covered=None, omitted=1)
    web.outages = [Outage(begin_ns=MOMENT, end_ns=MOMENT + 1, reason="x", filled=True)]
    other.error, other.state = None, LaneState.BROKEN
    other.losses, other.distrusted = Losses(surplus=8), "it promised the future"
    other.outages = [Outage(begin_ns=MOMENT, reason="x")] * 2
    lines = drawn(Progress(lanes, merge), width=80).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "target packets bytes dropped late held",
        "state",
        "web1 123456789 98.8GB 123456 0 67.1MB",
        "open, 12345 refilled, 7 missing, 1 gap, clock +3.002 s",
        r"we\x1b[31mird 7 0B - 1234567 67.1MB",
        "reconnecting since 15:03:00, 8 surplus, distrusted, 2 gaps",
        "x" * 25 + "… 0 0B - 0 67.1MB",
        "connecting",
    ]
    assert max(map(len, lines)) <= 80


def test_deep_rows_fit_the_terminal(lanes, merge):
    lanes[0].losses = Losses(dropped=0)
    lanes[1].error = UnreachableError("e" * 60)
    lines = drawn(Progress(lanes, merge), width=80, height=8).splitlines()
    assert lines[-1].split() == ["and", "1", "more"]
    assert len(lines) == 2 + 2 * 2 + 1


async def test_what_is_said_meanwhile_stands_above_it(lanes, merge, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(lanes, merge)
    out = io.StringIO()
    progress._live.console = Console(
        file=out, force_terminal=True, width=120, height=20
    )
    async with asyncio.TaskGroup() as tasks:
        shown = tasks.create_task(progress.run())
        await asyncio.sleep(0)
        say("ddump: db: connection refused")
        shown.cancel()
    lines = out.getvalue().splitlines()
    assert any(line.endswith("ddump: db: connection refused") for line in lines)
    # The table is drawn again below it.
    assert "web1" in out.getvalue().partition("connection refused")[2]


async def test_it_is_shown_until_it_is_cancelled(lanes, merge, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(lanes, merge)
    out = io.StringIO()
    progress._live.console = Console(
        file=out, force_terminal=True, width=120, height=20
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await progress.run()
    assert "web1" in out.getvalue()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
    progress.stop()
