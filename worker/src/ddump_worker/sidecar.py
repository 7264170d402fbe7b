"""What is said of a segment in a file beside it, as JSON.

A pcap file tells neither when its recording began and ended nor what was lost. A
sidecar is replaced as a whole, by a rename: whoever reads it finds the old one or the
new one. One that says what cannot be is as good as none, for the packets are elsewhere:
so is one that tells of a time after it was written. One of another version, or that is
no regular file, is a reason to leave its segment alone.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from ddump_common.errors import FormatError
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VERSION", "Mark", "Sidecar", "read_sidecar", "write_sidecar"]

VERSION = 1
SUFFIX = ".json"
TEMPORARY_SUFFIX = ".json.new"

_MAX_BYTES = 1 << 20
_MODE = 0o640
# A file that is a stranger's must neither be followed nor waited for.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# File systems note the time of a file as coarsely as this.
_COARSE_NS = 2 * SECONDS

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Mark(NamedTuple):
    """``packets`` were lost from ``since_ns`` on, until ``until_ns`` at the latest."""

    since_ns: _Count
    until_ns: _Count
    packets: _Count


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a segment beside its packets.

    It was recorded from ``begin_ns`` to ``end_ns``, nanoseconds since the epoch by the
    recorder's clock; ``dropped`` packets were lost by the kernel meanwhile, ``lost`` as
    the disk did not take them, and the marks tell when. ``interfaces`` are the names that each index had. Where
    it is not ``closed``, recording went on for longer than this says. ``run`` is the
    same for all that one process recorded.
    """

    version: int = VERSION
    begin_ns: _Count
    end_ns: _Count
    dropped: _Count = 0
    dropped_marks: list[Mark] = []
    lost: _Count = 0
    lost_marks: list[Mark] = []
    interfaces: dict[str, list[str]] = {}
    closed: bool = False
    run: str = ""


class _Version(msgspec.Struct):
    version: _Count


def read_sidecar(path: Path) -> Sidecar | None:
    """Return what ``path`` says; ``None`` if it is missing or cannot be true.

    Raises:
        FormatError: it is of another version, or not a regular file.
        OSError: it cannot be read.

    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise FormatError(f"{path.name} is not a regular file", offset=0)
        with open(os.open(path, _READ), "rb") as file:  # noqa: PTH123 - flags
            written_ns = os.fstat(file.fileno()).st_mtime_ns
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    said = _decode(path, text)
    if said is None or not said.begin_ns <= said.end_ns <= written_ns + _COARSE_NS:
        return None
    return said


def _decode(path: Path, text: bytes) -> Sidecar | None:
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise FormatError(f"{path.name} is of version {version}", offset=0)
        return msgspec.json.decode(text, type=Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Replace ``path``.

    Raises:
        OSError: it cannot be; ``path`` is as it was.

    """
    temporary = path.with_suffix(TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(msgspec.json.encode(sidecar))
            file.flush()
            if os.fstat(file.fileno()).st_mtime_ns < sidecar.end_ns:
                # The clock was set back: whoever reads it takes that for untrue.
                os.utime(file.fileno(), ns=(sidecar.end_ns, sidecar.end_ns))
        temporary.chmod(_MODE)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
