"""Windows of the ring through the command, from servers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from ddump_common.answers import Problem
from ddump_common.api import MEDIA_TYPE_PCAPNG
from ddump_common.note import EndReason
from ddump_common.timespec import parse_time
from support.beats import Beats
from support.captures import Record, parse_pcap, pcap, pcap_header, pcap_record
from support.commands import environment, interrupted, resident_kilobytes, run, started
from support.servers import PCAP, answer, capture, serving

pytestmark = pytest.mark.process

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
RECORDS = [Record(START + n * 1_000_000, b"%d" % n) for n in range(400)]
GAP = (
    'covered="2023-11-22T14:03:00Z/2023-11-22T14:08:00Z", '
    'gaps=("2023-11-22T14:04:10Z/2023-11-22T14:05:20Z")'
)


class Ring:
    """A ring that sends what a test puts: in pcapng with ``beats``, which are trusted."""

    def __init__(self, *pieces, header=None, beats=None):
        self.queue = asyncio.Queue()
        self.asked = asyncio.Event()
        self._headers = {"Content-Type": PCAP, "Transfer-Encoding": "chunked"}
        self._begin = pcap_header()
        if beats is not None:
            self._headers |= {"Content-Type": MEDIA_TYPE_PCAPNG, "Ddump-Stream": "7"}
            self._begin = beats.header
        if header is not None:
            self._headers["Ddump-Window"] = header
        for piece in pieces:
            self.queue.put_nowait(piece)

    async def __call__(self, exchange):
        await exchange.head("200 OK", self._headers)
        await exchange.chunk(self._begin)
        self.asked.set()
        while (data := await self.queue.get()) is not None:
            await exchange.chunk(data)
        await exchange.end()

    def put(self, *records):
        self.queue.put_nowait(b"".join(map(pcap_record, records)))

    def end(self):
        self.queue.put_nowait(None)


@contextlib.asynccontextmanager
async def served(*scripts):
    """Serve every script; yield their URLs."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(each)) for each in scripts]
        yield [server.url for server in servers]


def records_of(*records):
    return b"".join(map(pcap_record, records))


# --- What is asked for ---


async def test_one_command_is_one_window_on_all_hosts():
    async with serving(capture([pcap(RECORDS)])) as server:
        before = time.time_ns()
        result = await run("--last", "5m", server.url, f"{server.url}/p/", server.url)
        after = time.time_ns()
    assert result.code == 0
    urls = [urlsplit(request.target) for request in server.requests]
    assert sorted(url.path for url in urls) == ["/p/ring", "/ring", "/ring"]
    assert len({url.query for url in urls}) == 1
    query = parse_qs(urls[0].query)
    assert set(query) == {"since", "until"}
    since, until = (
        parse_time(query[name][0], now_ns=0, zone=None) for name in ("since", "until")
    )
    assert before <= until <= after
    assert until - since == 300 * SECOND


async def test_times_are_of_the_caller_s_zone():
    async with serving(capture([pcap([])])) as server:
        result = await run(
            "--since", "2023-11-22 15:03", "--until", "2023-07-22 15:03:00.25Z",
            server.url, env=environment(TZ="Europe/Berlin"),
        )  # fmt: skip
        assert result.code == 2  # the end is in summer, before
        result = await run(
            "--since", "2023-07-22 15:03", "--until", "2023-11-22 15:03:00.25",
            server.url, env=environment(TZ="Europe/Berlin"),
        )  # fmt: skip
    assert result.code == 0
    (request,) = server.requests
    assert parse_qs(urlsplit(request.target).query) == {
        "since": ["2023-07-22T13:03:00Z"], "until": ["2023-11-22T14:03:00.25Z"],
    }  # fmt: skip


# --- What is missing is said ---


@pytest.mark.parametrize("quiet", [[], ["-q"]])
async def test_gaps_are_said_and_make_it_incomplete(quiet):
    whole = Ring(records_of(*RECORDS[0::2]), None, header="gaps=()")
    lacking = Ring(records_of(*RECORDS[1::2]), None, header=GAP)
    async with served(whole, lacking) as (one, other):
        result = await run(
            *quiet, "--last", "5m", f"a={one}", f"web1={other}",
            env=environment(TZ="Europe/Berlin"),
        )  # fmt: skip
    assert result.code == 4
    assert parse_pcap(result.out) == RECORDS
    said = result.err.splitlines()
    assert said[0] == (
        "ddump: web1: the ring may lack what came "
        "from 2023-11-22 15:04:10 to 2023-11-22 15:05:20 (1m10s)"
    )
    assert len(said) == (1 if quiet else 5)


