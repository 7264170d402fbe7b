"""What was dropped is asked of the worker at the end, and shown."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import pytest

from ddump_common.answers import Memory, Status, StreamInfo, StreamState, Totals
from ddump_common.errors import UnreachableError
from ddump_merger.account import ask, settle
from ddump_merger.lane import Lane
from ddump_merger.stream import HttpSource, open_session
from ddump_merger.target import parse_target
from support.captures import Record, pcap
from support.commands import run
from support.servers import serving

pytestmark = pytest.mark.process

CAPTURE = pcap([Record(1_700_000_000_000_000_000, b"packet")])


def stream(number, dropped, interface_dropped=0, skipped=0):
    return StreamInfo(
        id=number, client="c", state=StreamState.CLOSED, filter="", started_ns=0,
        packets=1, bytes=6, dropped=dropped, interface_dropped=interface_dropped,
        buffer_bytes=0, skipped=skipped,
    )  # fmt: skip


def status(*, streams=(), ended=()):
    return msgspec.json.encode(
        Status(
            host="h", version="0", started_ns=0, time_ns=0, connections=1,
            max_connections=1, max_streams=1, states={}, streams=list(streams),
            ended=list(ended), memory=Memory(used_bytes=0, limit_bytes=0),
            totals=Totals(
                packets=0, bytes=0, dropped=0, interface_dropped=0, streams=0, refused=0
            ),
        )
    )  # fmt: skip


def worker(body, *, number="7", asked=None):
    """A worker under a prefix that streams one packet, and then says ``body``."""

    async def script(exchange):
        path = exchange.request.target
        if path.startswith("/web/capture"):
            headers = {"Transfer-Encoding": "chunked"}
            if number is not None:
                headers["Ddump-Stream"] = number
            headers["Content-Type"] = "application/vnd.tcpdump.pcap"
            await exchange.head("200 OK", headers)
            await exchange.chunk(CAPTURE)
            await exchange.end()
        else:
            if asked is not None:
                asked.append(path)
            if body is None:
                await exchange.gone()
            else:
                await exchange.answer("200 OK", body, content_type="application/json")

    return script


@pytest.mark.parametrize("where", ["streams", "ended"])
async def test_what_was_dropped_is_shown(where):
    body = status(**{where: [stream(6, 100), stream(7, 3, 2), stream(8, 100)]})
    asked = []
    async with serving(worker(body, asked=asked)) as server:
        result = await run(f"web={server.url}/web/")
    assert result.code == 0
    assert asked == ["/web/api/v1/status"]
    assert "web: 1 packet received, 5 dropped by kernel, 0 late" in result.err


@pytest.mark.parametrize(
    ("body", "number"),
    [
        (status(ended=[stream(6, 100)]), "7"),
        (b"<html>", "7"),
        (b"[" * 100_000, "7"),
        (b" " * (2 << 20), "7"),
    ],
)
async def test_what_is_not_told_is_unknown(body, number):
    async with serving(worker(body, number=number)) as server:
        result = await run(f"web={server.url}/web/")
    assert result.code == 0
    assert "web: 1 packet received, - dropped by kernel, 0 late" in result.err


@pytest.mark.parametrize("number", [None, "", "-1", "7x", "9" * 19])
async def test_who_does_not_number_its_streams_is_not_asked(number):
    asked = []
    async with serving(worker(b"", number=number, asked=asked)) as server:
        result = await run(f"web={server.url}/web/")
    assert asked == []
    assert "web: 1 packet received, - dropped by kernel, 0 late" in result.err


async def test_nobody_waits_long_for_it():
    began = time.monotonic()
    async with asyncio.timeout(10), serving(worker(None)) as server:
        result = await run(f"web={server.url}/web/")
    assert result.code == 0
    assert 2 <= time.monotonic() - began < 6
    assert "- dropped by kernel" in result.err


async def test_quiet_asks_nothing():
    asked = []
    async with serving(worker(b"", asked=asked)) as server:
        result = await run("-q", f"web={server.url}/web/")
    assert (result.code, result.err, asked) == (0, "", [])


async def test_it_is_asked_when_a_stream_ends_while_the_worker_remembers_it():
    asked = asyncio.Event()

    async def first(exchange):
        if "status" in exchange.request.target:
            asked.set()
        await worker(status(ended=[stream(7, 3)]))(exchange)

    async def second(exchange):
        await exchange.begin()
        await exchange.chunk(CAPTURE)
        await asked.wait()  # goes on until the account of the first was asked for
        await exchange.end()

    async with serving(first) as one, serving(second) as other:
        result = await run(f"a={one.url}/web/", f"b={other.url}")
    assert result.code == 0
    assert "a: 1 packet received, 3 dropped by kernel" in result.err


# --- In this process ---


async def opened(stack, script):
    """Return a lane whose stream has been opened."""
    server = await stack.enter_async_context(serving(script))
    session = await stack.enter_async_context(open_session(None))
    target = parse_target(f"web={server.url}/web/")
    source = HttpSource(target, session, connect_timeout_ns=2_000_000_000)
    await source.open()
    stack.callback(source.close)
    return Lane(index=0, target=target, source=source, live=True, heard=0.0)


@pytest.mark.parametrize(
    ("body", "dropped", "skipped", "said"),
    [
        (status(streams=[stream(7, 3, 2)]), 5, 0, []),
        (status(ended=[stream(7, 3, skipped=4)]), 3, 4,
         ["web: up to 4 packets of the window could no longer be read from the ring"]),
        (status(ended=[stream(6, 3, skipped=4)]), None, 0, []),
        (b"<html>", None, 0, []),
    ],
)  # fmt: skip
async def test_an_account_is_noted(caplog, body, dropped, skipped, said):
    async with contextlib.AsyncExitStack() as stack:
        lane = await opened(stack, worker(body))
        await settle(lane)
    assert (lane.dropped, lane.skipped) == (dropped, skipped)
    assert caplog.messages == said


async def test_who_does_not_answer_leaves_it_unknown(monkeypatch):
    monkeypatch.setattr("ddump_merger.account._PATIENCE_NS", 50_000_000)
    async with contextlib.AsyncExitStack() as stack:
        lane = await opened(stack, worker(None))
        with pytest.raises(UnreachableError, match="no answer within 50ms"):
            await ask(lane)
        await settle(lane)
    assert (lane.dropped, lane.skipped) == (None, 0)


async def test_an_account_has_the_worker_s_time():
    async with contextlib.AsyncExitStack() as stack:
        lane = await opened(stack, worker(status(streams=[stream(7, 3)])))
        account = await ask(lane)
        lane.source.number = None
        assert await ask(lane) is None
    assert (account.stream.id, account.time_ns) == (7, 0)
