from __future__ import annotations

import subprocess
import sys

from support.captures import Record, pcap

RUN = f"exec {sys.executable} -m ddump_merger"


def run(line, **options):
    return subprocess.run(
        ["sh", "-c", f"{RUN} {line}"], capture_output=True, check=False, **options
    )


def test_a_capture_is_written_although_nobody_can_be_told(tmp_path):
    capture = pcap([Record(timestamp_ns=1_000_000_000, data=b"packet")])
    path = tmp_path / "a.pcap"
    path.write_bytes(capture)
    for line, code in (
        (f"{path} 2>&-", 0),
        (f"{path} 2>/dev/full", 0),
        (f"{path} nothing 2>&-", 4),
        (f"{path} nothing 2>/dev/full", 4),
        ("nothing 2>/dev/full", 3),
    ):
        done = run(line)
        assert done.returncode == code, line
        assert done.stdout == (b"" if code == 3 else capture), line


def test_what_is_said_is_safe_for_a_terminal(tmp_path):
    done = run(r"""$(printf 'no\033[2Jthing')""", cwd=tmp_path)
    assert b"\x1b" not in done.stderr
    assert rb"no\x1b[2Jthing: no such file or directory" in done.stderr
