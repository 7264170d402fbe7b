"""What is said to people: lines on standard error, safe for a terminal.

Nobody may be there to read them; the capture goes on all the same.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from ddump_common.text import printable

__all__ = ["ensure_standard_error", "say"]

_LONGEST_LINE = 2000


def say(line: str) -> None:
    """Write one line."""
    with suppress(OSError):
        click.echo(printable(line, limit=_LONGEST_LINE), err=True)


def ensure_standard_error() -> None:
    """Give a process that was started without standard error one that nobody reads.

    Else the next file that is opened would get its number, and its lines.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
