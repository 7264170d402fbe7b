"""Files that hold keys: read within bounds, written as a whole or not at all.

A certificate and its key are a pair. Both new ones are on the disk, beside the old, before
the key takes its place and then the certificate: whenever that is cut short, either the old
pair is whole, or the new certificate is still there for ``settle_pairs``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ddump_common.pki import Credential

__all__ = [
    "Place",
    "check_owner",
    "locked",
    "read",
    "replace",
    "replace_pair",
    "settle_pairs",
    "successor",
    "told_reason",
    "writing",
]

_MAX_PEM_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one in a folder; wait for who is before us.

    Raises:
        OSError: there is no such folder.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise ``OutputError`` for what the system does not let be done in ``path``."""
    try:
        yield
    except OSError as exc:
        raise OutputError(f"{exc.filename or path}: {told_reason(exc)}") from exc


def check_owner(path: Path) -> None:
    """Refuse what is neither ours nor root's: its owner can read it and change it.

    Raises:
        UsageError: it is another's.

    """
    owner = path.stat().st_uid
    if owner not in {0, os.geteuid()}:
        raise UsageError(
            f"{path} belongs to another user, of the number {owner}",
            hint=f"run this as that user, or chown -R {os.geteuid()}",
        )


def read(path: Path, *, limit: int = _MAX_PEM_BYTES) -> bytes:
    """Return what a regular file has.

    Raises:
        UsageError: it is none, cannot be read, or has more than ``limit``.

    """
    try:
        # A pipe that nobody writes to would have us wait.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123  # a descriptor
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"cannot read {path}: it is not a regular file")
            data = file.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {told_reason(exc)}") from exc
    if len(data) > limit:
        raise UsageError(f"{path} is too long")
    return data


def successor(path: Path) -> Path:
    """Return where a file is written that is to take the place of ``path``."""
    return path.with_name(f".{path.name}.new")


def replace(path: Path, data: bytes) -> None:
    """Write a file, as a whole or not at all, in place of what is there if anything.

    Raises:
        OSError: it cannot be written.

    """
    new = successor(path)
    try:
        _create(new, data, mode=0o644)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def replace_pair(place: Place, credential: Credential) -> None:
    """Write a certificate and its key: both, or what ``settle_pairs`` settles.

    Raises:
        OSError: they cannot be written.

    """
    key, certificate = successor(place.key), successor(place.certificate)
    try:
        _create(key, credential.key_pem, mode=0o600)
        _create(certificate, credential.certificate_pem, mode=0o644)
        _sync(key.parent)
    except OSError:
        for new in (certificate, key):  # in this order: see settle_pairs
            new.unlink(missing_ok=True)
        raise
    key.replace(place.key)
    certificate.replace(place.certificate)
    _sync(key.parent)


def settle_pairs(folder: Path) -> list[Path]:
    """Have all pairs of a folder whole again; return the certificates that were finished.

    A new certificate whose new key is not beside it belongs to the key in place: it is
    finished where it replaces one, as the old key is gone. All else that is new is dropped:
    a key without a certificate is none yet.

    Raises:
        OSError: it cannot be done.

    """
    finished = []
    for new in sorted(folder.glob(".*.pem.new")):
        certificate = new.with_name(new.name[1 : -len(".new")])
        key = certificate.with_suffix(".key")
        if certificate.is_file() and not successor(key).exists():
            new.replace(certificate)
            finished.append(certificate)
        else:
            new.unlink()
    for new in folder.glob(".*.new"):
        new.unlink()
    return finished


def told_reason(exc: OSError) -> str:
    """Return what the system said, as our own messages are written."""
    return (exc.strerror or "cannot be opened").lower()


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that is not there yet; it is on the disk when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:  # noqa: PTH123  # a descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Have the names in a folder be on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
