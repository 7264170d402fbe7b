from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from ddump_common.errors import UnreachableError
from ddump_merger._merge import Merge
from ddump_merger.console import say
from ddump_merger.lane import Lane, LaneState
from ddump_merger.progress import Progress
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


def drawn(progress, height=20):
    console = Console(
        file=io.StringIO(),
        width=120,
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
