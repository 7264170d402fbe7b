"""Real worker processes for async tests: started on a free port, ended by their pid.

Each must have started and ended without a traceback, and without a task whose exception
nobody took.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PYTHON = sys.executable
START_SECONDS = 15
STOP_SECONDS = 6
_COMPLAINTS = ("Traceback", "Task exception", "never retrieved", "Warning")


@dataclass
class Worker:
    """A running worker. ``said`` grows while it runs, and is whole after its end."""

    process: asyncio.subprocess.Process
    urls: list[str]
    said: list[str] = field(default_factory=list)
    told_to_end: bool = False

    def terminate(self) -> None:
        """Send SIGTERM, once: another one would cut the end short."""
        if self.process.returncode is None and not self.told_to_end:
            self.told_to_end = True
            self.process.send_signal(signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def text(self) -> str:
        return "".join(self.said)

    async def hang_up(self) -> None:
        """Have it read its files again, and wait until it has done so, or has not."""
        before = self._reloads()
        self.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: self._reloads() > before)

    def _reloads(self) -> int:
        return len(re.findall("read all files again|nothing is changed", self.text))

    def capture_url(self, path: str = "/capture", **parameters: str) -> str:
        query = aiohttp.helpers.URL(self.url).with_path(path)
        return str(query.with_query(parameters))

    def cpu_seconds(self) -> float:
        """Return what its threads have used so far, to the nanosecond."""
        files = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def status_field(self, name: str) -> str:
        """Return the first word that the kernel has for ``name`` in its status."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return text.partition(f"\n{name}:")[2].split()[0]

    def status_fields(self, name: str) -> set[str]:
        """Return the same of each of its threads."""
        texts = [
            (task / "status").read_text()
            for task in Path(f"/proc/{self.pid}/task").iterdir()
        ]
        assert len(texts) > 1
        return {text.partition(f"\n{name}:")[2].split()[0] for text in texts}

    def children(self) -> list[int]:
        """Return the processes that it has started and not reaped."""
        return [
            int(word)
            for task in Path(f"/proc/{self.pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]

    def descriptors(self) -> int:
        """Return how many files it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def packet_sockets(self) -> int:
        """Return how many packet sockets with a protocol the process has open."""
        inodes = set()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if match := re.match(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    inodes.add(match[1])
        rows = [
            row.split()
            for row in Path(f"/proc/{self.pid}/net/packet").read_text().splitlines()[1:]
        ]
        return sum(row[8] in inodes and row[3] != "0000" for row in rows)


async def wait_until(condition, *, seconds: float = 5) -> None:
    """Ask again until ``condition()`` holds, for facts that nobody announces."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def worker(
    *options: str,
    listen: Sequence[str] = ("127.0.0.1:0",),
    prefix: Sequence[str] = (),
    program: Sequence[str] = (PYTHON, "-m", "ddump_worker"),
    env: dict[str, str] | None = None,
    anonymous: bool = True,
    exit_code: int = 0,
    complaints: Sequence[str] = _COMPLAINTS,
) -> AsyncIterator[Worker]:
    """Run a worker until the body is done; it may also end in it.

    ``anonymous`` is whether it lets anybody in.
    """
    addresses = [word for address in listen for word in ("--listen", address)]
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *program,
        *addresses,
        *(["--allow-anonymous"] if anonymous else []),
        *options,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    running = Worker(process=process, urls=[])
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await _await_listening(running, max(len(listen), 1))
                tasks.create_task(_collect(running))
                yield running
                await stop(running)
            finally:
                if process.returncode is None:
                    process.kill()
    finally:
        await process.wait()
    for complaint in complaints:
        assert complaint not in running.text, running.text
    assert process.returncode == exit_code, running.text


async def stop(running: Worker) -> None:
    """End it with SIGTERM, in the time that a worker has for it."""
    running.terminate()
    async with asyncio.timeout(STOP_SECONDS):
        await running.process.wait()


async def _await_listening(running: Worker, count: int) -> None:
    assert running.process.stderr is not None
    while len(running.urls) < count:
        line = (await running.process.stderr.readline()).decode()
        running.said.append(line)
        if match := re.search(r"listening on ([^\s\"]+)", line):
            running.urls.append(match[1])
        assert line, f"the worker did not start:\n{running.text}"


async def _collect(running: Worker) -> None:
    assert running.process.stderr is not None
    while line := await running.process.stderr.readline():
        running.said.append(line.decode())


async def run(
    *options: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a worker that ends by itself; return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        PYTHON,
        "-m",
        "ddump_worker",
        *options,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()
