"""What is said of a segment beside it: replaced as a whole, read with suspicion."""

from __future__ import annotations

import json
import os
import stat
import time

import msgspec
import pytest

from ddump_common.errors import FormatError
from ddump_worker.sidecar import Mark, Sidecar, read_sidecar, write_sidecar

SIDECAR = Sidecar(
    begin_ns=1,
    end_ns=2,
    dropped=3,
    dropped_marks=[Mark(1, 2, 3)],
    lost=4,
    lost_marks=[Mark(1, 1, 2), Mark(2, 2, 2)],
    interfaces={"2": ["eth0"]},
    closed=True,
    run="f1",
)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.json"
    write_sidecar(path, SIDECAR)
    assert read_sidecar(path) == SIDECAR
    assert json.loads(path.read_text()) == {
        "version": 1,
        "begin_ns": 1,
        "end_ns": 2,
        "dropped": 3,
        "dropped_marks": [[1, 2, 3]],
        "lost": 4,
        "lost_marks": [[1, 1, 2], [2, 2, 2]],
        "interfaces": {"2": ["eth0"]},
        "closed": True,
        "run": "f1",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_it_replaces_the_old_one_and_what_a_killed_process_left(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / "a.json.new").write_text("half of a")
    write_sidecar(path, SIDECAR)
    write_sidecar(path, Sidecar(begin_ns=5, end_ns=6))
    assert read_sidecar(path) == Sidecar(begin_ns=5, end_ns=6)


def test_one_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_sidecar(tmp_path / "a.json", SIDECAR)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_one_of_before_there_were_marks_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '{"version":1,"begin_ns":1,"end_ns":2,"dropped":3,"lost":4,'
        '"interfaces":{"2":["eth0"]},"closed":true,"run":"f1"}'
    )
    assert read_sidecar(path) == msgspec.structs.replace(
        SIDECAR, dropped_marks=[], lost_marks=[]
    )


def test_a_missing_one_is_none(tmp_path):
    assert read_sidecar(tmp_path / "a.json") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        "\udcff",
        '{"version":1}',
        '{"version":1,"begin_ns":-1,"end_ns":2}',
        '{"version":1,"begin_ns":1,"end_ns":99999999999999999999999}',
        '{"version":1,"begin_ns":1,"end_ns":2,"interfaces":{"2":"eth0"}}',
        '{"version":1,"begin_ns":3,"end_ns":2}',
        '{"version":1,"begin_ns":1,"end_ns":2,"lost":1,"lost_marks":[[1,2]]}',
        '{"version":1,"begin_ns":1,"end_ns":2,"lost":1,"lost_marks":[[-1,2,1]]}',
        # Far later than the file was written.
        '{"version":1,"begin_ns":1,"end_ns":9214646400000000000,"closed":true}',
        '{"version":1,"begin_ns":1,"end_ns":' + "9" * 5000 + "}",
        '{"version":' + "9" * 5000 + "}",
        '{"version":1,"begin_ns":1,"end_ns":2,"x":' + "[" * 200_000,
        '{"version":1,"begin_ns":1,"end_ns":2,"x":"' + "x" * (1 << 20) + '"}',
    ],
)
def test_one_that_says_nothing_sensible_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert read_sidecar(path) is None


def test_one_of_before_the_clock_was_set_back_is_believed(tmp_path):
    path = tmp_path / "a.json"
    said = Sidecar(begin_ns=1, end_ns=time.time_ns() + 3600 * 10**9)
    write_sidecar(path, said)
    assert read_sidecar(path) == said


def a_directory(path, _):
    path.mkdir()


def a_link(path, target):
    write_sidecar(target, SIDECAR)
    path.symlink_to(target)


@pytest.mark.parametrize("make", [lambda path, _: os.mkfifo(path), a_directory, a_link])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(tmp_path, make):
    path = tmp_path / "a.json"
    make(path, tmp_path / "b.json")
    with pytest.raises(FormatError, match=r"a\.json is not a regular file"):
        read_sidecar(path)


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_an_error(tmp_path, version):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": version, "begin": "then"}))
    with pytest.raises(FormatError, match=f"a.json is of version {version}"):
        read_sidecar(path)


def test_what_a_later_release_adds_is_left_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"version":1,"begin_ns":1,"end_ns":2,"weather":"fine"}')
    assert read_sidecar(path) == Sidecar(begin_ns=1, end_ns=2)
