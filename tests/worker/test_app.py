"""The application in this process, with parts that fail as real ones seldom do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from ddump_common.errors import CaptureError
from ddump_worker import handlers
from ddump_worker.access import Grant
from ddump_worker.app import create_app
from ddump_worker.capture import LiveCapture
from ddump_worker.config import Config
from ddump_worker.connections import Connection, Connections
from ddump_worker.core import Plan
from ddump_worker.door import Door
from ddump_worker.gate import Gate
from ddump_worker.listen import Listener, parse_address
from ddump_worker.streams import Streams
from ddump_worker.trust import Trust


class Failing:
    """A handle that delivers one batch, and then fails."""

    packets = data_bytes = 0
    more = True
    finished = False

    def __init__(self, failure: Exception):
        self._failure = failure
        self._reader, self._writer = socket.socketpair()
        self.closed = False

    def read_batch(self, _: int) -> bytes:
        if self.packets:
            raise self._failure
        self.packets = 1
        return b"r" * 20

    def statistics(self) -> tuple[int, int, int]:
        return 1, 0, 0

    def undelivered(self) -> int:
        return 3

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self.closed = True
        self._reader.close()
        self._writer.close()


class Core(SimpleNamespace):
    """The parts of a worker, one of which fails."""

    def __init__(self, *, failure: Exception, planning: bool = False):
        handle = Failing(failure)

        async def plan(order):
            assert order.client.host == "127.0.0.1"
            if planning:
                raise failure
            return Plan(program=b"", host=[], chosen=frozenset())

        async def opened(query, _, *, pcapng):
            return LiveCapture(
                handle,
                query=query,
                granted=1,
                started_ns=1,
                promised_ns=0,
                on_close=handle.close,
            )

        config = Config(listen=(parse_address("127.0.0.1:0"),), allow_anonymous=True)
        super().__init__(
            plan=plan,
            grant=lambda *_: Grant(),
            door=Door(config, Trust(), node="test"),
            handle=handle,
            captures=SimpleNamespace(open=opened),
            streams=Streams(),
            connections=Connections(limit=9),
        )


def entries(caplog) -> list[dict]:
    """Return what the log tells of requests."""
    return [each.fields for each in caplog.records if each.message == "request"]


@contextlib.asynccontextmanager
async def serving(core):
    runner = web.AppRunner(create_app(core), handler_cancellation=True)
    await runner.setup()
    listener = Listener(parse_address("127.0.0.1:0"))
    try:
        async with (
            asyncio.TaskGroup() as tasks,
            aiohttp.ClientSession(listener.address.url(tls=False)) as http,
        ):
            gate = Gate(
                runner.server, core.connections, context=lambda: None, tasks=tasks
            )
            accepting = tasks.create_task(gate._accept(listener.socket))
            yield http
            core.connections.abort()
            accepting.cancel()
    finally:
        await runner.cleanup()
        listener.close()
        core.handle.close()


@pytest.mark.parametrize(
    ("failure", "end", "traceback"),
    [
        (CaptureError("the ring is gone"), "the ring is gone", False),
        (ZeroDivisionError("unforeseen"), "failed", True),
    ],
)
async def test_a_stream_that_breaks_ends_without_the_final_chunk(
    caplog, failure, end, traceback
):
    caplog.set_level(logging.INFO)
    core = Core(failure=failure)
    async with serving(core) as http, http.get("/capture") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert core.handle.closed
    (entry,) = entries(caplog)
    assert (entry["status"], entry["ended"]) == (200, end)
    assert (entry["packets"], entry["undelivered"]) == (1, 3)
    assert ("Traceback" in caplog.text) is traceback
    assert core.streams.totals().packets == 1
    assert core.streams.totals().undelivered == 3
    assert not core.streams.refused


@pytest.mark.parametrize(
    ("failure", "title", "traceback"),
    [
        (CaptureError("no ring"), "This host cannot capture", False),
        (ZeroDivisionError("unforeseen"), "Internal error", True),
    ],
)
async def test_what_fails_before_the_stream_is_told_and_logged(
    caplog, failure, title, traceback
):
    caplog.set_level(logging.INFO)
    core = Core(failure=failure, planning=True)
    async with serving(core) as http, http.get("/capture") as response:
        assert response.status == 500
        assert "Ddump-Time" in response.headers
        answer = await response.json(content_type=None)
        assert answer["title"] == title
        assert "unforeseen" not in str(answer)
    assert core.streams.refused == {"error": 1}
    assert ("Traceback" in caplog.text) is traceback
    (entry,) = entries(caplog)
    assert (entry["status"], entry["identity"]) == (500, "anonymous")
    assert entry["address"].startswith("127.0.0.1:")
    assert entry["ended"].startswith(title)


async def test_missing_counters_do_not_keep_a_stream_from_ending(monkeypatch, caplog):
    def refuse():
        raise CaptureError("no netlink")

    monkeypatch.setattr(handlers, "interfaces", refuse)
    core = Core(failure=CaptureError("the ring is gone"))
    async with serving(core) as http, http.get("/capture") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert core.handle.closed
    assert len(core.streams) == 0
    assert "the last counters are missing: no netlink" in caplog.text


@pytest.fixture
def accepted():
    with socket.socket() as opened:
        yield opened


async def test_what_fails_outside_of_handlers_is_answered_too(caplog, accepted):
    core = Core(failure=CaptureError(""))
    runner = web.AppRunner(create_app(core))
    await runner.setup()
    connection = Connection(
        runner.server,
        connections=core.connections,
        loop=asyncio.get_running_loop(),
        accepted=accepted,
        address="1.2.3.4:5",
        give_up=lambda: None,
    )

    class Request(dict):
        writer = SimpleNamespace(output_size=0)

    caplog.set_level(logging.INFO)
    request = Request()
    response = connection.handle_error(request, 500, ZeroDivisionError("secret"))
    assert response.status == 500
    assert b"secret" not in response.body
    assert "request failed" in caplog.text
    (entry,) = entries(caplog)
    assert (entry["status"], entry["address"]) == (500, "1.2.3.4:5")
    assert (entry["identity"], entry["method"], entry["path"]) == (None, None, None)
    await runner.cleanup()
    core.handle.close()
