"""Waiting for a source that must not be silent for long."""

from __future__ import annotations

import asyncio
import time

import pytest

from ddump_common.errors import BrokenStreamError
from ddump_merger.silence import SilentError, read_within
from support.scripted import SECOND, Forever, Script


async def test_what_comes_is_returned():
    source = Script([b"abc", b"def"])
    assert await read_within(source, SECOND) == b"abc"
    assert await read_within(source, SECOND) == b"def"
    assert await read_within(source, SECOND) == b""


async def test_what_breaks_is_raised():
    with pytest.raises(BrokenStreamError, match="cut"):
        await read_within(Script([BrokenStreamError("cut")]), SECOND)


async def test_silence_is_as_long_as_asked():
    begin = time.monotonic()
    with pytest.raises(SilentError):
        await read_within(Script([Forever]), SECOND // 5)
    assert 0.19 < time.monotonic() - begin < 2


async def test_what_comes_in_time():
    come = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, come.set)
    assert await read_within(Script([come, b"abc"]), 2 * SECOND) == b"abc"


async def test_what_came_at_the_last_moment():
    source = Script([Forever], unread=[b"abc"])
    assert await read_within(source, SECOND // 100) == b"abc"


async def test_a_sleep_of_the_process_is_no_silence():
    """It listens again for as long, and what came meanwhile is read."""
    come = asyncio.Event()

    def sleep():
        time.sleep(0.7)  # so does a process that is stopped
        asyncio.get_running_loop().call_later(0.05, come.set)

    asyncio.get_running_loop().call_soon(sleep)
    assert await read_within(Script([come, b"abc"]), SECOND // 10 * 9) == b"abc"


async def test_giving_up_loses_nothing():
    come = asyncio.Event()
    source = Script([come, b"abc"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await read_within(source, SECOND)
    come.set()
    assert await read_within(source, SECOND) == b"abc"
