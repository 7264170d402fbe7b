"""What commands print: help, tables and answers, to whatever standard output is."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

import click

from ddump_common.errors import ExitCode, OutputError

from .console import forget_standard_output

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["printing"]


def printing(command: Callable[[], int]) -> int:
    """Call ``command``, which prints by ``click.echo``, and return its code.

    That whoever reads has gone is no failure, and ends it.

    Raises:
        OutputError: what it prints cannot be written.

    """
    output = sys.stdout
    try:
        return command()
    except SystemExit:
        if sys.stdout is output:
            raise
        return ExitCode.OK  # click ends so, with another one, when the reader has gone
    except OSError as exc:
        if not _is_print(exc):
            raise
        forget_standard_output()
        raise OutputError(f"cannot write standard output: {exc.strerror}") from exc


def _is_print(exc: OSError) -> bool:
    """Return whether it comes from printing: nothing of its own says so."""
    frames = traceback.walk_tb(exc.__traceback__)
    return any(frame.f_code is click.echo.__code__ for frame, _ in frames)