async def test_a_header_that_is_wrong_is_said_and_nothing_is_known():
    ring = Ring(records_of(*RECORDS), None, header='gaps=("soon")')
    async with served(ring) as (url,):
        result = await run("--last", "5m", f"a={url}")
    assert result.code == 0
    assert (
        "ddump: a: whether the ring has all is not known: its Ddump-Window is wrong: "
        "'\"soon\"' is no interval\n" in result.err
    )


async def test_who_sends_no_header_is_not_asked_for_one():
    async with served(Ring(None)) as (url,):
        result = await run("--last", "5m", f"a={url}")
    assert result.code == 0
    assert result.err == "a: 0 packets received, - dropped by kernel, 0 late\n"


@pytest.mark.parametrize("quiet", [[], ["-q"]])
async def test_what_was_overwritten_is_said_and_makes_it_incomplete(quiet):
    beats = Beats(START)
    ring = Ring(
        beats.packets(*RECORDS),
        beats.heartbeat(
            START + SECOND, ended=EndReason.COMPLETE, dropped=5, skipped=1234
        ),
        None,
        beats=beats,
    )
    async with served(ring) as (url,):
        result = await run(*quiet, "--last", "5m", f"web1={url}")
    assert result.code == 4
    assert parse_pcap(result.out) == RECORDS
    said = (
        "ddump: web1: up to 1234 packets of the window could no longer be read from the ring",
        "web1: 400 packets received, 5 dropped by kernel, 0 late, "
        "up to 1234 no longer in the ring",
    )
    assert result.err.splitlines() == list(said[: 1 if quiet else 2])


@pytest.mark.parametrize(
    ("answered", "problem", "said"),
    [
        ("416 Range Not Satisfiable",
         Problem(title="Nothing of the window is covered", status=416,
                 detail="the ring covers 14:03 to 14:08", hint="ask for less"),
         "416: Nothing of the window is covered: the ring covers 14:03 to 14:08 (ask for less)"),
        ("404 Not Found",
         Problem(title="No ring", status=404, detail="this worker keeps none",
                 hint="start it with --ring-dir"),
         "404: No ring: this worker keeps none (start it with --ring-dir)"),
        ("503 Service Unavailable",
         Problem(title="Too many windows", status=503, detail="64 are open"),
         "503: Too many windows: 64 are open"),
        ("400 Bad Request",
         Problem(title="Bad parameter", status=400, parameter="interface",
                 detail="the ring is SLL"),
         "400: interface: Bad parameter: the ring is SLL"),
    ],
)  # fmt: skip
async def test_refusals_are_as_the_worker_words_them(answered, problem, said):
    body = msgspec.json.encode(problem)
    refusing = answer(answered, body, content_type="application/problem+json")
    async with served(refusing, Ring(records_of(*RECORDS), None)) as (bad, good):
        result = await run("--last", "5m", f"web1={bad}", good)
        assert result.code == 4
        assert f"ddump: web1: {said}\n" in result.err
        assert parse_pcap(result.out) == RECORDS
        assert (await run("--last", "5m", bad)).code == 3


async def test_a_window_outside_is_told_in_the_time_of_whoever_asks():
    problem = Problem(
        title="The window is outside the ring", status=416,
        detail="the ring has nothing of this window; it covers 2026-11-23T20:00:00Z to …",
    )  # fmt: skip
    refusing = answer(
        "416 Range Not Satisfiable", msgspec.json.encode(problem),
        content_type="application/problem+json", ddump_window=GAP.partition(", ")[2],
    )  # fmt: skip
    async with served(refusing) as (url,):
        result = await run(
            "--last", "5m", f"web1={url}", env=environment(TZ="Europe/Berlin")
        )
    assert result.code == 3
    assert result.err.splitlines() == [
        "ddump: web1: the ring has nothing of the window: 2023-11-22 15:04:10 to "
        f"2023-11-22 15:05:20 (1m10s) (ddump segments {url}/ shows what it has)",
        "web1: not captured: the ring has nothing of the window",
    ]


async def test_a_window_outside_with_a_header_that_says_otherwise():
    script = answer(
        "416 Range Not Satisfiable",
        ddump_window='covered="2023-11-22T14:03:00Z/2023-11-22T14:08:00Z", gaps=()',
    )
    async with served(script) as (url,):
        result = await run("--last", "5m", f"a={url}")
    assert "ddump: a: 416 " in result.err


