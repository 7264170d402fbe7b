"""How a window is waited for, with a worker that tells or does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from ddump_common.answers import StreamInfo, StreamState
from ddump_common.errors import BrokenStreamError, UnreachableError
from ddump_merger.account import Account
from ddump_merger.lane import Lane
from ddump_merger.scan import Scan, catch_up
from ddump_merger.target import parse_target

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
MILLISECOND = SECOND // 1000


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Ask as often as a test likes."""
    monkeypatch.setattr("ddump_merger.scan._LEAST_PAUSE_NS", MILLISECOND)


@dataclass
class Quiet:
    """A source that has nothing, until it is told otherwise."""

    data: asyncio.Queue = field(default_factory=asyncio.Queue)
    left: bytes = b""

    async def read(self):
        return await self.data.get()

    def arrived(self):
        return self.left


def account(position_ns, *, window=True):
    return Account(
        stream=StreamInfo(
            id=1, client="", state=StreamState.RUNNING, filter="", started_ns=0, packets=0,
            bytes=0, dropped=0, interface_dropped=0, buffer_bytes=0, window=window,
            position_ns=position_ns,
        ),
        time_ns=NOW,
    )  # fmt: skip


class Wait:
    """A window whose worker gives the answers of a list, then nothing more."""

    def __init__(self, *answers):
        self.source = Quiet()
        self.lane = Lane(
            index=0, target=parse_target("http://w?last=5m&follow=1"),
            source=self.source, live=False, heard=0.0,
        )  # fmt: skip
        self.answers = list(answers)
        self.asked = 0
        self.scan = Scan(self.lane, self.ask, timeout_ns=40 * MILLISECOND)

    async def ask(self, lane):
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, bytes):
            self.source.data.put_nowait(answer)
            return account(self.asked)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read(self):
        async with asyncio.timeout(5):
            return await self.scan.read()

    async def catch_up(self):
        async with asyncio.timeout(5):
            await catch_up(self.lane, self.ask, pause_ns=MILLISECOND)


async def test_what_comes_is_returned():
    wait = Wait()
    for data in (b"x", b""):
        wait.source.data.put_nowait(data)
        assert await wait.read() == data
    assert wait.asked == 0


async def test_a_window_that_goes_on_is_waited_for():
    """Far longer than the timeout: five answers, half a timeout apart."""
    positions = [None, *[NOW + n for n in range(4)]]
    wait = Wait(*map(account, positions), b"x")
    assert await wait.read() == b"x"
    assert wait.asked == 6


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [account(None)] * 9,
        [account(NOW)] * 9,
        [UnreachableError("no answer")] * 9,
    ],
)
async def test_a_window_that_does_not_go_on_has_ended(answers):
    wait = Wait(*answers)
    with pytest.raises(BrokenStreamError, match=r"nothing came for 40ms.*--timeout"):
        await wait.read()
    assert wait.asked == 2


async def test_a_window_that_stops_going_on_has_ended():
    wait = Wait(*[account(NOW + min(n, 3)) for n in range(20)])
    with pytest.raises(BrokenStreamError, match="nothing came"):
        await wait.read()
    assert wait.asked == 6


async def test_what_arrived_with_the_timeout_counts():
    wait = Wait()
    wait.source.left = b"just in time"
    assert await wait.read() == b"just in time"


async def test_a_process_that_slept_has_not_listened(monkeypatch):
    """Timers fire at once after a sleep, before what came meanwhile is read."""
    wait = Wait(b"x")
    loop = asyncio.get_running_loop()
    times = iter([0.0, 100.0])
    monkeypatch.setattr(
        loop, "time", lambda real=loop.time: next(times, None) or real()
    )
    assert await wait.read() == b"x"
    assert wait.asked == 1


async def test_cancelling_loses_nothing():
    wait = Wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await wait.scan.read()
    wait.source.data.put_nowait(b"x")
    assert await wait.read() == b"x"


# --- Windows that are followed ---


async def test_who_became_live_meanwhile_is_no_window_any_more():
    wait = Wait()
    wait.lane.live = True
    assert await wait.read() is None
    assert wait.asked == 0


async def test_who_reads_its_past_has_not_caught_up():
    behind = [None, NOW - 9 * SECOND, NOW - 5 * SECOND, NOW - SECOND]
    wait = Wait(*map(account, behind))
    await wait.catch_up()
    assert wait.asked == 4


@pytest.mark.parametrize("answer", [None, account(None, window=False)])
async def test_who_does_not_tell_is_taken_for_live(answer):
    wait = Wait(answer)
    await wait.catch_up()
    assert wait.asked == 1


async def test_who_does_not_answer_now_is_asked_again():
    wait = Wait(UnreachableError("no answer"), account(NOW))
    await wait.catch_up()
    assert wait.asked == 2


async def test_nobody_is_asked_without_a_pause(monkeypatch):
    monkeypatch.setattr("ddump_merger.scan._LEAST_PAUSE_NS", 10 * MILLISECOND)
    wait = Wait(account(NOW))
    began = asyncio.get_running_loop().time()
    await catch_up(wait.lane, wait.ask, pause_ns=0)
    assert asyncio.get_running_loop().time() - began >= 0.01
