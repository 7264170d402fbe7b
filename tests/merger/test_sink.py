from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading

import pytest

from ddump_common.errors import OutputError
from ddump_merger import output as output_module
from ddump_merger import sink as module
from ddump_merger.output import Output
from ddump_merger.sink import Sink

PAGE = 4096


@pytest.fixture(params=[True, False], ids=["at once", "by the thread"])
def ways(request, monkeypatch):
    """With and without writes that do not wait."""
    if not request.param:
        monkeypatch.setattr(module, "_DO_NOT_WAIT", 0)


class Pipe:
    """A pipe in the place of standard output, of one page."""

    def __init__(self, monkeypatch):
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PAGE)
        monkeypatch.setattr(output_module, "_STDOUT", self.writer)
        self.output = Output(None)

    def read_all(self):
        """Close our end for writing and return all that comes."""
        os.close(self.writer)
        self.writer = -1
        with os.fdopen(self.reader, "rb") as pipe:
            self.reader = -1
            return pipe.read()

    def close(self):
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe(monkeypatch):
    pipe = Pipe(monkeypatch)
    yield pipe
    pipe.close()


async def ended(sink):
    """Wait for the sink's thread."""
    await asyncio.to_thread(sink._thread.join, 5)
    assert not sink._thread.is_alive()


async def test_what_is_put_is_written_in_order(ways, pipe):
    pieces = [b"%d," % n * 200 for n in range(500)]
    sink = Sink(pipe.output)
    for at in range(0, 500, 5):
        sink.put(*pieces[at : at + 5])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        closed = tasks.create_task(sink.close())
        read = tasks.create_task(
            asyncio.to_thread(read_until, pipe.reader, b"".join(pieces))
        )
        await closed
        assert await read
    await ended(sink)


def read_until(fd, expected):
    data = b""
    while len(data) < len(expected):
        data += os.read(fd, 65536)
    return data == expected


async def test_it_is_full_until_the_reader_takes(ways, pipe):
    sink = Sink(pipe.output, max_bytes=10 * PAGE)
    sink.put(bytes(PAGE))
    assert not sink.full
    sink.put(bytes(20 * PAGE))
    assert sink.full
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await sink.room()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(
            asyncio.to_thread(read_until, pipe.reader, bytes(21 * PAGE))
        )
        await sink.room()
        assert not sink.full
        await sink.close()
        assert await reading


async def test_room_at_once(pipe):
    sink = Sink(pipe.output)
    async with asyncio.timeout(1):
        await sink.room()
        await sink.close()


async def test_a_reader_that_goes_while_something_is_written(ways, pipe):
    sink = Sink(pipe.output)
    sink.put(bytes(10 * PAGE))
    os.close(pipe.reader)
    pipe.reader = -1
    async with asyncio.timeout(5):
        with pytest.raises(BrokenPipeError):
            await sink.room() if sink.full else await sink.close()
    with pytest.raises(BrokenPipeError):
        await sink.failed()
    sink.put(b"and this is no harm")
    await ended(sink)


async def test_a_reader_that_goes_while_nothing_is_written(pipe):
    sink = Sink(pipe.output)
    os.close(pipe.reader)
    pipe.reader = -1
    async with asyncio.timeout(5):
        with pytest.raises(BrokenPipeError):
            await sink.failed()
    sink.put(b"x")  # meets the same, and leaves it to be told
    await ended(sink)


async def test_failed_returns_when_it_was_closed(pipe):
    sink = Sink(pipe.output)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        failed = tasks.create_task(sink.failed())
        await asyncio.sleep(0)
        await sink.close()
        await failed


async def test_a_full_disk(ways, tmp_path):
    sink = Sink(Output(tmp_path / "/dev/full"))
    sink.put(b"x")
    async with asyncio.timeout(5):
        with pytest.raises(
            OutputError, match="cannot write /dev/full: No space"
        ) as caught:
            await sink.close()
    assert caught.value.__cause__.errno == errno.ENOSPC


async def test_an_error_of_the_close(monkeypatch, tmp_path):
    """As of a network's file system, which tells at the end what did not arrive."""
    output = Output(tmp_path / "x")
    close = output.close

    def failing():
        close()
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(output, "close", failing)
    sink = Sink(output)
    sink.put(b"x")
    async with asyncio.timeout(5):
        with pytest.raises(OutputError, match="quota"):
            await sink.close()


async def test_a_file(ways, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old" * 1000)
    sink = Sink(Output(path))
    for n in range(1000):
        sink.put(b"%d\n" % n)
    async with asyncio.timeout(5):
        await sink.close()
    assert path.read_bytes() == b"".join(b"%d\n" % n for n in range(1000))


async def test_a_pipe_that_is_not_blocking_is_left_so(ways, pipe):
    os.set_blocking(pipe.writer, False)
    sink = Sink(pipe.output)
    data = os.urandom(50 * PAGE)
    sink.put(data[:PAGE], data[PAGE:])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(asyncio.to_thread(read_until, pipe.reader, data))
        await sink.close()
        assert await reading
    assert not os.get_blocking(pipe.writer)


async def test_the_flags_of_a_blocking_pipe_are_left_too(ways, pipe):
    before = fcntl.fcntl(pipe.writer, fcntl.F_GETFL)
    sink = Sink(pipe.output)
    sink.put(b"x")
    await sink.close()
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETFL) == before
    assert pipe.read_all() == b"x"


async def test_nothing_is_written_beside_what_waits(pipe):
    """A write that does not wait must not overtake what is queued."""
    sink = Sink(pipe.output)
    data = [bytes([n]) * PAGE for n in range(8)]
    for piece in data:
        sink.put(piece)
    got = await asyncio.to_thread(os.read, pipe.reader, PAGE)
    sink.put(b"last")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        rest = b"".join(data)[len(got) :] + b"last"
        reading = tasks.create_task(asyncio.to_thread(read_until, pipe.reader, rest))
        await sink.close()
        assert await reading


async def test_waiting_can_be_given_up(pipe):
    sink = Sink(pipe.output, max_bytes=1)
    sink.put(bytes(10 * PAGE))
    for wait in (sink.room, sink.close, sink.failed):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await wait()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(
            asyncio.to_thread(read_until, pipe.reader, bytes(10 * PAGE))
        )
        await sink.close()
        assert await reading


def test_a_thread_that_outlives_the_loop(pipe):
    """After an error elsewhere nobody waits for the writer any more."""

    async def begin():
        sink = Sink(pipe.output)
        sink.put(bytes(10 * PAGE))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await sink.close()
        return sink

    sink = asyncio.run(begin())
    assert sink._thread.daemon
    assert sink._thread in threading.enumerate()
    os.read(pipe.reader, 10 * PAGE)
    os.close(pipe.reader)
    pipe.reader = -1
    sink._thread.join(5)
    assert not sink._thread.is_alive()
