"""Writes the capture: one thread, a queue bounded in bytes, blocking writes.

Blocking, because standard output is shared with other programs and its flags are not
ours; on a thread, because a reader may take its time. Where the system can write without
waiting, what it takes is written at once and the thread sleeps on. The thread also notices that a
pipe's reader has gone while there is nothing to write, so that ``ddump | head`` ends
when head does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from ddump_common.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .output import Output

__all__ = ["QUEUE_BYTES", "Sink"]

# Enough to keep the writer busy while the loop does other things; more would only be
# memory, for what is slower than that is slower altogether.
QUEUE_BYTES = 4 << 20

# One writev takes at most this many pieces (far below IOV_MAX).
_MAX_PIECES = 64

# Linux has it for devices and, since 6.4, for pipes. Elsewhere the thread writes all.
_DO_NOT_WAIT: int = getattr(os, "RWF_NOWAIT", 0)


def _after(
    pieces: Sequence[bytes | memoryview], written: int
) -> Sequence[bytes | memoryview]:
    """Return ``pieces`` without their first ``written`` bytes."""
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []


class Sink:
    """The end of the way of all packets.

    Its methods are for the event loop's thread. What was ``put`` is written in order
    and belongs to the sink from then on.
    """

    def __init__(self, output: Output, *, max_bytes: int = QUEUE_BYTES) -> None:
        self._output = output
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._at_once = _DO_NOT_WAIT != 0 and not output.is_regular
        self._lock = threading.Lock()
        # Under the lock:
        self._queue: deque[bytes | memoryview] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._idle = False
        self._awaited = False
        self._ended = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)  # it holds one byte at most
        # A daemon: when the reader hangs, a second interrupt can still end the process.
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether ``room`` is to be awaited before the next ``put``."""
        return self._queued_bytes >= self._max_bytes

    def put(self, *pieces: bytes) -> None:
        """Write what the system takes at once and queue the rest, however much it is."""
        rest = self._write_at_once(pieces)
        if rest:
            with self._lock:
                self._queue.extend(rest)
                self._queued_bytes += sum(map(len, rest))
                self._wake_thread()

    def _write_at_once(self, pieces: Sequence[bytes]) -> Sequence[bytes | memoryview]:
        """Return what is left after a write that does not wait, if there is such a one.

        It spares the change of threads. An error is left for the thread to meet.
        """
        if not self._at_once or self._queued_bytes:  # what is queued comes first
            return pieces
        try:
            written = os.pwritev(self._output.fd, pieces, -1, _DO_NOT_WAIT)
        except BlockingIOError:
            return pieces
        except OSError:
            self._at_once = False
            return pieces
        return _after(pieces, written)

    async def room(self) -> None:
        """Wait until the queue is at most half full. Cancelling it changes nothing.

        Raises:
            BrokenPipeError: the reader has gone.
            OutputError: the output cannot be written.

        """
        await self._until(lambda: self._queued_bytes <= self._max_bytes // 2)

    async def failed(self) -> None:
        """Wait for an error, raise it; return when the sink was closed without one."""
        await self._until(lambda: self._ended)

    async def close(self) -> None:
        """Write what is queued and close the output.

        Raises: as ``room``. Cancelling it leaves the thread at its work.
        """
        with self._lock:
            self._closing = True
            self._wake_thread()
        await self._until(lambda: self._ended)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            with self._lock:
                self._changed.clear()
                if self._error is not None:
                    raise self._error
                if condition():
                    return
                self._awaited = True
            await self._changed.wait()

    def _wake_thread(self) -> None:
        if self._idle:
            self._idle = False
            os.write(self._wake_writer, b"\0")

    # From here on, the writer's thread.

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_data():
                self._write()
        except OSError as exc:
            error = self._translate(exc)
        try:
            self._output.close()
        except OSError as exc:
            error = error or self._translate(exc)
        with self._lock:
            self._error = error
            self._ended = True
            self._idle = False
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            self._notify()

    def _wait_for_data(self) -> bool:
        """Return whether there is something to write; not, when all was and it ends."""
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if self._output.is_pipe:
            poll.register(self._output.fd, 0)  # POLLERR alone: the reader has gone
        while True:
            with self._lock:
                if self._queue:
                    return True
                if self._closing:
                    return False
                self._idle = True
            for fd, _ in poll.poll():
                if fd == self._output.fd:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
                os.read(fd, 64)

    def _write(self) -> None:
        with self._lock:
            pieces = list(islice(self._queue, _MAX_PIECES))
        self._output.begin()
        size = sum(map(len, pieces))
        left: Sequence[bytes | memoryview] = pieces
        while left:
            left = _after(left, self._write_some(left))
        with self._lock:
            for _ in pieces:
                self._queue.popleft()
            self._queued_bytes -= size
            self._notify()

    def _write_some(self, pieces: Sequence[bytes | memoryview]) -> int:
        try:
            return os.writev(self._output.fd, pieces)
        except BlockingIOError:  # whoever shares the descriptor made it non-blocking
            poll = select.poll()
            poll.register(self._output.fd, select.POLLOUT)
            poll.poll()
            return 0

    def _notify(self) -> None:
        if self._awaited:
            self._awaited = False
            # After an error of another part the loop may be closed already.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._changed.set)

    def _translate(self, exc: OSError) -> BaseException:
        if isinstance(exc, BrokenPipeError):
            return exc
        error = OutputError(f"cannot write {self._output.name}: {exc.strerror}")
        error.__cause__ = exc
        return error
