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
from ddump_worker.app import create_app
from ddump_worker.capture import LiveCapture
from ddump_worker.connections import Connections
from ddump_worker.core import Plan
from ddump_worker.streams import Streams


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

        async def plan(_, *, client):
            assert client == "127.0.0.1"
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

        super().__init__(
            plan=plan,
            handle=handle,
            captures=SimpleNamespace(open=opened),
            streams=Streams(),
            connections=Connections(limit=9),
        )


@contextlib.asynccontextmanager
async def serving(core):
    runner = web.AppRunner(create_app(core), handler_cancellation=True)
    await runner.setup()
    server = await asyncio.get_running_loop().create_server(
        lambda: core.connections.protocol(runner.server), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            yield http
    finally:
        server.close()
        core.connections.abort()
        await runner.cleanup()
        core.handle.close()


@pytest.mark.parametrize(
    ("failure", "end", "traceback"),
    [
        (CaptureError("the ring is gone"), "ended: the ring is gone;", False),
        (ZeroDivisionError("unforeseen"), "ended: failed;", True),
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
    assert end in caplog.text
    assert ("Traceback" in caplog.text) is traceback
    assert core.streams.totals().packets == 1
    assert core.streams.totals().undelivered == 3
    assert "3 undelivered" in caplog.text
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
    assert "refused 127.0.0.1:" in caplog.text


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


async def test_what_fails_outside_of_handlers_is_answered_too(caplog):
    core = Core(failure=CaptureError(""))
    runner = web.AppRunner(create_app(core))
    await runner.setup()
    connection = core.connections.protocol(runner.server)
    request = SimpleNamespace(writer=SimpleNamespace(output_size=0))
    response = connection.handle_error(request, 500, ZeroDivisionError("secret"))
    assert response.status == 500
    assert b"secret" not in response.body
    assert "request failed" in caplog.text
    await runner.cleanup()
    core.handle.close()
