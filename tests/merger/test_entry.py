"""The way into the command: what an interrupt does before there is one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "merger" / "pyproject.toml"

# Interrupts the process as a module is imported that makes another error of it.
INTERRUPTED = """
import runpy, signal, sys

class Interrupter:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "click":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("interrupted")

sys.meta_path.insert(0, Interrupter)
sys.argv = ["ddump", "--version"]
runpy.run_module("ddump_merger", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("trap", "code", "out"), [("trap - INT", 130, ""), ("trap '' INT", 0, "ddump")]
)
def test_an_interrupt_while_it_is_imported_ends_it_silently(trap, code, out):
    done = subprocess.run(
        ["sh", "-c", f'{trap}; exec "$0" -c "$1"', sys.executable, INTERRUPTED],
        check=False, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(out)


def test_what_is_installed_is_the_same_command():
    scripts = tomllib.loads(PROJECT.read_text())["project"]["scripts"]
    assert scripts == {"ddump": "ddump_merger.__main__:main"}
