"""Where the capture goes: a file, or standard output, which is never a terminal.

A file is opened before anything else is tried and emptied only when there is
something to write, so that a run that opens no target leaves it as it was.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Self

from ddump_common.errors import OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Output"]

_STDOUT = 1


class Output:
    """The descriptor that the capture is written to.

    ``name`` is for messages. A descriptor of our own is closed by ``close``; standard
    output is left open, and its flags as they are.

    As a context manager it is around all that may write to it: whatever ends that, a file
    that was made and never begun does not stay. It is not closed: who writes may do so
    still, on a thread that hangs.
    """

    def __init__(self, path: Path | None, *, patient: bool = True) -> None:
        """Open the file, or take standard output when ``path`` is ``None``.

        ``patient`` is whether to wait for the reader of a named pipe.

        Raises:
            OutputError: the file cannot be written.
            UsageError: standard output is a terminal, or closed.

        """
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._created = False
        self._begun = False
        try:
            self.fd = _STDOUT if path is None else self._open(path, patient=patient)
            self._status = os.fstat(self.fd)
        except OSError as exc:
            if exc.errno == errno.ENXIO and path is not None and path.is_fifo():
                raise OutputError(
                    f"cannot write {self.name}: nobody reads it",
                    hint="begin to read the pipe first",
                ) from exc
            raise OutputError(f"cannot write {self.name}: {exc.strerror}") from exc
        if path is None and os.isatty(self.fd):
            raise UsageError(
                "standard output is a terminal, and packets are no text",
                hint="ddump ... | tcpdump -nr-, or -w FILE",
            )

    def _open(self, path: Path, *, patient: bool) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o666)
        except FileExistsError:
            fd = os.open(path, flags | (0 if patient else os.O_NONBLOCK), 0o666)
            os.set_blocking(fd, True)  # only the opening was not to wait
        else:
            self._created = True
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._begun:
            self.remove()

    @property
    def is_pipe(self) -> bool:
        """Whether a reader that goes away can be seen by polling."""
        return stat.S_ISFIFO(self._status.st_mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file on a disk."""
        return stat.S_ISREG(self._status.st_mode)

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of a regular file."""
        return (self._status.st_dev, self._status.st_ino) if self.is_regular else None

    def is_same(self, other: Output) -> bool:
        """Whether what is written to both would be mixed, in a file or a pipe."""
        if not self.is_regular and not self.is_pipe:
            return False
        return os.path.samestat(self._status, other._status)

    def begin(self) -> None:
        """Empty a file of our own, once, before the first byte."""
        if not self._begun:
            self._begun = True
            if self._path is not None and self.is_regular:
                os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close a file of our own; one that was made and never begun is removed.

        Raises:
            OSError: what was written did not reach its place.

        """
        if self._path is None or self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        os.close(fd)
        if not self._begun:
            self.remove()

    def remove(self) -> None:
        """Remove a file that was made here, with what is in it; no other. Idempotent."""
        if self._created and self._path is not None:
            self._created = False
            self._path.unlink(missing_ok=True)
