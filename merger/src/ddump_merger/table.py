"""A table for people: on a terminal it is drawn, elsewhere tabs part its cells.

Nothing is cut: of a table that is wider than the terminal, the columns that have no
room go below, indented, so the first ones are to be the most important.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click
from rich.cells import cell_len

from ddump_common.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["print_table", "table_lines"]

# What is longer came from the network, and is no name.
_LONGEST_CELL = 300

_GAP = "  "
_INDENT = "    "


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a row of headings and what follows; what is not printable is escaped."""
    safe = [[printable(cell, limit=_LONGEST_CELL) for cell in row] for row in rows]
    if sys.stdout.isatty():
        lines = table_lines(safe, width=shutil.get_terminal_size().columns)
    else:
        lines = map("\t".join, safe)
    for line in lines:
        click.echo(line)


def table_lines(rows: Sequence[Sequence[str]], *, width: int) -> Iterator[str]:
    """Yield the lines of a table, of ``width`` columns where a cell is not wider."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    numbers = [_is_numeric(cells) for _, *cells in columns]
    parts = list(_parts(widths, width))
    for row in rows:
        for part in parts:
            cells = [_padded(row[n], widths[n], right=numbers[n]) for n in part]
            indent = "" if part is parts[0] else _INDENT
            yield (indent + _GAP.join(cells)).rstrip()


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the numbers of the columns that stand beside each other."""
    part: list[int] = []
    used = 0
    for number, needed in enumerate(widths):
        if part and used + len(_GAP) + needed > width:
            yield part
            part, used = [], len(_INDENT)
        used += needed + (len(_GAP) if part else 0)
        part.append(number)
    yield part


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _is_numeric(cells: Iterable[str]) -> bool:
    return all(cell[:1].isdigit() or cell in {"-", "?"} for cell in cells)