async def test_gaps_that_are_only_counted_are_missing():
    ring = Ring(records_of(*RECORDS), None, header="gaps=(), omitted=999")
    async with served(ring) as (url,):
        result = await run("--last", "5m", f"a={url}")
    assert result.code == 4
    assert "ddump: a: the ring may lack what came in 999 gaps\n" in result.err


# --- Order ---


async def test_a_scan_that_finds_nothing_for_long_makes_nothing_late():
    """Longer than ``--hold``: the other window and the live stream wait for it."""
    sparse, full, live = Ring(), Ring(records_of(*RECORDS[100:300]), None), Ring()
    async with (
        served(sparse, full, live) as (a, b, c),
        started(f"{a}/ring", f"{b}/ring", c) as process,
    ):
        for each in (sparse, full, live):
            await each.asked.wait()
        live.put(*RECORDS[300:])
        assert await process.stdout.readexactly(24) == pcap_header()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):  # three holds
                await process.stdout.readexactly(1)
        sparse.put(*RECORDS[:100])
        sparse.end()
        size = len(records_of(*RECORDS))
        async with asyncio.timeout(5):
            data = await process.stdout.readexactly(size)
        assert data == records_of(*RECORDS)
        live.end()
        async with asyncio.timeout(5):
            _, err = await process.communicate()
    assert process.returncode == 0
    assert err.count(b", 0 late\n") == 4


async def test_a_window_that_is_silent_for_too_long_is_named():
    async with served(Ring(records_of(*RECORDS[0::2])), Ring(records_of(*RECORDS[1::2]), None)) as (a, b):  # fmt: skip
        result = await run("--timeout", "500ms", "--last", "5m", f"a={a}", f"b={b}")
    assert result.code == 4
    assert parse_pcap(result.out) == RECORDS
    assert "ddump: a: nothing came for 500ms (see --timeout)\n" in result.err
    assert (
        "a: 200 packets received, - dropped by kernel, 0 late, truncated: "
        in result.err
    )


async def test_a_worker_that_goes_on_is_waited_for_beyond_the_timeout():
    """It finds nothing for five timeouts, and says so."""
    beats = Beats(START)
    ring = Ring(beats=beats)
    async with (
        served(ring) as (url,),
        started("--timeout", "400ms", f"{url}/ring") as p,
    ):
        async with asyncio.timeout(10):
            for n in range(20):
                ring.queue.put_nowait(beats.heartbeat(START - SECOND + n))
                await asyncio.sleep(0.1)  # the rate
            ring.queue.put_nowait(beats.packets(*RECORDS))
            ring.queue.put_nowait(
                beats.heartbeat(START + SECOND, ended=EndReason.COMPLETE)
            )
            ring.end()
            out, err = await p.communicate()
    assert p.returncode == 0, err
    assert parse_pcap(out) == RECORDS


@pytest.mark.parametrize("kind", ["window", "live"])
async def test_who_connects_holds_back_windows_and_no_live_stream(kind):
    answered = asyncio.Event()

    async def slow(exchange):
        await answered.wait()
        await capture([pcap(RECORDS[0::2])])(exchange)

    ring = Ring(records_of(*RECORDS[1::2]))
    path = "ring" if kind == "window" else "capture"
    async with (
        served(slow, ring) as (a, b),
        started("--hold", "300ms", f"{a}/ring", f"{b}/{path}") as process,
    ):
        await ring.asked.wait()
        assert await process.stdout.readexactly(24) == pcap_header()
        if kind == "live":
            async with asyncio.timeout(3):
                data = await process.stdout.readexactly(len(records_of(*RECORDS[1::2])))
            assert data == records_of(*RECORDS[1::2])
            return
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):  # three holds
                await process.stdout.readexactly(1)
        answered.set()
        ring.end()
        async with asyncio.timeout(5):
            out, _ = await process.communicate()
    assert out == records_of(*RECORDS)


async def test_who_does_not_connect_holds_windows_back_no_longer_than_asked():
    async def never(exchange):
        await exchange.gone()

    async with served(never, Ring(records_of(*RECORDS), None)) as (a, b):
        result = await run("--connect-timeout", "300ms", "--last", "5m", f"a={a}", b)
    assert result.code == 4
    assert "ddump: a: no answer within 300ms" in result.err
    assert parse_pcap(result.out) == RECORDS


