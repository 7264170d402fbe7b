"""Where the capture goes: a file, or standard output, which is never a terminal.

A file is opened before anything else is tried and emptied only when there is
something to write, so that a run that opens no target leaves it as it was.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from ddump_common.errors import OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Output"]

_STDOUT = 1


class Output:
    """The descriptor that the capture is written to.

    ``name`` is for messages. A descriptor of our own is closed by ``close``; standard
    output is left open, and its flags as they are.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, or take standard output when ``path`` is ``None``.

        Raises:
            OutputError: the file cannot be written.
            UsageError: standard output is a terminal, or closed.

        """
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._created = False
        self._begun = False
        try:
            self.fd = _STDOUT if path is None else self._open(path)
            self._status = os.fstat(self.fd)
        except OSError as exc:
            raise OutputError(f"cannot write {self.name}: {exc.strerror}") from exc
        if path is None and os.isatty(self.fd):
            raise UsageError(
                "standard output is a terminal, and packets are no text",
                hint="ddump ... | tcpdump -nr-, or -w FILE",
            )

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(path, flags, 0o666)
        self._created = True
        return fd

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
        if self._created and not self._begun:
            self._path.unlink(missing_ok=True)
