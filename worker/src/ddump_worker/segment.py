"""One file of the ring: where its packets are, and how long its bytes stay.

A segment is read through leases, which are short: each opens the file anew. One that
is evicted while readers still need it is kept by a descriptor that was opened before
its name went; every lease is then a copy of that. Revoking closes the descriptor, and
the bytes are free as soon as the last lease ends.

Facts are single attributes that the recorder alone writes: a reader on another thread
sees one value or the next. The lock guards the descriptor; nothing under it waits for
a disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

from ddump_common.answers import SegmentInfo
from ddump_common.errors import CaptureError
from ddump_common.pcap import PcapHeader

from ._ring import Index
from .sidecar import SUFFIX, Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["RevokedError", "Segment"]

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class RevokedError(CaptureError):
    """The segment's bytes are gone."""


class Segment:
    """A file of the ring, and what is known of it.

    It was recorded from ``begin_ns`` to ``end_ns`` by the recorder's clock; both move
    on while it is ``growing``. ``size`` is that of the file in bytes, ``disk_bytes``
    what it takes of the disk. ``dropped`` packets were lost by the kernel while it was
    written, ``lost`` as the disk did not take them. ``interfaces`` are the names that
    each index had meanwhile, where the link type keeps the index. None of it changes
    any more when it is ``closed``.
    """

    def __init__(
        self,
        path: Path,
        *,
        number: int,
        link_type: int,
        begin_ns: int,
        end_ns: int,
        dropped: int = 0,
        lost: int = 0,
        interfaces: Mapping[int, frozenset[str]] = MappingProxyType({}),
        disk_bytes: int = 0,
    ) -> None:
        self.path = path
        self.number = number
        self.link_type = link_type
        self.index = Index(link_type=link_type)
        self.begin_ns = begin_ns
        self.end_ns = end_ns
        self.dropped = dropped
        self.lost = lost
        self.interfaces = interfaces
        self.size = PcapHeader.SIZE
        self.disk_bytes = disk_bytes
        self.growing = False
        self.closed = False
        self._lock = threading.Lock()
        self._kept: int | None = None
        self._revoked = False

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
            RevokedError: the bytes are gone.
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
                return os.open(self.path, _READ)
            except FileNotFoundError:
                # Evicted just now, or deleted by a stranger.
                with self._lock:
                    if self._kept is None:
                        raise self._gone() from None

    def _gone(self) -> RevokedError:
        return RevokedError(
            f"{self.name} has left the ring", hint="ask for a later window"
        )

    def keep(self) -> None:
        """Keep the bytes beyond the removal of the name, until ``revoke``.

        Raises:
            OSError: the file cannot be opened.

        """
        descriptor = os.open(self.path, _READ)
        with self._lock:
            self._kept = descriptor

    def revoke(self) -> None:
        """Give no lease any more, and let go of the bytes; again is harmless."""
        with self._lock:
            self._revoked = True
            kept, self._kept = self._kept, None
        if kept is not None:
            os.close(kept)

    def sidecar(self) -> Sidecar:
        """Return what is to be written beside the segment."""
        return Sidecar(
            begin_ns=self.begin_ns,
            end_ns=self.end_ns,
            dropped=self.dropped,
            lost=self.lost,
            closed=self.closed,
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
            dropped=self.dropped,
            lost=self.lost,
            growing=self.growing,
        )
