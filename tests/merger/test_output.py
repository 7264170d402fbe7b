from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from ddump_common.errors import OutputError, UsageError
from ddump_merger import output as module
from ddump_merger.output import Output


@pytest.fixture
def stdout(monkeypatch):
    """Put a descriptor of the test's in the place of standard output."""

    def place(fd):
        monkeypatch.setattr(module, "_STDOUT", fd)
        return fd

    return place


def test_a_new_file(tmp_path):
    path = tmp_path / "x"
    output = Output(path)
    assert output.name == str(path)
    assert output.is_regular
    assert not output.is_pipe
    assert output.identity == (path.stat().st_dev, path.stat().st_ino)
    output.begin()
    os.write(output.fd, b"abc")
    output.begin()
    output.close()
    output.close()
    assert path.read_bytes() == b"abc"
    assert path.stat().st_mode & 0o111 == 0


def test_a_file_that_is_there_is_emptied_when_it_begins(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"precious")
    output = Output(path)
    assert path.read_bytes() == b"precious"
    output.close()
    assert path.read_bytes() == b"precious"
    output = Output(path)
    output.begin()
    output.close()
    assert path.read_bytes() == b""


def test_a_new_file_that_never_began_is_removed(tmp_path):
    path = tmp_path / "x"
    output = Output(path)
    assert path.exists()
    output.close()
    assert not path.exists()


def test_a_device(tmp_path):
    output = Output(tmp_path / "/dev/null")
    assert output.identity is None
    output.begin()
    output.close()


@pytest.mark.parametrize("name", ["no/such", "."])
def test_a_file_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(OutputError, match="cannot write") as caught:
        Output(tmp_path / name)
    assert caught.value.exit_code == 5


def test_standard_output_is_left_open(stdout):
    reader, writer = os.pipe()
    output = Output(stdout(writer) and None)
    assert output.fd == writer
    assert output.name == "standard output"
    assert output.is_pipe
    assert output.identity is None
    output.begin()
    output.close()
    os.write(writer, b"x")
    os.close(writer)
    os.close(reader)


def test_standard_output_in_a_file_is_not_emptied(stdout, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    output = Output(stdout(fd) and None)
    output.begin()
    output.close()
    os.close(fd)
    assert path.read_bytes() == b"before"


def test_a_terminal(stdout):
    controller, terminal = pty.openpty()
    stdout(terminal)
    with pytest.raises(UsageError, match="is a terminal"):
        Output(None)
    os.close(terminal)
    os.close(controller)


def test_standard_output_that_is_closed(stdout):
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    stdout(writer)
    with pytest.raises(OutputError, match="cannot write standard output: Bad file"):
        Output(None)


def test_the_umask_decides_who_reads_it(tmp_path):
    path = tmp_path / "x"
    subprocess.run(
        ["sh", "-c", 'umask 077; exec "$0" -c "$1" "$2"',
         os.sys.executable,
         "import sys, pathlib; from ddump_merger.output import Output;"
         "o = Output(pathlib.Path(sys.argv[1])); o.begin(); o.close()",
         path],
        check=True,
    )  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_written_to_both_would_be_mixed(tmp_path, stdout):
    one, same = Output(tmp_path / "a"), Output(tmp_path / "a")
    other = Output(tmp_path / "b")
    assert one.is_same(same)
    assert not one.is_same(other)
    reader, writer = os.pipe()
    piped, again = Output(stdout(writer) and None), Output(Path(f"/dev/fd/{writer}"))
    assert piped.is_same(again)
    assert not piped.is_same(one)
    again.close()
    os.close(reader)
    os.close(writer)
    for each in (one, same, other):
        each.close()


def test_devices_may_be_shared():
    one, same = Output(Path("/dev/null")), Output(Path("/dev/null"))
    assert not one.is_same(same)
    one.close()
    same.close()


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OutputError, match=r"pipe: nobody reads it \(begin to read"):
        Output(path, patient=False)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = Output(path, patient=False)
    assert os.get_blocking(output.fd)
    output.close()
    os.close(reader)
    assert path.exists()


def test_what_was_made_here_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    output = Output(path)
    output.begin()
    os.write(output.fd, b"half of")
    output.remove()
    assert not path.exists()
    path.write_bytes(b"another's")
    output.remove()
    output.close()
    assert path.exists()
    output = Output(path)
    output.remove()
    output.close()
    assert path.read_bytes() == b"another's"
