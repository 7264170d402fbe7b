from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from ddump_merger import memory


def test_freed_memory_is_not_faulted_in_again():
    """In a process of its own, for it cannot be undone."""
    script = """
import resource, sys
from ddump_merger.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(50):
    pieces = [bytes([n]) * 1_000_000 for n in range(10)]
    pieces.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", script, word]))
        for word in ("keep", "leave")
    ]
    assert faults[0] * 2 < faults[1]


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_another_c_library(monkeypatch, error):
    def cannot(_):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", cannot)
    memory.keep_freed_memory()
