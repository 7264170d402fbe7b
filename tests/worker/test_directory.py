"""A ring's directory: locked, numbered, and what an earlier run left in it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys

import msgspec
import pytest

from ddump_common.api import Link
from ddump_common.errors import DdumpError, UsageError
from ddump_worker.directory import REFRESH_NS, Directory
from ddump_worker.sidecar import Mark, Sidecar, read_sidecar, write_sidecar
from support.captures import (
    SLL2,
    Record,
    pcap_header,
    pcap_record,
)

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
FIRST = "ddump-0000000001-20231114T221320Z.pcap"


def opened(path, *, link=Link.SLL) -> Directory:
    return Directory(path, link=link, snaplen=262144)


@pytest.fixture
def directory(tmp_path):
    made = opened(tmp_path / "ring")
    yield made
    made.close()


def records(count: int, *, at: int = NOW) -> bytes:
    return b"".join(
        pcap_record(Record(at + number, bytes(20 + number % 7)), nano=True)
        for number in range(count)
    )


def left(directory: Directory, body: bytes, said: Sidecar | None = None, **options):
    """Leave a segment as an earlier run would; return its path."""
    segment, descriptor = directory.create(NOW)
    os.pwrite(descriptor, pcap_header(nano=True, **options) + body, 0)
    os.close(descriptor)
    if said is None:
        segment.sidecar_path.unlink()
    else:
        write_sidecar(segment.sidecar_path, said)
    return segment.path


def adopted(directory: Directory):
    (segment,) = directory.survey()
    directory.adopt(segment)
    return segment


# The lock


def test_a_second_process_is_refused_with_the_pid_of_the_first(directory):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ddump_common.api import Link\n"
        "from ddump_worker.directory import Directory\n"
        "try: Directory(Path(sys.argv[1]), link=Link.SLL, snaplen=262144)\n"
        "except Exception as exc: print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, directory.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"process {os.getpid()} records in {directory.path}" in done.stdout
    assert "--ring-dir of its own" in done.stdout


def test_it_is_free_again_when_it_is_closed(directory):
    with pytest.raises(UsageError, match=f"process {os.getpid()} records"):
        opened(directory.path)
    directory.close()
    directory.close()
    opened(directory.path).close()


def test_a_lock_that_does_not_yet_say_who_holds_it(directory):
    (directory.path / "lock").write_text("")
    with pytest.raises(UsageError, match="not yet known"):
        opened(directory.path)


def test_it_is_made_with_all_above_it_for_the_group_to_read(tmp_path):
    old = os.umask(0)
    try:
        made = opened(tmp_path / "a" / "b")
        segment, descriptor = made.create(NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o750
    assert stat.S_IMODE(segment.path.stat().st_mode) == 0o640
    os.close(descriptor)
    made.close()


def test_a_place_that_is_no_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot use the ring directory .*/file: "):
        opened(tmp_path / "file")


def test_a_lock_that_cannot_be_written_is_let_go(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UsageError, match="No space left"):
        opened(tmp_path)
    monkeypatch.undo()
    opened(tmp_path).close()


# New segments


def test_a_new_segment_is_a_capture_without_packets(directory):
    segment, descriptor = directory.create(NOW)
    assert segment.name == FIRST
    assert segment.growing
    assert (segment.begin_ns, segment.end_ns) == (NOW, NOW)
    assert segment.path.read_bytes() == pcap_header(nano=True)
    said = read_sidecar(segment.sidecar_path)
    assert said == Sidecar(begin_ns=NOW, end_ns=NOW, run=segment.run)
    assert segment.run
    os.close(descriptor)


def test_one_that_cannot_be_made_leaves_nothing(directory, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddump_worker.directory.write_sidecar", full)
    with pytest.raises(OSError, match="No space"):
        directory.create(NOW)
    assert [each.name for each in directory.path.iterdir()] == ["lock"]


def test_numbers_of_strangers_do_not_count_and_nothing_is_replaced(directory):
    here = directory.path
    strangers = [
        here / "ddump-0000000001-20231114T221320Z.json",
        here / "ddump-0000000002-20231114T221320Z.pcap",
        here / "ddump-9999999999-20231114T221320Z.json",
        here / "ddump-9999999999-20231114T221321Z.pcap",
    ]
    for each in strangers:
        each.write_text("something else, and enough of it")
    directory.survey()
    segment, descriptor = directory.create(NOW)
    os.close(descriptor)
    assert segment.number == 3
    assert {each.read_text() for each in strangers} == {
        "something else, and enough of it"
    }


def test_numbers_go_on_after_the_greatest_segment(directory):
    left(directory, records(1)).rename(
        directory.path / "ddump-0000000041-20231114T221320Z.pcap"
    )
    directory.survey()
    segment, descriptor = directory.create(NOW)
    os.close(descriptor)
    assert segment.number == 42


@pytest.mark.parametrize("number", ["9000000000", "9999999999"])
def test_a_number_that_leaves_few_to_others_is_a_stranger_s(directory, caplog, number):
    stranger = directory.path / f"ddump-{number}-20231114T221320Z.pcap"
    left(directory, records(1)).rename(stranger)
    assert directory.survey() == []
    assert f"{stranger.name} (a number that no segment has)" in caplog.text
    segment, descriptor = directory.create(NOW)
    os.close(descriptor)
    assert segment.number == 1
    assert stranger.exists()


def test_there_is_a_last_number(directory):
    directory._number = 9_999_999_998
    _, descriptor = directory.create(NOW)
    os.close(descriptor)
    with pytest.raises(OSError, match="no number is left"):
        directory.create(NOW)


def test_another_file_of_that_name_is_not_deleted(directory, caplog):
    segment, descriptor = directory.create(NOW)
    os.close(descriptor)
    segment.path.rename(directory.path / "mine")
    segment.path.write_text("yours")
    segment.sidecar_path.unlink()
    segment.sidecar_path.mkdir()
    directory.discard(segment)
    assert segment.path.read_text() == "yours"
    assert f"{segment.sidecar_path} cannot be deleted" in caplog.text


def test_free_space_is_told(directory):
    space = directory.space()
    assert 0 < space.free <= space.total


# What an earlier run left


def test_whole_records_are_there_again_and_the_torn_one_is_cut(directory):
    body = records(1000)
    whole = len(body)
    path = left(directory, body + records(1)[:-3])
    segment = adopted(directory)
    assert segment.index.packets == 1000
    assert segment.size == path.stat().st_size == 24 + whole
    assert segment.disk_bytes < 24 + whole + (1 << 16)  # what was taken ahead is free
    assert segment.closed
    assert not segment.growing


@pytest.mark.parametrize("torn", range(1, 36))
def test_a_record_may_be_torn_anywhere(directory, torn):
    body = records(3)
    path = left(directory, body + records(1)[:torn])
    assert adopted(directory).index.packets == 3
    assert path.read_bytes() == pcap_header(nano=True) + body


def test_the_first_record_that_cannot_be_ends_it_and_the_rest_is_left(
    directory, caplog
):
    body = records(5) + b"\xff" * 400
    path = left(directory, body)
    segment = adopted(directory)
    assert segment.index.packets == 5
    assert path.read_bytes() == pcap_header(nano=True) + body
    assert segment.size == 24 + len(body)
    assert f"{path.name}: what follows byte {segment.index.committed} is" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 23])
def test_one_without_a_whole_header_is_removed(directory, size, caplog):
    caplog.set_level(logging.INFO)
    path = left(directory, b"", Sidecar(begin_ns=NOW, end_ns=NOW))
    os.truncate(path, size)
    assert directory.survey() == []
    assert [each.name for each in directory.path.iterdir()] == ["lock"]
    assert f"{path.name} is without a header" in caplog.text


def test_one_without_a_header_of_another_user_is_left_alone(directory, caplog):
    path = directory.path / FIRST
    path.touch()
    os.chown(path, 65534, 65534)
    assert directory.survey() == []
    assert path.exists()
    assert f"{FIRST} (without a header, of another user)" in caplog.text


def test_a_sidecar_that_is_a_fifo_does_not_hold_it_up(directory, caplog):
    path = left(directory, records(1))
    os.mkfifo(path.with_suffix(".json"))
    assert directory.survey() == []
    assert f"{path.stem}.json is not a regular file" in caplog.text


def test_indices_and_names_that_cannot_be_are_not_taken(directory):
    said = Sidecar(
        begin_ns=NOW,
        end_ns=NOW,
        interfaces={"9" * 5000: ["a"], "\u00b2": ["b"], "2": ["eth0", "x" * 5000]},
    )
    left(directory, records(1), said)
    assert adopted(directory).interfaces == {2: frozenset({"eth0"})}


@pytest.mark.parametrize(
    "said",
    [
        Sidecar(begin_ns=NOW, end_ns=9_214_646_400 * SECOND, closed=True),
        Sidecar(begin_ns=NOW + 2 * SECOND, end_ns=NOW + 3 * SECOND, closed=True),
        Sidecar(begin_ns=0, end_ns=NOW + 3 * SECOND, closed=True),
    ],
)
def test_times_that_cannot_be_are_as_good_as_none(directory, said, caplog):
    path = left(directory, records(1, at=NOW + 9 * SECOND), said)
    os.utime(path.with_suffix(".json"))
    segment = adopted(directory)
    assert segment.begin_ns == NOW + SECOND
    assert segment.end_ns == NOW + 9 * SECOND - UNREAD
    assert f"{path.stem}.json says what cannot be" in caplog.text


@pytest.mark.parametrize("stamp", ["00010101T000000Z", "99991231T235959Z"])
def test_a_date_that_cannot_be_is_named(directory, stamp, caplog):
    left(directory, records(1)).rename(
        directory.path / f"ddump-0000000001-{stamp}.pcap"
    )
    assert directory.survey() == []
    assert "a name with a date that cannot be" in caplog.text


@pytest.mark.parametrize(
    ("run", "begin", "known", "end"),
    [
        # The next went on where this one ended.
        ("a", 5 * SECOND + 50_000_000, SECOND, 5 * SECOND + 50_000_000),
        # Nothing is known of beyond its beginning; it is of another run; it is too far.
        ("a", 5 * SECOND + 50_000_000, 0, 5 * SECOND),
        ("b", 5 * SECOND + 50_000_000, SECOND, 5 * SECOND),
        ("a", 50 * SECOND, SECOND, 5 * SECOND),
    ],
)
def test_segments_of_one_run_meet_though_it_was_killed(
    directory, run, begin, known, end
):
    left(directory, b"", Sidecar(begin_ns=NOW, end_ns=NOW + 5 * SECOND, run="a"))
    following, descriptor = directory.create(NOW + begin)
    os.close(descriptor)
    said = following.sidecar()
    write_sidecar(
        following.sidecar_path,
        msgspec.structs.replace(said, end_ns=NOW + begin + known, run=run),
    )
    first, second = directory.survey()
    directory.adopt(second)
    directory.adopt(first, second)
    assert first.end_ns == NOW + end


UNREAD = 100_000_000


def test_what_the_sidecar_says_is_known_again(directory):
    said = Sidecar(
        begin_ns=NOW,
        end_ns=NOW + 5,
        dropped=2,
        lost=3,
        lost_marks=[Mark(NOW + 1, NOW + 2, 3)],
        interfaces={"2": ["eth0"], "x": ["no index"]},
        closed=True,
    )
    left(directory, records(3, at=NOW + 99), said)
    segment = adopted(directory)
    assert (segment.begin_ns, segment.end_ns) == (NOW, NOW + 5)
    assert segment.drops.within(NOW + 3, NOW + 4) == segment.drops.total == 2
    assert segment.losses.total == segment.losses.within(NOW + 2, NOW + 3) == 3
    assert segment.losses.within(NOW + 3, NOW + 4) == 0
    assert segment.interfaces == {2: frozenset({"eth0"})}


@pytest.mark.parametrize(
    ("said_end", "packet", "modified", "end"),
    [
        # The packets tell how far it came after the sidecar was written,
        (5 * SECOND, 6 * SECOND, 7 * SECOND, 6 * SECOND - UNREAD),
        # but not when they are of before that,
        (5 * SECOND, 3 * SECOND, 7 * SECOND, 5 * SECOND),
        # nor when their clock was wrong: the file was written last before that,
        (5 * SECOND, 86400 * SECOND, 7 * SECOND, 7 * SECOND - UNREAD),
        # or somebody touched it later.
        (5 * SECOND, 86400 * SECOND, 90000 * SECOND, 5 * SECOND + 2 * REFRESH_NS),
    ],
)
def test_of_one_that_was_killed_what_is_certain_is_covered(
    directory, said_end, packet, modified, end
):
    said = Sidecar(begin_ns=NOW, end_ns=NOW + said_end)
    path = left(directory, records(1, at=NOW + packet) + b"torn", said)
    os.utime(path, ns=(NOW, NOW + modified))
    segment = adopted(directory)
    assert (segment.begin_ns, segment.end_ns) == (NOW, NOW + end)
    # The next run finds the same, though the file was cut.
    again = adopted(directory)
    assert (again.begin_ns, again.end_ns) == (NOW, NOW + end)


def test_without_a_sidecar_the_name_and_the_packets_tell(directory):
    path = left(directory, records(1, at=NOW + 9 * SECOND))
    os.utime(path, ns=(NOW, NOW + 20 * SECOND))
    segment = adopted(directory)
    assert segment.begin_ns == NOW + SECOND
    assert segment.end_ns == NOW + 9 * SECOND - UNREAD


def test_of_one_without_packets_and_sidecar_nothing_is_covered(directory):
    left(directory, b"")
    segment = adopted(directory)
    assert segment.begin_ns == segment.end_ns


def test_a_sidecar_that_is_garbage_is_as_good_as_none(directory):
    path = left(directory, records(1))
    path.with_suffix(".json").write_text("{")
    assert adopted(directory).index.packets == 1


def test_what_was_not_written_here_is_left_alone_and_named(directory, caplog):
    here = directory.path
    names = [f"ddump-000000010{number}-20231114T221320Z.pcap" for number in range(7)]
    body = records(2)
    (here / names[0]).write_bytes(pcap_header(nano=False) + body)
    (here / names[1]).write_bytes(pcap_header(nano=True, link_type=SLL2) + body)
    (here / names[2]).write_bytes(pcap_header(nano=True, byte_order=">") + body)
    (here / names[3]).write_bytes(b"#!/bin/sh\n" + bytes(20))
    (here / names[4]).mkdir()
    (here / names[5]).symlink_to("/etc/passwd")
    (here / names[6]).write_bytes(pcap_header(nano=True) + body)
    (here / names[6]).with_suffix(".json").write_text('{"version":2}')
    others = [
        "ddump-0000000200-20239914T221320Z.pcap",  # no such day
        "ddump-1-20231114T221320Z.pcap",
        "ddump-0000000300-20231114T221320Z.json",  # not ours, and no segment beside it
        "notes.txt",
        "ddump-0000000001-20231114T221320Z.pcap.gz",
    ]
    for name in others:
        (here / name).write_text("mine")
    os.mkfifo(here / "ddump-0000000400-20231114T221320Z.pcap")
    before = sorted(each.name for each in here.iterdir())
    assert directory.survey() == []
    assert sorted(each.name for each in here.iterdir()) == before
    for name in (*names, *others, "ddump-0000000400-20231114T221320Z.pcap"):
        assert f"left alone in {here}: {name} (" in caplog.text
    assert "link type 276, this ring's is 113" in caplog.text
    assert "is of version 2" in caplog.text


def test_many_strangers_are_counted(directory, caplog):
    for number in range(25):
        (directory.path / f"{number:02}").touch()
    directory.survey()
    assert len(caplog.records) == 21
    assert "5 more" in caplog.text


def test_a_fifo_does_not_hold_it_up(directory):
    os.mkfifo(directory.path / FIRST)
    assert directory.survey() == []


def test_what_a_killed_process_was_about_to_say_is_removed(directory):
    stem = "ddump-0000000007-20231114T221320Z"
    write_sidecar(directory.path / f"{stem}.json", Sidecar(begin_ns=1, end_ns=2))
    (directory.path / f"{stem}.json.new").write_text('{"vers')
    assert directory.survey() == []
    assert [each.name for each in directory.path.iterdir()] == ["lock"]


def test_one_that_went_meanwhile_is_an_error(directory):
    left(directory, records(1))
    (segment,) = directory.survey()
    segment.path.unlink()
    with pytest.raises(OSError, match="No such file"):
        directory.adopt(segment)


def test_one_that_became_another_file_meanwhile_is_an_error(directory):
    left(directory, records(1))
    (segment,) = directory.survey()
    segment.path.write_bytes(bytes(10))
    with pytest.raises((OSError, DdumpError)):
        directory.adopt(segment)


def test_one_that_was_replaced_meanwhile_is_an_error(directory):
    path = left(directory, records(1))
    (segment,) = directory.survey()
    path.rename(directory.path / "away")
    path.write_bytes(pcap_header(nano=True) + records(2))
    with pytest.raises(DdumpError, match="another file bears its name"):
        directory.adopt(segment)


def test_they_are_found_in_the_order_of_their_recording(directory):
    paths = [left(directory, records(1)) for _ in range(12)]
    assert [each.path for each in directory.survey()] == paths
