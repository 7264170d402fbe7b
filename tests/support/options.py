"""The tables of options in the READMEs, made from the programs' own ``--help``.

Run it to write them anew: ``python tests/support/options.py``. A test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from ddump_merger.cli import merge_command, segments_command, status_command
from ddump_merger.pki import pki_command
from ddump_worker.cli import command as worker_command

ROOT = Path(__file__).parents[2]
TABLES = {
    ROOT / "README.rst": {
        "ddump": merge_command,
        "ddump status": status_command,
        "ddump segments": segments_command,
        "ddump pki": pki_command,
        "ddump-worker": worker_command,
    },
    ROOT / "merger/README.rst": {
        "ddump": merge_command,
        "ddump status": status_command,
        "ddump segments": segments_command,
        "ddump pki": pki_command,
    },
    ROOT / "worker/README.rst": {"ddump-worker": worker_command},
}


def table(program: str, command: click.Command) -> str:
    """Return the options of ``command``, and its commands if it has any, as RST table."""
    commands = command.commands.values() if isinstance(command, click.Group) else ()
    told = [(_usage(each), each.get_short_help_str(limit=200)) for each in commands]
    for each in (*commands, command):
        told += [record for record in _options(each) if record not in told]
    rows = [f".. list-table:: ``{program}``", "   :widths: 35 65", ""]
    for names, text in told:
        text = re.sub(r"\s+", " ", text).replace("*", r"\*").replace("|", r"\|")
        rows += [f"   * - ``{names}``", f"     - {text}"]
    return "\n".join([*rows, ""])


def _usage(command: click.Command) -> str:
    with click.Context(command, **command.context_settings) as context:
        words = command.collect_usage_pieces(context)
    return " ".join([command.name, *(word for word in words if word != "[OPTIONS]")])


def _options(command: click.Command) -> list[tuple[str, str]]:
    with click.Context(command, **command.context_settings) as context:
        records = [
            parameter.get_help_record(context)
            for parameter in command.get_params(context)
            if isinstance(parameter, click.Option)
        ]
    return [record for record in records if record is not None]


def replaced(text: str, program: str, command: click.Command) -> str:
    """Return ``text`` with the table of ``program`` in the place that is marked for it."""
    begin, end = (f".. options of {program}: {word}\n" for word in ("begin", "end"))
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table(program, command)}\n{end}{after}"


if __name__ == "__main__":
    for path, programs in TABLES.items():
        text = path.read_text()
        for program, command in programs.items():
            text = replaced(text, program, command)
        path.write_text(text)
