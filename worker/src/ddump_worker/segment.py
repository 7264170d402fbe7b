"""One file of the ring: where its packets are, and how long its bytes stay.

A segment is read through leases, which are short: each opens the file anew. One that
is evicted while readers still need it is kept by a descriptor that was opened before
its name went; every lease is then a copy of that. Revoking closes the descriptor, and
the bytes are free as soon as the last lease ends.

A file may be deleted, replaced or cut by a stranger. Who opens it notices that, and says
so to the ring, which forgets the segment.

Facts are single attributes that the recorder alone writes: a reader on another thread
sees one value or the next. The lock guards the descriptor; nothing under it waits for
a disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

from ddump_common.answers import SegmentInfo
from ddump_common.errors import CaptureError
from ddump_common.pcap import PcapHeader

from ._ring import Index
from .drops import Drops
from .sidecar import SUFFIX, Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["RevokedError", "Segment"]

# Opening what a stranger has put there must not wait.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_MISSING = "its file is missing"
_OTHER = "another file bears its name"
_EVICTED = "has left the ring"


class RevokedError(CaptureError):
    """The segment's bytes are gone: it was evicted, or its file is not what it was."""


class Segment:
    """A file of the ring, and what is known of it.

    It was recorded from ``begin_ns`` to ``end_ns`` by the recorder's clock; both move
    on while it is ``growing``. ``size`` is that of the file in bytes, ``disk_bytes``
    what it takes of the disk. ``drops`` are of the packets that were lost by the kernel
    while it was written, ``losses`` as the disk did not take them. ``interfaces`` are the
    names that each index had meanwhile, where the link type keeps the index. None of it
    changes any more when it is ``closed``. ``run`` tells those of one process;
    ``identity`` are the device and inode of the file, and ``report`` is called with
    what is wrong with it, by any thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        number: int,
        link_type: int,
        begin_ns: int,
        end_ns: int,
        drops: Drops | None = None,
        losses: Drops | None = None,
        interfaces: Mapping[int, frozenset[str]] = MappingProxyType({}),
        disk_bytes: int = 0,
        identity: tuple[int, int] | None = None,
        run: str = "",
    ) -> None:
        self.path = path
        self.number = number
        self.link_type = link_type
        self.index = Index(link_type=link_type)
        self.begin_ns = begin_ns
        self.end_ns = end_ns
        self.drops = drops or Drops()
        self.losses = losses or Drops()
        self.interfaces = interfaces
        self.size = PcapHeader.SIZE
        self.disk_bytes = disk_bytes
        self.identity = identity
        self.run = run
        self.growing = False
        self.closed = False
        self.report: Callable[[Segment, str], object] = Segment.revoke
        self._lock = threading.Lock()
        self._kept: int | None = None
        self._revoked = False
        self._reason = ""

    def __repr__(self) -> str:
        return f"<Segment {self.name}>"

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def sidecar_path(self) -> Path:
        """Where the sidecar is."""
        return self.path.with_suffix(SUFFIX)

    @property
    def revoked(self) -> bool:
        """Whether no lease is given any more."""
        return self._revoked

    @contextlib.contextmanager
    def lease(self) -> Iterator[int]:
        """Lend a descriptor to read from, which is closed at the end of the body.

        Any thread; opening may wait for the disk. A lease may outlive the segment,
        and its bytes stay on the disk until it ends: keep it short.

        Raises:
            RevokedError: the bytes are gone, or are not those that were written.
            OSError: the file cannot be opened.

        """
        descriptor = self._open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        while True:
            with self._lock:
                if self._revoked:
                    raise self._gone()
                if self._kept is not None:
                    return os.dup(self._kept)
            try:
                return self._open_file()
            except FileNotFoundError as exc:
                if not self._leaves():
                    self.report(self, exc.strerror or _MISSING)
                    if not self._leaves():
                        raise self._gone() from None  # it may come back

    def _leaves(self) -> bool:
        """Whether it was evicted just now."""
        with self._lock:
            return self._revoked or self._kept is not None

    def _open_file(self) -> int:
        committed = self.index.committed  # before the file grows on
        try:
            descriptor = os.open(self.path, _READ)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, _MISSING) from None
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(errno.ENOENT, _OTHER) from None
        wrong = self.judge(descriptor, committed)
        if wrong:
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, wrong)
        return descriptor

    def judge(self, descriptor: int, committed: int) -> str:
        """Return what is wrong with the file that is to have ``committed`` bytes."""
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode) or self.identity not in (None, identity):
            return _OTHER
        if not status.st_nlink:
            return _MISSING
        if status.st_size < committed:
            return f"its file was cut to {status.st_size} of {committed} bytes"
        return ""

    def _gone(self) -> RevokedError:
        return RevokedError(
            f"{self.name} {f'is gone: {self._reason}' if self._reason else _EVICTED}",
            hint="ask for a later window",
        )

    def keep(self) -> None:
        """Keep the bytes beyond the removal of the name, until ``revoke``.

        Raises:
            OSError: the file cannot be opened, or is not what it was.

        """
        descriptor = self._open_file()
        with self._lock:
            if not self._revoked:
                self._kept, descriptor = descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def let_go(self) -> None:
        """Read by the name again, which did not go; what is lent stays."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            os.close(kept)

    def revoke(self, reason: str = "") -> bool:
        """Give no lease any more, and let go of the bytes; again is harmless.

        ``reason`` says what is wrong with the file; it was evicted if there is none.
        Return whether it was not revoked before.
        """
        with self._lock:
            first = not self._revoked
            if first:
                self._revoked = True
                self._reason = reason
        self.let_go()
        return first

    def sidecar(self) -> Sidecar:
        """Return what is to be written beside the segment."""
        return Sidecar(
            begin_ns=self.begin_ns,
            end_ns=self.end_ns,
            dropped=self.drops.total,
            dropped_marks=self.drops.marks,
            lost=self.losses.total,
            lost_marks=self.losses.marks,
            closed=self.closed,
            run=self.run,
            interfaces={
                str(index): sorted(names) for index, names in self.interfaces.items()
            },
        )

    def info(self) -> SegmentInfo:
        """Return what is told of the segment."""
        return SegmentInfo(
            name=self.name,
            begin_ns=self.begin_ns,
            end_ns=self.end_ns,
            least_ns=self.index.least_ns,
            greatest_ns=self.index.greatest_ns,
            packets=self.index.packets,
            bytes=self.size,
            dropped=self.drops.total,
            lost=self.losses.total,
            growing=self.growing,
        )
