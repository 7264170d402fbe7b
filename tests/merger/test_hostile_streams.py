"""Workers that promise heartbeats and lie: each is named, and costs the others nothing."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest

from ddump_common.api import MEDIA_TYPE_PCAPNG
from ddump_common.note import EndReason
from support.beats import Beats
from support.captures import (
    Record,
    block,
    enhanced_packet,
    interface,
    option,
    parse_pcap,
    pcap,
    section,
    statistics,
    statistics_time,
)
from support.commands import interrupted, run, started
from support.servers import capture, serving
from support.workers import wait_until

pytestmark = pytest.mark.process

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
GOOD = [Record(START + n * 2000, f"good {n}".encode()) for n in range(50)]
BAD = [Record(START + n * 2000 + 1000, f"bad {n}".encode()) for n in range(50)]
HEADERS = {
    "Content-Type": MEDIA_TYPE_PCAPNG,
    "Transfer-Encoding": "chunked",
    "Ddump-Stream": "7",
}


def trusted(*pieces, end="clean"):
    """A stream that promises heartbeats, of these pieces."""

    async def script(exchange):
        await exchange.head("200 OK", HEADERS)
        for piece in pieces:
            await exchange.chunk(piece)
        if end == "clean":
            await exchange.end()
        elif end == "reset":
            await asyncio.sleep(0.1)  # the client reads what it has
            exchange.reset()
        else:
            await exchange.gone()

    return script


async def beside_a_good_one(script, *options):
    """Return how a run of both went, and what came of the bad one."""
    async with serving(capture([pcap(GOOD)])) as good, serving(script) as bad:
        result = await run(*options, f"good={good.url}", f"bad={bad.url}")
    records = parse_pcap(result.out)
    assert [each for each in records if each.data.startswith(b"good")] == GOOD
    assert "\ngood: 50 packets received" in f"\n{result.err}"
    return result, [each for each in records if not each.data.startswith(b"good")]


def said(result):
    """Return what was said of the bad one while it ran."""
    lines = result.err.splitlines()
    return [
        x.removeprefix("ddump: bad: ") for x in lines if x.startswith("ddump: bad: ")
    ]


def begun(*records):
    """Return a sound beginning, and how to go on."""
    beats = Beats(START)
    return beats, beats.header + beats.heartbeat(START) + beats.packets(*records)


def lying(kind, body, length):
    """A block whose lengths are both what they are said to be."""
    word = struct.pack("<I", length)
    return struct.pack("<I", kind) + word + body + word


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (interface(link_type=1, tsresol=9), "link type"),
        (lying(6, bytes(20), 0), "a block claims 0 bytes"),
        (lying(6, bytes(20), 13), "a block claims 13 bytes"),
        (lying(5, bytes(12), 0xFFFFFFFC), "a block claims 4294967292 bytes"),
        (lying(5, bytes(12), 1 << 31), "a block claims 2147483648 bytes"),
        (lying(6, bytes(20), 8), "a block claims 8 bytes"),
        (block(5, bytes(4)), "too short"),
        (statistics(START, number=9), "interface 9, which was not described"),
        (statistics(START, options=struct.pack("<HH", 4, 400)), "overrun"),
        (statistics(START, options=option(4, b"1234")), "overrun"),
        (statistics(START, options=statistics_time(2, 1 << 63)), "a time that cannot"),
        (statistics((1 << 64) - 1), "a time that cannot be"),
        (interface(options=struct.pack("<HH", 9, 4000)), "overrun"),
        (section(version=(9, 0)), "version 9 is not known"),
        (enhanced_packet(START, BAD[0], number=3), "which was not described"),
        (b"\xff" * 64, "a block"),
    ],
)  # fmt: skip
async def test_blocks_that_cannot_be(harm, complaint):
    """What came before is in the output, and there is no second try."""
    beats, data = begun(*BAD)
    async with asyncio.timeout(20):
        result, records = await beside_a_good_one(
            trusted(data, beats.heartbeat(START + SECOND), harm, beats.packets(*BAD))
        )
    assert result.code == 4
    assert records == BAD
    (complained,) = said(result)
    assert complaint in complained
    assert "at byte" in complained
    assert "\nbad: 50 packets received" in result.err
    assert "truncated: " in result.err


@pytest.mark.parametrize("byte_order", ["<", ">"])
async def test_another_section_in_mid_stream(byte_order):
    """It describes what follows it, in its own byte order; heartbeats go on in it."""
    _, data = begun(*BAD[:25])
    order = {"byte_order": byte_order}
    more = section(**order) + interface(tsresol=9, **order)
    more += b"".join(
        enhanced_packet(each.timestamp_ns, each, **order) for each in BAD[25:]
    )
    end = statistics(
        START + SECOND,
        options=option(1, b"ended: packets", **order)
        + statistics_time(3, START + SECOND, **order)
        + bytes(4),
        **order,
    )
    result, records = await beside_a_good_one(trusted(data, more, end))
    assert result.code == 0, result.err
    assert records == BAD
    assert said(result) == []


async def test_heartbeats_that_go_back():
    beats, data = begun(*BAD[:25])
    script = trusted(
        data,
        beats.heartbeat(BAD[25].timestamp_ns),
        beats.heartbeat(START - SECOND),
        beats.heartbeat(0),
        beats.packets(*BAD[25:]),
        beats.heartbeat(START + SECOND, ended=EndReason.IDLE),
    )
    result, records = await beside_a_good_one(script)
    assert result.code == 0, result.err
    assert records == BAD
    assert "2 heartbeats went back" in result.err


@pytest.mark.parametrize(
    ("delivered", "code", "complaint"),
    [
        (57, 4, ["7 packets that its worker sent did not come"]),
        (1 << 63, 4, ["9223372036854775758 packets that its worker sent did not come"]),
        (3, 0, ["more packets came than its worker says it sent"]),
    ],
)
async def test_wrong_counts(delivered, code, complaint):
    beats, data = begun(*BAD)
    end = beats.heartbeat(START + SECOND, delivered=delivered, ended=EndReason.IDLE)
    result, records = await beside_a_good_one(trusted(data, end))
    assert result.code == code
    assert records == BAD
    assert said(result) == complaint


@pytest.mark.parametrize("end", ["clean", "reset"])
async def test_an_end_without_a_reason(end):
    _, data = begun(*BAD)
    result, records = await beside_a_good_one(trusted(data, end=end), "--no-reconnect")
    assert result.code == 4
    assert records == BAD
    assert len(said(result)) == 1


# --- Going on ---


class Flapping:
    """A worker that breaks after its first packets; ``ring`` answers for its ring."""

    def __init__(self, ring, *, told="link=sll, recording"):
        self.captures = 0
        self.asked = []
        self._ring = ring
        self._told = told

    async def __call__(self, exchange):
        path = exchange.request.target.partition("?")[0]
        if exchange.request.method == "HEAD":
            await exchange.head("200 OK", HEADERS | {"Ddump-Ring": self._told})
            return
        self.asked.append(path)
        if path == "/ring":
            await self._ring(exchange)
        else:
            self.captures += 1
            if self.captures == 1:
                beats, data = begun(*BAD[:30])
                data += beats.heartbeat(BAD[20].timestamp_ns)
                await trusted(data, end="reset")(exchange)
            else:
                moment = time.time_ns()
                beats = Beats(moment)
                last = beats.heartbeat(moment + 1, ended=EndReason.DURATION)
                await trusted(beats.header + beats.heartbeat(moment), last)(exchange)


def whole_ring(headers=None, records=BAD[20:]):
    """A ring that has it all."""

    async def script(exchange):
        now = time.time_ns() + SECOND
        beats = Beats(START)
        told = {"Ddump-Window": "gaps=()"} if headers is None else headers
        await exchange.head("200 OK", HEADERS | told)
        await exchange.chunk(beats.header + beats.packets(*records))
        await exchange.chunk(beats.heartbeat(now))
        await exchange.chunk(beats.heartbeat(now + 1, ended=EndReason.DURATION))
        await exchange.end()

    return script


async def test_a_break_that_costs_nothing():
    result, records = await beside_a_good_one(Flapping(whole_ring()))
    assert result.code == 0, result.err
    assert records == BAD
    assert "bad: 50 packets received" in result.err
    assert said(result)[1].startswith("back, and nothing is lost of ")


async def redirecting(exchange):
    await exchange.answer("302 Found", location=exchange.request.target)


async def html(exchange):
    await exchange.answer("200 OK", b"<html>", content_type="text/html")


async def refusing(exchange):
    await exchange.answer("416 Range Not Satisfiable")


async def dying(exchange):
    exchange.reset()


@pytest.mark.parametrize("ring", [redirecting, html, refusing])
async def test_a_ring_that_is_none(ring):
    """The stream goes on from now, and what was lost is told."""
    script = Flapping(ring)
    result, records = await beside_a_good_one(script)
    assert result.code == 4
    assert records == BAD[:30]
    assert script.captures == 2
    assert script.asked.count("/ring") == 1
    assert "packets may be missing" in said(result)[-1]


async def test_garbage_instead_of_a_ring():
    async def garbage(exchange):
        await exchange.head("200 OK", HEADERS)
        await exchange.chunk(bytes(1000))
        await exchange.gone()

    result, records = await beside_a_good_one(Flapping(garbage))
    assert result.code == 4
    assert records == BAD[:30]
    assert any("its ring: not a capture file" in line for line in said(result))


async def test_other_packets_instead_of_what_was_asked_for():
    strange = [Record(START + n * 1000 + 17_000, b"strange %d" % n) for n in range(10)]
    result, records = await beside_a_good_one(Flapping(whole_ring(records=strange)))
    assert sorted(records, key=lambda r: r.data) == sorted(
        [*BAD[:30], *strange], key=lambda r: r.data
    )
    assert "10 refilled" in result.err


async def test_a_ring_that_breaks_and_breaks():
    """There is a wait between tries, and an interrupt ends it at once, in order."""
    script = Flapping(dying)
    async with (
        serving(capture([pcap(GOOD)])) as good,
        serving(script) as bad,
        started(f"good={good.url}", f"bad={bad.url}") as process,
    ):
        await wait_until(lambda: script.asked.count("/ring") == 4, seconds=20)
        begin = time.monotonic()
        result = await interrupted(process)
    assert time.monotonic() - begin < 2
    assert result.code == 4
    assert len(parse_pcap(result.out)) == 80
    assert script.captures == 1
    assert len(said(result)) == 1


@pytest.mark.parametrize("told", ["{", "link=en10mb", "recording", "x" * 8000])
async def test_a_ring_that_does_not_say_what_it_keeps(told):
    script = Flapping(whole_ring(), told=told)
    result, _ = await beside_a_good_one(script)
    assert result.code == 4
    assert script.captures == 2
    assert "/ring" not in script.asked


async def test_who_is_never_heard_again_is_noticed():
    """It took the request and sent its first packets; then it is silent, for ever."""
    _, data = begun(*BAD)
    async with (
        serving(trusted(data, end="never")) as bad,
        started(f"bad={bad.url}") as process,
    ):
        begin = time.monotonic()
        async with asyncio.timeout(20):
            line = await process.stderr.readline()
        assert 9 < time.monotonic() - begin < 15
        result = await interrupted(process)
    assert line.startswith(b"ddump: bad: nothing came for 10s, not even a heartbeat")
    assert result.code == 4
