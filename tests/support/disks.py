"""Small file systems that a test may fill."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """Mount a file system of ``size`` bytes at ``path``; take it away at the end."""
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "ddump-test", path], check=True
    )
    try:
        yield path
    finally:
        # Lazily: what a failed test left open must not keep it.
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path, *, leave: int) -> Path:
    """Fill the file system of ``path`` with a file until ``leave`` bytes are free."""
    told = os.statvfs(path)
    file = path / "filler"
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, told.f_bavail * told.f_frsize - leave)
    return file


@contextlib.contextmanager
def freezable_disk(path: Path, size: int) -> Iterator[Path]:
    """Mount a file system of ``size`` bytes at ``path`` that ``frozen`` can stop."""
    image = path.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    path.mkdir()
    subprocess.run(["mount", "-o", "loop", image, path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Let whoever writes to the file system of ``path`` wait, as on a disk that hangs."""
    subprocess.run(["fsfreeze", "--freeze", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path], check=True)
