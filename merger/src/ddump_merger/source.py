"""One target's bytes: what the fan-in asks of it, and files and standard input.

A source is opened once, then read until it is empty. A file is read when the merge
waits for it, by blocking reads on a small executor: the kernel has no other kind for
files. Reads of pipes first wait in ``poll`` with a descriptor beside them that ends
the wait, so that no thread is left behind when the command stops.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, Self

from ddump_common.errors import BrokenStreamError, UnreachableError
from ddump_common.units import MILLISECONDS, format_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from ddump_common.window import WindowReport

    from .skew import Skew
    from .target import FileTarget, Target

    T = TypeVar("T")

__all__ = ["FileReader", "FileSource", "Source"]

_STDIN = 0
_LONGEST_POLL_MS = (1 << 31) - 1  # poll(2) takes an int; it is 24 days


class Source(Protocol):
    """Where one target's bytes come from."""

    @property
    def target(self) -> Target:
        """What it reads."""

    @property
    def window(self) -> WindowReport | None:
        """What of the window that was asked for there is, when it was told."""

    @property
    def trusted(self) -> bool:
        """Whether it promises heartbeats."""

    @property
    def bounded(self) -> bool:
        """Whether it says beforehand how long it is."""

    @property
    def host(self) -> str:
        """What its host calls itself; empty when that is not told."""

    @property
    def sample(self) -> Skew | None:
        """What its answer tells of its clock."""

    async def open(self) -> None:
        """Get ready to be read.

        Raises:
            PeerError: the target cannot be opened, and why. Nothing is left open.

        """

    async def read(self) -> bytes:
        """Return the next bytes; none at the end. Cancelling it loses none.

        Raises:
            BrokenStreamError: the capture ended without its proper end. All that came
                before was returned.

        """

    def arrived(self) -> bytes:
        """Return what has come and was not read yet, without waiting."""

    def close(self) -> None:
        """Give up what is open. Idempotent."""


class FileReader:
    """The threads that files are read on, and the way to end a read that waits.

    ``chunk_bytes`` is what one read takes at most, ``timeout_ns`` how long a pipe may
    be silent.
    """

    def __init__(self, files: int, *, chunk_bytes: int, timeout_ns: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.timeout_ns = timeout_ns
        # One thread each, for every one may be a pipe that blocks; they start as needed.
        self._executor = ThreadPoolExecutor(
            max_workers=files, thread_name_prefix="file"
        )
        self._cancelled, self._cancel = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all reads and wait for their threads."""
        os.close(self._cancel)  # the other end is readable from now on
        self._executor.shutdown(cancel_futures=True)
        os.close(self._cancelled)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``work`` on a thread."""
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    def read(self, fd: int, *, may_block: bool) -> bytes | None:
        """Return the next bytes of ``fd``, none at its end, ``None`` after silence.

        Runs on a thread. Cancelled, it returns as at the end.
        """
        if may_block:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.register(self._cancelled, select.POLLIN)
            ready = poll.poll(min(self.timeout_ns // MILLISECONDS, _LONGEST_POLL_MS))
            if not ready:
                return None
            if any(ready_fd == self._cancelled for ready_fd, _ in ready):
                return b""
        return os.read(fd, self.chunk_bytes)


class FileSource:
    """A capture file, a pipe, or standard input: nobody tells anything beside it."""

    window = None
    trusted = False
    bounded = False
    host = ""
    sample = None

    def __init__(self, target: FileTarget, reader: FileReader) -> None:
        self.target = target
        self._reader = reader
        self._fd = -1
        self._may_block = True
        self._reading: asyncio.Future[bytes | None] | None = None

    async def open(self) -> None:
        """Open the file.

        Raises:
            UnreachableError: it does not exist, or cannot be read.

        """
        try:
            self._fd = await self._reader.run(self._open)
            self._may_block = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError as exc:
            missing = isinstance(exc, FileNotFoundError)
            hint = "a URL begins with http:// or https://" if missing else ""
            reason = (exc.strerror or "cannot be opened").lower()
            raise UnreachableError(reason, hint=hint) from exc

    def _open(self) -> int:
        if self.target.is_standard_input:
            return os.dup(_STDIN)
        # A FIFO without a writer would hold the thread in open(2) for ever.
        fd = os.open(self.target.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        return fd

    async def read(self) -> bytes:
        """Return the next bytes; none at the end."""
        if self._reading is None:
            fd, may_block = self._fd, self._may_block
            self._reading = self._reader.run(
                lambda: self._reader.read(fd, may_block=may_block)
            )
        try:
            # A read that is not waited for any more still takes bytes: see arrived.
            data = await asyncio.shield(self._reading)
        except OSError as exc:
            self._reading = None
            raise BrokenStreamError(f"cannot be read: {exc.strerror}") from exc
        self._reading = None
        if data is None:
            silence = format_duration(self._reader.timeout_ns)
            raise BrokenStreamError(f"nothing came for {silence}", hint="see --timeout")
        return data

    def arrived(self) -> bytes:
        """Return what a read that was not waited for has brought."""
        reading = self._reading
        if reading is None or not reading.done() or reading.exception() is not None:
            return b""
        self._reading = None
        return reading.result() or b""

    def close(self) -> None:
        """Close the file, when the read under way, if any, is over."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._reading is None or self._reading.done():
            os.close(fd)
        else:
            self._reading.add_done_callback(lambda reading: _close(fd, reading))


def _close(fd: int, reading: asyncio.Future[bytes | None]) -> None:
    os.close(fd)
    if not reading.cancelled():
        reading.exception()  # nobody waits for it
