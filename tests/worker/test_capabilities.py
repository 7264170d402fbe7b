"""Giving up privileges: the kernel's own account of a process is the judge."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import subprocess, threading
from pathlib import Path
from ddump_worker.capabilities import keep_only_net_raw
try:
    keep_only_net_raw()
except PermissionError as exc:
    print("refused", exc.errno)
else:
    def show():
        print(Path("/proc/thread-self/status").read_text())
    show()
    thread = threading.Thread(target=show)
    thread.start()
    thread.join()
    print(subprocess.check_output(["cat", "/proc/self/status"], text=True))
"""


def run(*prefix: str) -> str:
    return subprocess.run(
        [*prefix, sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def values(said: str, name: str) -> list[str]:
    return [
        line.split()[1] for line in said.splitlines() if line.startswith(f"{name}:")
    ]


def test_of_root_s_capabilities_one_is_left_to_threads_and_children():
    said = run()
    only = f"{1 << 13:016x}"
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert values(said, name) == [only] * 3
    assert values(said, "CapInh")[:2] == [f"{0:016x}"] * 2
    assert values(said, "NoNewPrivs") == ["1"] * 3


def test_without_setpcap_it_gives_up_what_it_can():
    only = "-all,+net_raw,+kill"
    said = run("setpriv", "--bounding-set", only, "--inh-caps", only)
    assert values(said, "CapEff")[:2] == [f"{1 << 13:016x}"] * 2


def test_without_net_raw_it_is_refused():
    only = "-net_raw"
    assert run("setpriv", "--bounding-set", only, "--inh-caps", only) == "refused 1\n"
