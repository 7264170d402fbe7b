"""The command ``ddump`` as a process, for async tests: run, watched, ended by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMAND = (sys.executable, "-m", "ddump_merger")
_SECRETS = ("DDUMP_USER", "DDUMP_PASSWORD", "NETRC")
COMPLAINTS = ("Traceback", "Task exception", "never retrieved", "Unclosed", "Warning")


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    code: int
    out: bytes
    err: str

    def __post_init__(self):
        assert not any(complaint in self.err for complaint in COMPLAINTS), self.err


def environment(**variables: str) -> dict[str, str]:
    """Return this process's, without credentials, and with a home that has none."""
    inherited = {k: v for k, v in os.environ.items() if k not in _SECRETS}
    return {**inherited, "HOME": "/nonexistent", **variables}


async def run(
    *arguments: object,
    stdin: bytes | None = None,
    env: dict[str, str] | None = None,
    seconds: float = 30,
) -> Result:
    """Run ``ddump`` to its end."""
    async with started(*arguments, stdin=stdin is not None, env=env) as process:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin)
        return Result(process.returncode, out, err.decode())


@contextlib.asynccontextmanager
async def started(
    *arguments: object,
    stdin: bool = False,
    stdout: int = asyncio.subprocess.PIPE,
    env: dict[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
    prefix: tuple[str, ...] = (),
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start ``ddump``; at the end kill it if it still runs, and reap it."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *COMMAND,
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=environment() if env is None else env,
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def interrupted(process: asyncio.subprocess.Process) -> Result:
    """Send SIGINT and return how the process ended."""
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return Result(process.returncode, out, err.decode())


def resident_kilobytes(pid: int) -> int:
    """Return the most memory that a process that runs has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")
