"""What is said of a segment in a file beside it, as JSON.

A pcap file tells neither when its recording began and ended nor what was lost. A
sidecar is replaced as a whole, by a rename: whoever reads it finds the old one or the
new one. One that cannot be read is as good as none, for the packets are elsewhere; one
of another version is a reason to leave its segment alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from ddump_common.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VERSION", "Sidecar", "read_sidecar", "write_sidecar"]

VERSION = 1
SUFFIX = ".json"
TEMPORARY_SUFFIX = ".json.new"

_MAX_BYTES = 1 << 20
_MODE = 0o640

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a segment beside its packets.

    It was recorded from ``begin_ns`` to ``end_ns``, nanoseconds since the epoch by the
    recorder's clock; ``dropped`` packets were lost by the kernel meanwhile, ``lost`` as
    the disk did not take them. ``interfaces`` are the names that each index had. Where
    it is not ``closed``, recording went on for longer than this says.
    """

    version: int = VERSION
    begin_ns: _Count
    end_ns: _Count
    dropped: _Count = 0
    lost: _Count = 0
    interfaces: dict[str, list[str]] = {}
    closed: bool = False


class _Version(msgspec.Struct):
    version: int


def read_sidecar(path: Path) -> Sidecar | None:
    """Return what ``path`` says; ``None`` if it is missing or not such a file.

    Raises:
        FormatError: it is of another version.
        OSError: it cannot be read.

    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise FormatError(f"{path.name} is of version {version}", offset=0)
        return msgspec.json.decode(text, type=Sidecar)
    except (msgspec.DecodeError, UnicodeDecodeError):
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
        temporary.chmod(_MODE)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
