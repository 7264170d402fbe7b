"""One run of the process that compiles a filter, in the hands of a thread.

Starting a process keeps whoever does it waiting until the new one runs its program. On
the event loop that would hold up every client: by 10 to 20 ms for each process, more on
a busy host.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

__all__ = ["Helper", "Outcome"]


class Outcome(NamedTuple):
    """How a process ended (as ``Popen.returncode``), and what it wrote."""

    status: int
    answer: bytes
    complaint: bytes


class Helper:
    """A process that reads ``text`` and writes an answer; it runs once."""

    def __init__(self, command: Sequence[str], text: bytes) -> None:
        self._command = command
        self._text = text
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = threading.Event()

    async def run(self, threads: Executor) -> Outcome:
        """Return how it ended. Cancelling leaves no process behind.

        Raises:
            OSError: it cannot be started.
            RuntimeError: nor can a thread.

        """
        loop = asyncio.get_running_loop()
        try:
            running = loop.run_in_executor(threads, self._run)
        except RuntimeError:
            self._kill()  # or a thread that is there would take it up
            raise
        try:
            await asyncio.wait([running])  # which goes on when this is cancelled
        except asyncio.CancelledError:
            self._kill()
            await asyncio.wait([running])
            running.exception()  # of no interest to anybody any more
            raise
        return running.result()

    def _run(self) -> Outcome:
        if self._cancelled.is_set():
            return Outcome(0, b"", b"")
        with subprocess.Popen(  # noqa: S603 (of the worker's own words)
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A terminal's Ctrl-C is for the worker. But no session of its own: to such
            # the kernel gives as much as to all of the worker, whatever its niceness is
            # (sched(7), the autogroup feature).
            process_group=0,
        ) as process:
            self._process = process
            if self._cancelled.is_set():  # while it started
                process.kill()
            answer, complaint = process.communicate(self._text)
        return Outcome(process.returncode, answer, complaint)

    def _kill(self) -> None:
        # One of both sees what the other has set.
        self._cancelled.set()
        if self._process is not None:
            self._process.kill()
