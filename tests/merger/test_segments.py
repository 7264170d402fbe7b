"""``ddump segments``: rings as workers tell of them."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from ddump_common.answers import IntervalInfo, RingInfo, SegmentInfo, Segments
from ddump_common.errors import ExitCode
from ddump_merger.config import TlsFiles
from ddump_merger.segments import coverage_rows, segment_rows, show_segments
from ddump_merger.target import parse_target
from support.commands import environment, run
from support.servers import answer, refusing_port, serving

pytestmark = pytest.mark.usefixtures("utc")

SECOND = 1_000_000_000
NOW = 1_700_661_780 * SECOND  # 2023-11-22T14:03:00Z
SEGMENTS = Segments(
    host="web1.example",
    time_ns=NOW,
    ring=RingInfo(
        state="recording", link="sll", segments=2, packets=31, bytes=2048,
        limit_bytes=2_000_000_000, pinned_bytes=1 << 20, pinned_limit_bytes=1 << 21,
        dropped=3, lost=1, windows=2, max_windows=64,
        coverage=[
            IntervalInfo(begin_ns=NOW - 86400 * SECOND, end_ns=NOW - 600 * SECOND),
            IntervalInfo(begin_ns=NOW - 530 * SECOND, end_ns=NOW - SECOND // 4),
        ],
    ),
    segments=[
        SegmentInfo(
            name="ddump-0000000007-20231121T140300Z.pcap", packets=30, bytes=1024,
            begin_ns=NOW - 86400 * SECOND, end_ns=NOW - 600 * SECOND, dropped=3, lost=1,
        ),
        SegmentInfo(
            name="ddump-0000000008-20231122T135410Z.pcap", packets=1, bytes=1024,
            begin_ns=NOW - 530 * SECOND, end_ns=NOW - SECOND // 4, growing=True,
        ),
    ],
)  # fmt: skip
JSON = msgspec.json.encode(SEGMENTS)
UTC = environment(TZ="UTC")


def test_segments():
    assert segment_rows({"web1": SEGMENTS}, now_ns=NOW) == [
        ["target", "segment", "begin", "end", "time", "packets", "bytes", "dropped", "lost"],
        ["web1", "7", "2023-11-21 14:03:00", "13:53:00", "23h50m", "30", "1.02kB", "3", "1"],
        ["web1", "8", "13:54:10", "growing", "8m49s", "1", "1.02kB", "0", "0"],
    ]  # fmt: skip


def test_coverage():
    assert coverage_rows({"web1": SEGMENTS}, now_ns=NOW) == [
        ["target", "begin", "end", "time", "coverage"],
        ["web1", "2023-11-21 14:03:00", "13:53:00", "23h50m", "covered"],
        ["web1", "13:53:00", "13:54:10", "1m10s", "gap"],
        ["web1", "13:54:10", "14:02:59", "8m49s", "covered"],
    ]


def test_hostile_times_and_lengths():
    bad = msgspec.structs.replace(
        SEGMENTS.segments[0], begin_ns=10**30, end_ns=-(10**30), bytes=-1, name="x"
    )
    answers = {"a": msgspec.structs.replace(SEGMENTS, segments=[bad], ring=None)}
    assert segment_rows(answers, now_ns=NOW)[1][1:7] == ["x", "?", "?", "?", "30", "?"]
    assert len(coverage_rows(answers, now_ns=NOW)) == 1


async def shown(*words, capfd, as_json=False):
    """Run the command on a thread, for it has a loop of its own."""
    code = await asyncio.to_thread(
        show_segments, [parse_target(word) for word in words],
        tls=TlsFiles(), connect_timeout_ns=2_000_000_000, as_json=as_json,
    )  # fmt: skip
    return code, capfd.readouterr().out


async def test_both_ways_in_this_process(capfd):
    bare = Segments(host="h", time_ns=NOW, ring=None, segments=[])
    async with (
        serving(answer("200 OK", JSON)) as ring,
        serving(answer("200 OK", msgspec.json.encode(bare))) as none,
    ):
        words = (f"web1={ring.url}", f"db={none.url}")
        code, out = await shown(*words, capfd=capfd)
        assert code is ExitCode.OK
        assert "1 lost, which the disk did not take" in out
        assert out.endswith("db: it keeps no ring: see --ring-dir of ddump-worker\n")
        code, out = await shown(*words, capfd=capfd, as_json=True)
    targets = [json.loads(line)["target"] for line in out.splitlines()]
    assert targets == ["web1", "web1", "web1", "db"]
    async with serving(answer("200 OK", msgspec.json.encode(bare))) as none:
        code, out = await shown(f"db={none.url}", capfd=capfd)
    assert code is ExitCode.OK  # it answered
    assert out == "db: it keeps no ring: see --ring-dir of ddump-worker\n"
    code, out = await shown(f"http://127.0.0.1:{refusing_port()}", capfd=capfd)
    assert (code, out) == (ExitCode.NO_TARGET, "")


@pytest.mark.process
async def test_the_subcommand():
    bare = msgspec.json.encode(Segments(host="h", time_ns=NOW, ring=None, segments=[]))
    async with (
        serving(answer("200 OK", JSON)) as ring,
        serving(answer("200 OK", bare)) as none,
    ):
        result = await run("segments", f"web1={ring.url}/p/", f"db={none.url}", env=UTC)
        assert ring.requests[0].target == "/p/api/v1/segments"
    assert result.code == 0
    out = result.out.decode()
    assert (
        "web1\t7\t2023-11-21 14:03:00\t2023-11-22 13:53:00\t23h50m\t30\t1.02kB\t3\t1\n"
        in out
    )
    assert "web1\t2023-11-22 13:53:00\t2023-11-22 13:54:10\t1m10s\tgap" in out
    assert out.endswith(
        "web1: recording, 2 segments of sll, 2.05kB of 2GB, 31 packets, 3 dropped by kernel, "
        "1 lost, which the disk did not take, 1.05MB more held by windows, "
        "2 of 64 windows open\n"
        "db: it keeps no ring: see --ring-dir of ddump-worker\n"
    )


async def test_a_quiet_ring(capfd):
    ring = msgspec.structs.replace(
        SEGMENTS.ring, lost=0, pinned_bytes=0, windows=0, coverage=[], segments=1
    )
    body = msgspec.json.encode(msgspec.structs.replace(SEGMENTS, ring=ring))
    async with serving(answer("200 OK", body)) as server:
        _, out = await shown(f"a={server.url}", capfd=capfd)
    assert out.endswith(
        "\na: recording, 1 segment of sll, 2.05kB of 2GB, 31 packets, 3 dropped by kernel\n"
    )


@pytest.mark.process
async def test_json_lines():
    bad = f"bad=http://127.0.0.1:{refusing_port()}"
    async with serving(answer("200 OK", JSON)) as server:
        result = await run("segments", "--json", f"web1={server.url}", bad)
    assert result.code == 4
    assert result.err == "ddump: bad: connection refused\n"
    ring, *segments = map(json.loads, result.out.splitlines())
    whole = json.loads(JSON)
    assert ring == {
        "target": "web1", "host": "web1.example", "time_ns": NOW, "ring": whole["ring"],
    }  # fmt: skip
    assert segments == [
        {"target": "web1", "host": "web1.example", **each} for each in whole["segments"]
    ]


@pytest.mark.process
async def test_no_answer_and_no_worker():
    async with serving(answer("200 OK", b'{"host": 1}')) as server:
        result = await run("segments", f"a={server.url}")
    assert result.code == 3
    assert "a: the answer is not a worker's segments: " in result.err
    result = await run("segments", "a.pcap")
    assert result.code == 2
    assert "segments is for workers (ddump segments http://HOST...)" in result.err
