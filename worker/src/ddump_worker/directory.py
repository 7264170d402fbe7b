"""The directory of a ring: its lock, its files' names, and what an earlier run left.

``lock`` is held by the one process that records here, and holds its pid. A segment is
``ddump-NUMBER-CREATED.pcap``, and what is known of it beside its packets is in a file
of the same name that ends in ``.json``. Sorted by name they are in the order of their
recording, over all runs.

What an earlier run left is looked through twice: ``survey`` reads only the headers and
the sidecars, so that recording need not wait; ``adopt`` reads a segment whole. Only what
could have been written here is ever taken, cut or deleted; the rest is left alone and
named in the log, and its numbers do not count.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import logging
import os
import re
import stat
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from ddump_common.errors import DdumpError, FormatError, UsageError
from ddump_common.pcap import PcapHeader, Precision
from ddump_common.units import MILLISECONDS, SECONDS

from .drops import Drops
from .segment import Segment
from .sidecar import SUFFIX, TEMPORARY_SUFFIX, read_sidecar, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ddump_common.api import Link

    from .sidecar import Sidecar

__all__ = ["REFRESH_NS", "Directory", "Space", "check_directory"]

_log = logging.getLogger(__name__)

REFRESH_NS = 2 * SECONDS
"""How old the sidecar of a growing segment may be."""

# How long a packet may wait in the kernel's open block: two timeouts of it.
_UNREAD_NS = 100 * MILLISECONDS

_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o640
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_ADOPT = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_NAME = re.compile(
    r"(ddump-([0-9]{10})-([0-9]{8}T[0-9]{6}Z))(\.pcap|\.json|\.json\.new)"
)
_STAMP = "%Y%m%dT%H%M%SZ"
_LAST_NUMBER = 10**10 - 1
# No ring comes so far. Who put such a file there would leave no number for others.
_LAST_FOUND = _LAST_NUMBER - 10**9
_LAST_NS = (1 << 63) - 2 * SECONDS
_LOCK = "lock"
_MAX_NAMED = 20  # files left alone that the log names one by one

# A name of an interface, also an alternative one, is shorter; so are indices of 32 bits.
_MAX_NAME = 128
_MAX_DIGITS = 10

# What st_blocks counts.
_BLOCK = 512
# The disk allocates in pieces of this size or smaller ones.
_SLACK = 1 << 16


class Space(NamedTuple):
    """Bytes of the file system: free for this process, and in all."""

    free: int
    total: int


class Directory:
    """A ring's directory, held by this process until it is closed.

    Raises:
        UsageError: it cannot be used, or another process records there.

    """

    def __init__(self, path: Path, *, link: Link, snaplen: int) -> None:
        self.path = path
        self._link_type = link.link_type
        self._header = PcapHeader(
            link_type=link.link_type, snaplen=snaplen, precision=Precision.NANO
        ).serialize()
        self._number = 0
        self._run = os.urandom(8).hex()
        try:
            path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock: int | None = _lock(path)
        except OSError as exc:
            raise _unusable(path, exc) from exc

    def close(self) -> None:
        """Let another process record here; again is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    @property
    def in_place(self) -> bool:
        """Whether the directory's path still leads to what this process holds."""
        try:
            found = (self.path / _LOCK).stat(follow_symlinks=False)
        except OSError:
            return False
        return self._lock is not None and os.path.samestat(found, os.fstat(self._lock))

    def space(self) -> Space:
        """Return what the file system has.

        Raises:
            OSError: it does not tell.

        """
        told = os.statvfs(self.path)
        return Space(
            free=told.f_bavail * told.f_frsize, total=told.f_blocks * told.f_frsize
        )

    def create(self, now_ns: int) -> tuple[Segment, int]:
        """Return a new segment and the descriptor that writes it, which the caller owns.

        No file that is there is replaced: then the number goes on.

        Raises:
            OSError: it cannot be made; nothing is left of it.

        """
        created = datetime.datetime.fromtimestamp(now_ns // SECONDS, datetime.UTC)
        number = self._number
        while True:
            number += 1
            if number > _LAST_NUMBER:
                raise OSError(
                    f"no number is left after those of the segments in {self.path}"
                )
            path = self.path / f"ddump-{number:010}-{created:{_STAMP}}.pcap"
            if os.path.lexists(path.with_suffix(SUFFIX)):
                continue
            try:
                descriptor = os.open(path, _CREATE, _FILE_MODE)
                break
            except FileExistsError:
                continue
        status = os.fstat(descriptor)
        segment = Segment(
            path,
            number=number,
            link_type=self._link_type,
            begin_ns=now_ns,
            end_ns=now_ns,
            identity=(status.st_dev, status.st_ino),
            run=self._run,
        )
        try:
            os.pwrite(descriptor, self._header, 0)
            write_sidecar(segment.sidecar_path, segment.sidecar())
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # why it cannot be made says more
                self.discard(segment)
            raise
        self._number = number
        segment.growing = True
        return segment, descriptor

    def discard(self, segment: Segment) -> None:
        """Delete a segment's files; one that is missing or not ours any more is none.

        Raises:
            OSError: the capture cannot be deleted.

        """
        try:
            status = segment.path.lstat()
        except FileNotFoundError:
            pass
        else:
            if segment.identity in (None, (status.st_dev, status.st_ino)):
                segment.path.unlink(missing_ok=True)
        try:
            segment.sidecar_path.unlink(missing_ok=True)
        except OSError as exc:
            _log.warning("%s cannot be deleted: %s", segment.sidecar_path, exc.strerror)

    def survey(self) -> list[Segment]:
        """Return the segments that an earlier run left, oldest first, still unread.

        What only looks like one is left alone and named in the log. To be called
        before ``create``, so that numbers go on after the greatest that is there.

        Raises:
            OSError: the directory cannot be read.

        """
        found: list[Segment] = []
        strange: list[str] = []
        for name in sorted(each.name for each in self.path.iterdir()):
            match = _NAME.fullmatch(name)
            try:
                if match is None:
                    if name != _LOCK:
                        raise FormatError("not a segment's name", offset=0)
                elif match[4] != ".pcap":
                    self._clear(name, match)
                elif (segment := self._candidate(name, match)) is not None:
                    found.append(segment)
            except (OSError, DdumpError) as exc:
                strange.append(f"{name} ({_reason(exc)})")
        _name_strangers(self.path, strange)
        self._number = max((each.number for each in found), default=0)
        return found

    def _clear(self, name: str, match: re.Match[str]) -> None:
        """Delete a sidecar whose segment is gone, or that was not yet whole."""
        path = self.path / name
        if match[4] == TEMPORARY_SUFFIX:
            path.unlink()
        elif not (self.path / f"{match[1]}.pcap").exists():
            if read_sidecar(path) is None:
                raise FormatError("a sidecar of no segment", offset=0)
            path.unlink()

    def _candidate(self, name: str, match: re.Match[str]) -> Segment | None:
        created_ns = _created_ns(match[3])
        if int(match[2]) > _LAST_FOUND:
            raise FormatError("a number that no segment has", offset=0)
        path = self.path / name
        beside = path.with_suffix(SUFFIX)
        said = _believed(read_sidecar(beside), created_ns)
        descriptor = os.open(path, _ADOPT)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("not a regular file", offset=0)
            header = os.pread(descriptor, PcapHeader.SIZE, 0)
        finally:
            os.close(descriptor)
        if len(header) < PcapHeader.SIZE and self._header.startswith(header):
            if status.st_uid != os.geteuid():
                raise FormatError("without a header, of another user", offset=0)
            # Killed while it was made: there is nothing in it.
            _log.info("%s is without a header, and removed", name)
            path.unlink()
            beside.unlink(missing_ok=True)
            return None
        self._check(header)
        if said is None and beside.exists():
            _log.warning("%s says what cannot be: the packets alone tell", beside)
        begin_ns = created_ns if said is None else said.begin_ns
        return Segment(
            path,
            number=int(match[2]),
            link_type=self._link_type,
            begin_ns=begin_ns,
            end_ns=begin_ns,
            drops=None if said is None else Drops(said.dropped, said.dropped_marks),
            losses=None if said is None else Drops(said.lost, said.lost_marks),
            interfaces={} if said is None else _interfaces(said),
            disk_bytes=max(status.st_size, status.st_blocks * _BLOCK),
            identity=(status.st_dev, status.st_ino),
            run="" if said is None else said.run,
        )

    def _check(self, data: bytes) -> None:
        header = PcapHeader.parse(data)
        if header.byte_order != "<" or header.precision is not Precision.NANO:
            raise FormatError("not of nanoseconds in little-endian order", offset=0)
        if header.link_type != self._link_type:
            raise FormatError(
                f"link type {header.link_type}, this ring's is {int(self._link_type)}",
                offset=20,
            )

    def adopt(self, segment: Segment, following: Segment | None = None) -> None:
        """Read a segment that ``survey`` found, and cut the record that is torn.

        What follows the first record that cannot be is left in the file and named in
        the log. ``following`` is the adopted segment after it, if there is one. Any
        thread, before the segment is shared.

        Raises:
            OSError: the file cannot be read or cut.
            DdumpError: the file is not what it seemed to be.

        """
        created_ns = segment.begin_ns // SECONDS * SECONDS
        said = _believed(read_sidecar(segment.sidecar_path), created_ns)
        descriptor = os.open(segment.path, _ADOPT)
        try:
            status = os.fstat(descriptor)
            if segment.identity != (status.st_dev, status.st_ino):
                raise FormatError("another file bears its name", offset=0)
            self._check(os.pread(descriptor, PcapHeader.SIZE, 0))
            segment.index.scan(descriptor, status.st_size)
            size = self._end_of(segment, status.st_size)
            if size < status.st_size or status.st_blocks * _BLOCK > size + _SLACK:
                os.ftruncate(descriptor, size)  # what was taken ahead goes as well
            segment.disk_bytes = max(size, os.fstat(descriptor).st_blocks * _BLOCK)
        finally:
            os.close(descriptor)
        segment.size = size
        segment.begin_ns, segment.end_ns = _recorded(
            said,
            created_ns=created_ns,
            greatest_ns=segment.index.greatest_ns,
            modified_ns=status.st_mtime_ns,
        )
        unfinished = said is not None and not said.closed
        if unfinished and following is not None and _meet(segment, following):
            segment.end_ns = following.begin_ns
        segment.closed = True
        if said != (known := segment.sidecar()):
            # The next run cannot tell it anew: cutting has changed the file's time.
            write_sidecar(segment.sidecar_path, known)

    def _end_of(self, segment: Segment, size: int) -> int:
        committed = segment.index.committed
        if segment.index.corrupt:
            _log.warning(
                "%s: what follows byte %d is no record, and left alone",
                segment.name,
                committed,
            )
            return size
        if committed < size:
            _log.info("%s: a torn record is cut at byte %d", segment.name, committed)
        return committed


def check_directory(path: Path) -> None:
    """Refuse what cannot be a ring's directory, whether or not one is in use. Blocks.

    What has to be made for that is removed again.

    Raises:
        UsageError: it cannot be used.

    """
    try:
        missing = [each for each in (path, *path.parents) if not each.exists()]
        if missing:
            missing[-1].mkdir(mode=_DIRECTORY_MODE)
            with contextlib.suppress(OSError):  # somebody has begun to use it
                missing[-1].rmdir()
            return
        with tempfile.TemporaryFile(dir=path), contextlib.suppress(FileNotFoundError):
            os.close(os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as exc:
        raise _unusable(path, exc) from exc


def _unusable(path: Path, exc: OSError) -> UsageError:
    return UsageError(
        f"cannot use the ring directory {path}: {exc.strerror}",
        hint="--ring-dir names a directory that this user may write to",
    )


def _lock(path: Path) -> int:
    descriptor = os.open(
        path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise UsageError(
            f"process {holder or '(not yet known)'} records in {path}",
            hint="give each worker a --ring-dir of its own",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _created_ns(stamp: str) -> int:
    try:
        created = datetime.datetime.strptime(stamp, _STAMP)
    except ValueError:
        raise FormatError("a name with no date in it", offset=0) from None
    created_ns = int(created.replace(tzinfo=datetime.UTC).timestamp()) * SECONDS
    if not 0 <= created_ns < _LAST_NS:
        raise FormatError("a name with a date that cannot be", offset=0)
    return created_ns


def _believed(said: Sidecar | None, created_ns: int) -> Sidecar | None:
    """Return ``said`` if it is of a segment that was made in the second of its name."""
    if said is None or not 0 <= said.begin_ns - created_ns <= SECONDS:
        return None
    return said


def _interfaces(said: Sidecar) -> dict[int, frozenset[str]]:
    return {
        int(index): frozenset(name for name in names if len(name) <= _MAX_NAME)
        for index, names in said.interfaces.items()
        if index.isascii() and index.isdigit() and len(index) <= _MAX_DIGITS
    }


def _meet(segment: Segment, following: Segment) -> bool:
    """Whether ``following`` went on where ``segment`` ended, and all before it was read.

    That nothing is known of beyond its beginning would not be enough: packets of before
    it may have waited in the kernel.
    """
    return (
        segment.run == following.run != ""
        and segment.number + 1 == following.number
        and segment.end_ns <= following.begin_ns <= segment.end_ns + 2 * REFRESH_NS
        and following.begin_ns < following.end_ns
    )


def _recorded(
    said: Sidecar | None,
    *,
    created_ns: int,
    greatest_ns: int | None,
    modified_ns: int,
) -> tuple[int, int]:
    """Return from when to when a segment of an earlier run was recorded.

    A process that is killed leaves a sidecar that is a little older than the packets,
    and these tell how far it came: but not beyond the last write, as timestamps may
    jump, nor beyond what a sidecar may be behind.
    """
    if said is not None and said.closed:
        return said.begin_ns, max(said.begin_ns, said.end_ns)
    # A name tells the second in which it was made.
    begin_ns = created_ns + SECONDS if said is None else said.begin_ns
    end_ns = begin_ns if said is None else max(begin_ns, said.end_ns)
    if greatest_ns is not None:
        seen_ns = min(greatest_ns, modified_ns) - _UNREAD_NS
        if said is not None:
            seen_ns = min(seen_ns, end_ns + 2 * REFRESH_NS)
        end_ns = max(end_ns, seen_ns)
    return begin_ns, end_ns


def _reason(exc: OSError | DdumpError) -> str:
    return exc.message if isinstance(exc, DdumpError) else exc.strerror or str(exc)


def _name_strangers(path: Path, strange: Iterable[str]) -> None:
    names = list(strange)
    for name in names[:_MAX_NAMED]:
        _log.warning("left alone in %s: %s", path, name)
    if len(names) > _MAX_NAMED:
        _log.warning("left alone in %s: %d more", path, len(names) - _MAX_NAMED)
