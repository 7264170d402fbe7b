"""Processes that threads start: how they end, and that none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddump_worker import helper
from ddump_worker.helper import Helper
from support.workers import wait_until

FOREVER = (sys.executable, "-c", "import time; time.sleep(60)")
ECHO = "import sys; sys.stderr.write('no'); print(sys.stdin.read() * 2); sys.exit(3)"


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def started(monkeypatch):
    """What was started, and by which thread; ``hold`` keeps each start waiting."""
    found = Started()
    monkeypatch.setattr(helper.subprocess, "Popen", found.popen)
    return found


class Started:
    def __init__(self):
        self.processes = []
        self.threads = set()
        self.began = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        self._popen = subprocess.Popen

    def popen(self, *words, **options):
        self.threads.add(threading.current_thread())
        self.began.set()
        assert self.hold.wait(10)
        self.processes.append(self._popen(*words, **options))
        return self.processes[-1]


async def test_what_it_wrote_and_how_it_ended(threads, started):
    outcome = await Helper((sys.executable, "-c", ECHO), b"ab").run(threads)
    assert outcome == (3, b"abab\n", b"no")
    # Starting one takes time, which is not the loop's.
    assert threading.current_thread() not in started.threads


async def test_it_gives_way_and_is_not_interrupted_from_a_terminal(threads):
    """Niceness counts among the processes of one session alone (sched(7))."""
    code = "import os; print(os.getsid(0), os.getpgid(0) == os.getpid())"
    outcome = await Helper((sys.executable, "-c", code), b"").run(threads)
    assert outcome.answer.decode().split() == [str(os.getsid(0)), "True"]


async def test_none_can_be_started(threads):
    with pytest.raises(FileNotFoundError):
        await Helper(("/no/such/program",), b"").run(threads)


async def test_no_thread_can_be_started(threads):
    threads.shutdown()
    with pytest.raises(RuntimeError):
        await Helper(FOREVER, b"").run(threads)


async def test_cancelling_kills_it(threads, started):
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Helper(FOREVER, b"").run(threads))
        await wait_until(lambda: started.processes)
        task.cancel()
    assert [each.returncode for each in started.processes] == [-signal.SIGKILL]


async def test_cancelling_while_it_starts_kills_it(threads, started):
    started.hold.clear()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Helper(FOREVER, b"").run(threads))
        await wait_until(started.began.is_set)
        task.cancel()
        await asyncio.sleep(0)  # it is told
        started.hold.set()
    assert [each.returncode for each in started.processes] == [-signal.SIGKILL]


async def test_cancelling_before_that_starts_none(threads, started):
    started.hold.clear()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(Helper(FOREVER, b"").run(threads))
        await wait_until(started.began.is_set)
        second = tasks.create_task(Helper(FOREVER, b"").run(threads))
        await asyncio.sleep(0)  # it waits for the only thread
        second.cancel()
        first.cancel()
        await asyncio.sleep(0)
        started.hold.set()
    assert len(started.processes) == 1
