"""Files that hold secrets: read only where nobody else can read, or write, them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from ddump_common.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_unread_by_others", "read_private"]


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Return what a regular file holds that its owner alone may use: root, or this user.

    Raises:
        UsageError: it is not such a file, cannot be read, or is longer.

    """
    try:
        # Neither a pipe nor a device may keep the worker waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a regular file")
            if status.st_uid not in (0, os.geteuid()):
                raise UsageError(
                    f"{path} belongs to the user {status.st_uid}",
                    hint="it has to belong to root or to the worker's own user",
                )
            if stat.S_IMODE(status.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(
                    f"{path} is open to others: its mode is "
                    f"{stat.S_IMODE(status.st_mode):04o}",
                    hint=f"chmod 600 {path}",
                )
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise UsageError(f"{path} is longer than {max_bytes} bytes")
    return data


def check_unread_by_others(path: Path) -> None:
    """Refuse a key that everybody on this host can read, or change.

    Its group may read it: that is how keys are shared with a worker of its own user.

    Raises:
        UsageError: others may, or there is no such file.

    """
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    if mode & stat.S_IRWXO:
        raise UsageError(
            f"everybody on this host can get at the private key in {path}",
            hint=f"chmod o-rwx {path}",
        )
