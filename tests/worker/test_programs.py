"""Programs that several wait for, and those that are kept."""

from __future__ import annotations

import asyncio

import pytest

from ddump_common.pcap import LinkType
from ddump_worker import programs
from ddump_worker.programs import Programs, Source


def source(text: bytes = b"udp") -> Source:
    return Source(text, LinkType.LINUX_SLL, 100, stored=False)


class Work:
    """Something to wait for that a test ends."""

    def __init__(self) -> None:
        self.result = asyncio.get_running_loop().create_future()
        self.began = asyncio.Event()
        self.cancelled = False
        self.ended = 0

    async def run(self) -> bytes:
        self.began.set()
        try:
            return await self.result
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def end(self) -> None:
        self.ended += 1


async def made(given: Programs, text: bytes, program: bytes) -> None:
    work = Work()
    work.result.set_result(program)
    making = given.make(source(text), work.run(), on_end=work.end)
    assert await making.wait() == program
    assert work.ended == 1


async def test_all_who_wait_get_what_is_made():
    given, work = Programs(), Work()
    assert given.kept(source()) is given.under_way(source()) is None
    making = given.make(source(), work.run(), on_end=work.end)
    assert given.under_way(source()) is making
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(making.wait()) for _ in range(3)]
        await work.began.wait()
        assert given.kept(source()) is None
        work.result.set_result(b"program")
    assert [each.result() for each in waiting] == [b"program"] * 3
    assert given.under_way(source()) is None
    assert given.kept(source()) == b"program"
    assert work.ended == 1


async def test_the_last_who_goes_ends_it():
    given, work = Programs(), Work()
    making = given.make(source(), work.run(), on_end=work.end)
    async with asyncio.TaskGroup() as tasks:
        first, second = (tasks.create_task(making.wait()) for _ in range(2))
        await work.began.wait()
        first.cancel()
        await asyncio.wait([first])
        assert not work.cancelled
        assert given.under_way(source()) is making
        second.cancel()
    assert work.cancelled
    assert work.ended == 1
    assert given.kept(source()) is given.under_way(source()) is None


async def test_one_whose_only_client_goes_at_once_gives_back_as_well():
    given, work = Programs(), Work()
    making = given.make(source(), work.run(), on_end=work.end)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(-1):
            await making.wait()
    assert work.ended == 1


async def test_nobody_joins_one_that_is_being_ended():
    given, old, new = Programs(), Work(), Work()
    making = given.make(source(), old.run(), on_end=old.end)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(making.wait())
        await old.began.wait()
        waiting.cancel()
        # Its end takes a while: another is begun meanwhile, and stays.
        await asyncio.sleep(0)
        assert given.under_way(source()) is None
        later = given.make(source(), new.run(), on_end=new.end)
        new.result.set_result(b"new")
        assert await later.wait() == b"new"
    assert given.kept(source()) == b"new"


async def test_a_failure_is_shared_and_not_kept():
    given, work = Programs(), Work()
    making = given.make(source(), work.run(), on_end=work.end)
    work.result.set_exception(ValueError("no"))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(failure(making))
    assert given.kept(source()) is given.under_way(source()) is None


async def failure(making) -> None:
    with pytest.raises(ValueError, match="no"):
        await making.wait()


async def test_a_program_is_kept_for_a_while(monkeypatch):
    monkeypatch.setattr(programs, "KEPT_SECONDS", 0.0)
    given = Programs()
    await made(given, b"old", b"1")
    monkeypatch.setattr(programs, "KEPT_SECONDS", 60.0)
    await made(given, b"new", b"2")
    assert given.kept(source(b"old")) is None
    assert given.kept(source(b"new")) == b"2"
    assert given._kept_bytes == 4


async def test_few_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "MOST", 2)
    given = Programs()
    for text in (b"1", b"2", b"3"):
        await made(given, text, text)
    assert [given.kept(source(each)) for each in (b"1", b"2", b"3")] == [
        None, b"2", b"3",
    ]  # fmt: skip


async def test_few_bytes_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "MOST_BYTES", 20)
    given = Programs()
    await made(given, b"1", bytes(9))
    await made(given, b"2", bytes(9))
    await made(given, b"2", bytes(9))
    assert given.kept(source(b"1")) is not None
    await made(given, b"3", bytes(5))
    assert given.kept(source(b"1")) is None
    assert given.kept(source(b"2")) is not None
    await made(given, b"4", bytes(30))
    assert given._kept_bytes == 0
    assert given.kept(source(b"3")) is None
