from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.options import ROOT, TABLES, replaced

PROGRAMS = Path(sys.executable).parent


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_option_is_listed_as_help_has_it(path):
    text = path.read_text()
    for program, command in TABLES[path].items():
        assert replaced(text, program, command) == text, (
            "run: .venv/bin/python tests/support/options.py"
        )


def test_the_commands_that_the_readme_names_exist():
    text = (ROOT / "README.rst").read_text()
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"``?make (\w+)", text) + re.findall(
        r"^    make (\w+)", text, re.MULTILINE
    ):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


@pytest.mark.parametrize("program", ["ddump", "ddump-worker"])
def test_help_and_version(program):
    for option in ("--help", "--version"):
        told = subprocess.run(
            [PROGRAMS / program, option], check=True, capture_output=True, text=True
        )
        assert program in told.stdout
        assert told.stderr == ""


def test_exit_codes_are_in_the_help():
    told = subprocess.run(
        [PROGRAMS / "ddump", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for code in range(6):
        assert re.search(rf"^\s*{code}\s+\S", told, re.MULTILINE), told