# --- Many, and much ---


async def test_a_hundred_and_twenty_windows_at_once():
    count = 120
    everyone = asyncio.Event()
    asked = 0

    async def script(exchange):
        nonlocal asked
        asked += 1
        number = int(exchange.request.target.partition("?")[0].rpartition("/")[2])
        if asked == count:
            everyone.set()
        await exchange.begin()
        await exchange.chunk(pcap_header())
        await everyone.wait()
        for n in range(10):
            record = Record(START + (n * count + number) * 1000)
            await exchange.chunk(pcap_record(record))
        await exchange.end()

    async with serving(script) as server:
        words = (f"w{n}={server.url}/{n}" for n in range(count))
        result = await run("--last", "5m", *words)
    assert result.code == 0, result.err
    records = parse_pcap(result.out)
    assert [r.timestamp_ns for r in records] == [START + n * 1000 for n in range(1200)]
    assert result.err.count(", 0 late\n") == count + 1


def numbered(stream, number):
    """Return a record of 1,000 bytes; the second stream is later as a whole."""
    moment = START + (stream * 1_000_000 + number) * 10_000
    return Record(moment, struct.pack("<II", stream, number) + bytes(992))


async def test_a_window_that_is_ahead_is_held_by_tcp_and_costs_no_memory():
    """It has 200 MB, and its turn comes when the first has ended."""
    count = 200_000
    sent = 0

    async def ahead(exchange):
        nonlocal sent
        await exchange.begin()
        await exchange.chunk(pcap_header())
        for at in range(0, count, 100):
            chunk = [pcap_record(numbered(1, at + n)) for n in range(100)]
            await exchange.chunk(b"".join(chunk))
            sent = at + 100
        await exchange.end()

    first = Ring(records_of(numbered(0, 0)))
    async with (
        served(first, ahead) as (a, b),
        started("--last", "5m", "-w", "/dev/null", a, b) as process,
    ):
        before = -1
        async with asyncio.timeout(20):
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.5)  # an absence can only be waited for
        assert sent < count // 2
        assert resident_kilobytes(process.pid) < 75_000
        first.end()
        async with asyncio.timeout(30):
            _, err = await process.communicate()
    assert process.returncode == 0
    assert sent == count
    assert f"{count} packets received, - dropped by kernel, 0 late".encode() in err


# --- Following ---


async def test_following_begins_with_the_past_and_goes_on_live():
    """While one reads its past, the other waits; then its heartbeats let go of it."""
    beats = [Beats(START), Beats(START)]
    sparse, busy = (Ring(beats=each) for each in beats)
    async with (
        served(sparse, busy) as (a, b),
        started("--last", "5m", "--follow", "--hold", "200ms", a, b) as process,
    ):
        await sparse.asked.wait()
        busy.queue.put_nowait(
            beats[1].packets(*RECORDS[100:]) + beats[1].heartbeat(time.time_ns())
        )
        assert await process.stdout.readexactly(24) == pcap_header()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):  # five holds of silence
                await process.stdout.readexactly(1)
        sparse.queue.put_nowait(
            beats[0].packets(*RECORDS[:100]) + beats[0].heartbeat(time.time_ns())
        )
        async with asyncio.timeout(5):
            data = await process.stdout.readexactly(len(records_of(*RECORDS)))
        assert data == records_of(*RECORDS)
        for n in range(3):
            record = Record(time.time_ns() // 1000 * 1000, b"%d" % n)
            busy.queue.put_nowait(
                beats[1].packets(record) + beats[1].heartbeat(record.timestamp_ns + 1)
            )
            sparse.queue.put_nowait(beats[0].heartbeat(record.timestamp_ns + 1))
            async with asyncio.timeout(0.9):
                data = await process.stdout.readexactly(17)
            assert data == pcap_record(record)
        result = await interrupted(process)
    assert result.code == 0
    assert result.err.count(", 0 late\n") == 3


async def test_who_follows_and_tells_nothing_is_live_at_once():
    silent, busy = Ring(), Ring()
    async with (
        served(silent, busy) as (a, b),
        started("--follow", "--hold", "200ms", a, b) as process,
    ):
        await silent.asked.wait()
        record = Record(time.time_ns() // 1000 * 1000, b"x")
        busy.put(record)
        async with asyncio.timeout(3):
            data = await process.stdout.readexactly(24 + 17)
        assert parse_pcap(data) == [record]
        assert (await interrupted(process)).code == 0
