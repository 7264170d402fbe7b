"""What READMEs tell people to run, so that tests run the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def blocks(path: Path) -> list[str]:
    """Return the literal blocks of an RST file, without their margin."""
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", path.read_text())
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def block_with(path: Path, text: str) -> str:
    """Return the only literal block that holds ``text``."""
    (found,) = [block for block in blocks(path) if text in block]
    return found
