"""What the service manager hears: its end of the socket is a real one, held by the test.

A real service manager is in ``tests/deploy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import aiohttp
import pytest

from ddump_common.errors import UsageError
from ddump_worker.notify import Notifier
from support.disks import freezable_disk, frozen
from support.workers import run, wait_until, worker

pytestmark = pytest.mark.process

RING = ("--ring-size", "8MB", "--segment-size", "2MB", "--ring-reserve", "1MB")


class Manager:
    """Hears what a process tells its service manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self._socket.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)

    def environment(self, **others: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name, **others}

    async def hear(self) -> str:
        async with asyncio.timeout(10):
            return (
                await asyncio.get_running_loop().sock_recv(self._socket, 1024)
            ).decode()

    def heard(self) -> list[str]:
        """Return what was said since it was last listened to."""
        said = []
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self._socket.recv(1024).decode())
        return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    heard = Manager(
        str(tmp_path / "notify") if request.param == "path" else f"@ddump-{os.getpid()}"
    )
    yield heard
    heard.close()


async def test_it_hears_of_the_worker_when_all_addresses_take_requests(manager):
    async with worker(env=manager.environment()) as running:
        assert await manager.hear() == "READY=1"
        async with aiohttp.ClientSession() as session:
            answer = await session.get(f"{running.url}/api/v1/health")
            assert answer.status == 200
    # And no watchdog that was not asked for.
    assert manager.heard() == ["STOPPING=1"]


async def test_the_watchdog_is_told_three_times_in_its_time(manager, tmp_path):
    environment = manager.environment(WATCHDOG_USEC="1200000")
    loop = asyncio.get_running_loop()
    async with worker("--ring-dir", str(tmp_path / "ring"), *RING, env=environment):
        assert await manager.hear() == "READY=1"
        before = loop.time()
        for _ in range(2):
            assert await manager.hear() == "WATCHDOG=1"
        assert 0.6 < loop.time() - before < 1.2


@pytest.mark.parametrize("manager", ["path"], indirect=True)
async def test_a_recorder_that_the_disk_keeps_is_not_alive(manager, tmp_path):
    environment = manager.environment(WATCHDOG_USEC="1200000")
    with freezable_disk(tmp_path / "disk", 64 << 20) as disk:
        async with worker("--ring-dir", str(disk), *RING, env=environment) as running:
            assert await manager.hear() == "READY=1"
            assert await manager.hear() == "WATCHDOG=1"
            with frozen(disk):
                await wait_until(lambda: "the recorder does not go on" in running.text)
                manager.heard()
                async with aiohttp.ClientSession() as session:
                    answer = await session.get(f"{running.url}/api/v1/health")
                    assert answer.status == 200
                assert manager.heard() == []
            assert await manager.hear() == "WATCHDOG=1"
    assert running.text.count("the recorder does not go on") == 1


async def test_nobody_hears_of_another_process_s_watchdog(manager):
    environment = manager.environment(WATCHDOG_USEC="300000", WATCHDOG_PID="1")
    notifier = Notifier(environment)
    await notifier.keep_alive(lambda: True)
    assert manager.heard() == []


async def test_reloading_says_when_it_began(manager):
    notifier = Notifier(manager.environment())
    await notifier.reloading()
    await notifier.ready()
    assert (await manager.hear()).startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert await manager.hear() == "READY=1"


async def test_a_manager_that_has_gone_is_warned_of(tmp_path, caplog):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nowhere")})
    await notifier.ready()
    assert "cannot be told: No such file" in caplog.text


async def test_a_manager_that_is_slow_is_waited_for_and_the_loop_goes_on(tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.environment())
    count = 1000  # more than any queue holds

    async def tell():
        for _ in range(count):
            await notifier.ready()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tell())
        for _ in range(count):
            assert await manager.hear() == "READY=1"
    manager.close()


@pytest.mark.parametrize(
    "said", [{"NOTIFY_SOCKET": "vsock:2:1"}, {"WATCHDOG_USEC": "often"}]
)
async def test_what_is_not_as_the_manual_has_it_is_refused(said):
    with pytest.raises(UsageError):
        Notifier(said)
    code, text = await run("--listen", "127.0.0.1:0", "--allow-anonymous", env=said)
    assert code == 2
    assert next(iter(said)) in text
