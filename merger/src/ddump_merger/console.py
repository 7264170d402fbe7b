"""What is said to people: lines on standard error, safe for a terminal.

Nobody may be there to read them; the capture goes on all the same.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from ddump_common.text import printable

__all__ = ["ensure_standard_error", "forget_standard_output", "say"]

_LONGEST_LINE = 2000


def say(line: str) -> None:
    """Write one line."""
    try:
        # To what standard error is now: the live table stands in for it, and below this.
        sys.stderr.write(printable(line, limit=_LONGEST_LINE) + "\n")
        sys.stderr.flush()
    except OSError:
        # Once is enough; and what stays in its buffer shall not fail again at the end.
        sys.stderr = _nobody()


def ensure_standard_error() -> None:
    """Give a process that was started without standard error one that nobody reads.

    Else the next file that is opened would get its number, and its lines.
    """
    if sys.stderr is None:
        sys.stderr = _nobody()


def forget_standard_output() -> None:
    """Let what cannot be written not fail again at the end."""
    sys.stdout = _nobody()


def _nobody() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
