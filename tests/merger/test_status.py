"""``ddump status``: workers' own accounts, and those that give none."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty

import msgspec
import pytest

from ddump_common.answers import (
    IntervalInfo,
    Memory,
    RingInfo,
    Status,
    StreamInfo,
    StreamState,
    Totals,
)
from ddump_common.errors import ExitCode, UsageError
from ddump_merger.config import TlsFiles
from ddump_merger.status import ring_lines, ring_notes, show_status, status_lines
from ddump_merger.target import parse_target
from support.certificates import Authority
from support.commands import COMMAND, environment, run
from support.servers import answer, refusing_port, serving, tls

pytestmark = pytest.mark.usefixtures("utc")

STATUS = Status(
    host="web1.example",
    version="0.1.0",
    started_ns=1,
    time_ns=2,
    connections=3,
    max_connections=512,
    max_streams=8,
    memory=Memory(used_bytes=32 << 20, limit_bytes=256 << 20),
    totals=Totals(
        packets=12345, bytes=6, dropped=7, interface_dropped=8, streams=9, refused=10
    ),
    states={"running": 1},
    streams=[
        StreamInfo(
            id=1, client="c", state=StreamState.RUNNING, filter="", started_ns=1,
            packets=1, bytes=1, dropped=0, interface_dropped=0, buffer_bytes=1,
        )
    ],
)  # fmt: skip
JSON = msgspec.json.encode(STATUS)


NOW = 1_700_661_780 * 1_000_000_000
RING = RingInfo(
    state="recording", link="sll", segments=12, packets=5, bytes=710_000_000,
    limit_bytes=2_000_000_000, pinned_bytes=0, pinned_limit_bytes=0, dropped=3, lost=0,
    coverage=[IntervalInfo(begin_ns=NOW - 70 * 10**9, end_ns=NOW)],
)  # fmt: skip


def test_the_table():
    assert status_lines({"web1": STATUS}) == [
        ["target", "host", "version", "streams", "packets", "dropped", "memory"],
        ["web1", "web1.example", "0.1.0", "1/8", "12345", "7", "32MiB/256MiB"],
    ]


def test_rings():
    other = msgspec.structs.replace(STATUS, ring=RING)
    assert ring_lines({"web1": STATUS, "b": other}, now_ns=NOW) == [
        ["target", "ring", "begin", "end", "time", "gaps", "size", "dropped", "lost"],
        ["b", "recording", "14:01:50", "14:03:00", "1m10s", "0", "710MB/2GB", "3", "0"],
    ]


def test_a_ring_that_covers_nothing():
    ring = msgspec.structs.replace(RING, coverage=[])
    status = msgspec.structs.replace(STATUS, ring=ring)
    assert ring_lines({"b": status}, now_ns=NOW)[1][2:6] == ["-"] * 4


@pytest.mark.parametrize(
    ("fields", "cells", "notes"),
    [
        ({}, ["recording", "710MB/2GB"], []),
        ({"adopting": True}, ["recording", "710MB/2GB"],
         ["a: adopting what an earlier run recorded"]),
        ({"shortened": "the disk is full", "adopting": True}, ["recording", "710MB/2GB"],
         ["a: adopting what an earlier run recorded, shortened: the disk is full"]),
        ({"state": "cannot write: " + "x" * 200}, ["not recording", "710MB/2GB"],
         ["a: cannot write: " + "x" * 200]),
        ({"bytes": -1}, ["recording", "?/?"], []),
        ({"limit_bytes": 10**400}, ["recording", "?/?"], []),
        ({"bytes": 10223 << 10, "limit_bytes": 40_000_000}, ["recording", "10.5MB/40MB"], []),
        ({"bytes": 10_500_000, "limit_bytes": 1 << 30}, ["recording", "10MiB/1GiB"], []),
    ],
)  # fmt: skip
def test_what_hinders_a_ring(fields, cells, notes):
    ring = msgspec.structs.replace(RING, **fields)
    status = msgspec.structs.replace(STATUS, ring=ring)
    answers = {"a": status, "none": STATUS}
    row = ring_lines(answers, now_ns=NOW)[1]
    assert [row[1], row[6]] == cells
    assert list(ring_notes(answers)) == notes


@pytest.mark.parametrize("words", [[], ["a.pcap"], ["http://a", "-"]])
def test_files_have_no_status(words):
    targets = [parse_target(word) for word in words]
    with pytest.raises(UsageError, match="status is for workers"):
        show_status(targets, tls=TlsFiles(), connect_timeout_ns=1, as_json=False)


async def shown(*words, capfd, as_json=False, tls_files=None):
    """Run the command on a thread, for it has a loop of its own."""
    code = await asyncio.to_thread(
        show_status,
        [parse_target(word) for word in words],
        tls=tls_files or TlsFiles(),
        connect_timeout_ns=2_000_000_000,
        as_json=as_json,
    )
    return code, capfd.readouterr().out


async def test_all_answer(capfd):
    script = answer("200 OK", JSON, content_type="application/json")
    async with serving(script) as server:
        code, out = await shown(
            f"b={server.url}",
            f"a={server.url}/p/",
            f"c={server.url}/x/capture",
            capfd=capfd,
        )
    assert code is ExitCode.OK
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        "target",
        "b",
        "a",
        "c",
    ]
    assert sorted(request.target for request in server.requests) == [
        "/api/v1/status",
        "/p/api/v1/status",
        "/x/api/v1/status",
    ]


async def test_as_json(capfd):
    async with serving(answer("200 OK", JSON)) as server:
        code, out = await shown(f"web1={server.url}", capfd=capfd, as_json=True)
    assert code is ExitCode.OK
    (line,) = out.splitlines()
    assert json.loads(line) == {"target": "web1", **json.loads(JSON)}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[]", "the answer is not a worker's status"),
        (b"{", "the answer is not a worker's status"),
        (b'{"host": 1}', "the answer is not a worker's status"),
        (b" " * ((1 << 20) + 1), "the answer is too long"),
    ],
)
async def test_some_do_not(capfd, caplog, body, complaint):
    async with (
        serving(answer("200 OK", JSON)) as good,
        serving(answer("200 OK", body)) as bad,
    ):
        code, out = await shown(f"a={good.url}", f"b={bad.url}", capfd=capfd)
    assert code is ExitCode.INCOMPLETE
    assert len(out.splitlines()) == 2
    assert f"b: {complaint}" in caplog.text


async def test_none_does(capfd, caplog):
    code, out = await shown(f"http://127.0.0.1:{refusing_port()}", capfd=capfd)
    assert code is ExitCode.NO_TARGET
    assert out == ""
    assert "127.0.0.1: connection refused" in caplog.text


async def test_over_tls(capfd, tmp_path):
    authority = Authority(tmp_path)
    context = tls(authority.server("127.0.0.1"))
    async with serving(answer("200 OK", JSON), context=context) as server:
        code, _ = await shown(
            server.url, capfd=capfd, tls_files=TlsFiles(ca=authority.cert)
        )
    assert code is ExitCode.OK


async def test_a_table_for_people(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    async with serving(answer("200 OK", JSON)) as server:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr("sys.stdout", terminal := Terminal())
        await asyncio.to_thread(
            show_status, [parse_target(server.url)],
            tls=TlsFiles(), connect_timeout_ns=2_000_000_000, as_json=False,
        )  # fmt: skip
    heading, row = terminal.getvalue().splitlines()
    assert heading.split()[:2] == ["target", "host"]
    assert row.split()[:2] == ["127.0.0.1", "web1.example"]


@pytest.mark.process
async def test_the_subcommand():
    async with serving(answer("200 OK", JSON)) as server:
        result = await run("status", "--json", f"web1={server.url}")
        assert result.code == 0
        assert json.loads(result.out)["target"] == "web1"
        bad = f"bad=http://127.0.0.1:{refusing_port()}"
        result = await run("status", server.url, bad)
    assert result.code == 4
    assert result.err == "ddump: bad: connection refused\n"
    assert b"web1.example" in result.out


async def test_rings_are_told_below(capfd):
    ring = msgspec.structs.replace(RING, adopting=True)
    body = msgspec.json.encode(msgspec.structs.replace(STATUS, ring=ring))
    async with serving(answer("200 OK", body)) as server:
        code, out = await shown(f"web1={server.url}", capfd=capfd)
    assert code is ExitCode.OK
    assert out.splitlines()[4].startswith(
        "web1\trecording\t2023-11-22 14:01:50\t2023-11-22 14:03:00\t1m10s\t0\t710MB/2GB\t"
    )
    assert out.endswith("\nweb1: adopting what an earlier run recorded\n")


@pytest.mark.parametrize("width", [80, 40])
async def test_nothing_is_cut_on_a_narrow_terminal(width, monkeypatch, capsys):
    coverage = [
        IntervalInfo(begin_ns=NOW - ago * 3600 * 10**9, end_ns=NOW - (ago - 1) * 3600 * 10**9)
        for ago in (30, 20, 5)
    ]  # fmt: skip
    ring = msgspec.structs.replace(
        RING, coverage=coverage, shortened="the disk is full"
    )
    body = msgspec.json.encode(msgspec.structs.replace(STATUS, ring=ring))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    names = ["10.88.123.201", "10.88.123.202", "web-frontend-17"]
    async with serving(answer("200 OK", body)) as server:
        code = await asyncio.to_thread(
            show_status, [parse_target(f"{name}={server.url}") for name in names],
            tls=TlsFiles(), connect_timeout_ns=2_000_000_000, as_json=False,
        )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert code is ExitCode.OK
    notes = [f"{name}: shortened: the disk is full" for name in names]
    assert lines[-3:] == notes
    assert max(map(len, lines[:-3])) <= width
    table = "\n".join(lines[lines.index("") :])
    for name in names:
        assert f"\n{name} " in table
    for cell in (
        "recording",
        "2023-11-21 08:03:00",
        "2023-11-22 10:03:00",
        "1d2h",
        "gaps",
    ):
        assert cell in table


@pytest.mark.process
async def test_on_a_terminal():
    controller, terminal = pty.openpty()
    async with serving(answer("200 OK", JSON)) as server:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "status", f"web1={server.url}", stdout=terminal,
            env=environment(TERM="xterm", COLUMNS="100"),
        )  # fmt: skip
        os.close(terminal)
        try:
            async with asyncio.timeout(10):
                await process.wait()
            shown = await asyncio.to_thread(os.read, controller, 65536)
        finally:
            os.close(controller)
    assert process.returncode == 0
    assert b"web1.example" in shown
    assert b"\t" not in shown
