from __future__ import annotations

import asyncio
import gc
import os

import pytest

from ddump_common.errors import BrokenStreamError, UnreachableError
from ddump_merger import source as module
from ddump_merger.source import FileReader, FileSource
from ddump_merger.target import FileTarget

SECOND = 1_000_000_000


@pytest.fixture
def reader():
    with FileReader(4, chunk_bytes=1000, timeout_ns=5 * SECOND) as reader:
        yield reader


def source(reader, path):
    return FileSource(FileTarget(name="x", path=str(path)), reader)


async def read_all(source):
    pieces = []
    while piece := await source.read():
        pieces.append(piece)
    return pieces


async def test_a_file_comes_in_chunks(reader, tmp_path):
    data = os.urandom(2500)
    (tmp_path / "x").write_bytes(data)
    file = source(reader, tmp_path / "x")
    await file.open()
    assert file.arrived() == b""
    pieces = await read_all(file)
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [1000, 1000, 500]
    assert await file.read() == b""
    file.close()
    file.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none", "no such file or directory (a URL begins with http:// or https://)"),
     ("x/y", "not a directory")],
)  # fmt: skip
async def test_a_file_that_cannot_be_opened(reader, tmp_path, name, reason):
    (tmp_path / "x").touch()
    file = source(reader, tmp_path / name)
    with pytest.raises(UnreachableError) as caught:
        await file.open()
    assert str(caught.value) == reason
    file.close()


async def test_a_folder_cannot_be_read(reader, tmp_path):
    file = source(reader, tmp_path)
    await file.open()
    with pytest.raises(BrokenStreamError, match="cannot be read: Is a directory"):
        await file.read()
    file.close()


async def test_standard_input(reader, monkeypatch):
    fd, writer = os.pipe()
    monkeypatch.setattr(module, "_STDIN", fd)
    file = FileSource(FileTarget(name="-", path="-"), reader)
    await file.open()
    os.write(writer, b"abc")
    assert await file.read() == b"abc"
    os.close(writer)
    assert await file.read() == b""
    file.close()
    assert os.fstat(fd)  # it is not ours to close
    os.close(fd)


async def test_a_fifo_without_a_writer_keeps_nothing_waiting(reader, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    file = source(reader, path)
    async with asyncio.timeout(2):
        await file.open()
    assert os.get_blocking(file._fd)
    with path.open("wb", buffering=0) as fifo:
        fifo.write(b"abc")
        assert await file.read() == b"abc"
    assert await file.read() == b""
    file.close()


async def test_a_pipe_may_be_silent_only_for_so_long(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with FileReader(1, chunk_bytes=1000, timeout_ns=SECOND // 20) as reader:
        file = source(reader, path)
        await file.open()
        with pytest.raises(BrokenStreamError, match="nothing came for 50ms"):
            await file.read()
        file.close()


async def test_a_read_that_is_given_up_loses_nothing(reader, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    file = source(reader, path)
    await file.open()
    with path.open("wb", buffering=0) as fifo:
        for n in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await file.read()
            assert file.arrived() == b""
            fifo.write(b"abc%d" % n)
            assert await file.read() == b"abc%d" % n
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await file.read()
        fifo.write(b"last")
        await asyncio.wait([file._reading], timeout=2)
        assert file.arrived() == b"last"
        assert file.arrived() == b""
    file.close()


async def test_what_a_read_that_failed_brought_is_nothing(reader, tmp_path):
    file = source(reader, tmp_path)
    await file.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await file.read()
    await asyncio.wait([file._reading], timeout=2)
    assert file.arrived() == b""
    file.close()


@pytest.mark.parametrize("folder", [False, True])
async def test_a_file_is_closed_after_the_read_under_way(tmp_path, folder):
    """Its number must not become another file's while a thread uses it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with FileReader(1, chunk_bytes=1000, timeout_ns=5 * SECOND) as reader:
        file = source(reader, path)
        await file.open()
        fd = file._fd
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await file.read()
        file.close()
        assert os.fstat(fd)
        reading = file._reading
        if folder:
            reading.cancel()
    await asyncio.wait([reading], timeout=2)
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    del file, reading
    gc.collect()  # nothing is left that was never retrieved


async def test_the_end_of_the_reader_ends_every_read(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with FileReader(1, chunk_bytes=1000, timeout_ns=3600 * SECOND) as reader:
        file = source(reader, path)
        await file.open()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await file.read()
    async with asyncio.timeout(2):
        assert await file.read() == b""
    file.close()
