"""The ring: what it has, who reads it, what goes, and what an earlier run left."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import pytest

from ddump_common.api import Link
from ddump_common.errors import UsageError
from ddump_common.window import Interval
from ddump_worker.ring import Ring, RingOptions
from ddump_worker.segment import RevokedError
from ddump_worker.share import Share
from ddump_worker.tail import Tail
from support.captures import Record, parse_pcap, pcap_record
from support.disks import fill, small_disk

MB = 1_000_000
SECOND = 10**9
NOW = 1_700_000_000 * SECOND
SEGMENT = MB


def options(path, **given) -> RingOptions:
    given = {
        "directory": path / "ring",
        "size": 4 * MB,
        "segment_size": SEGMENT,
        "reserve": Share(),
    } | given
    return RingOptions(**given)


@pytest.mark.parametrize(
    ("given", "partial"),
    [
        ({}, ""),
        ({"filter": " "}, ""),
        ({"filter": "port 53"}, "only port 53"),
        ({"interfaces": ("eth0", "lo")}, "only from eth0, lo"),
        ({"snaplen": 96}, "cut to 96 bytes"),
        (
            {"filter": "udp", "interfaces": ("lo",), "snaplen": 1},
            "only udp; only from lo; cut to 1 bytes",
        ),
    ],
)
def test_why_it_has_less_than_a_live_capture(tmp_path, given, partial):
    with contextlib.closing(Ring(options(tmp_path, **given))) as ring:
        assert ring.info().partial == partial


class Written:
    """A ring and its end, as the recorder would drive them; a clock that it moves."""

    def __init__(self, path, **given) -> None:
        self.now_ns = given.pop("now_ns", NOW)
        self.ring = Ring(options(path, **given))
        self.tail = Tail(self.ring, now_ns=self.now_ns, names=dict)
        self._number = 0

    def fill(self, segments: int = 1) -> list[Record]:
        """Fill the growing segment, and begin as many as are said; a second each."""
        written = []
        for _ in range(segments):
            for _ in range(4):
                record = Record(self.now_ns, self._number.to_bytes(8, "big") * 31_100)
                self._number += 1
                batch = pcap_record(record, nano=True)
                assert self.tail.fits(batch)
                self.tail.append(batch, 1)
                written.append(record)
                self.now_ns += SECOND // 4
            self.tail.rotate(self.now_ns)
            self.tail.flush(self.now_ns)
        return written

    def names(self) -> list[int]:
        return [each.number for each in self.ring.segments()]

    def close(self) -> None:
        self.tail.close(self.now_ns)
        self.ring.close()


@pytest.fixture
def open_ring(tmp_path):
    """Open rings in one directory, one after the other."""
    opened = []

    def make(**given) -> Written:
        while opened:
            opened.pop().close()
        opened.append(Written(tmp_path, **given))
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()


def adopt(ring: Ring) -> None:
    ring.adopt(threading.Event())


def deleted_and_open(directory) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return [
        each
        for each in found
        if each.startswith(str(directory)) and each.endswith("(deleted)")
    ]


def on_disk(ring: Ring) -> list[int]:
    return sorted(
        int(each.name[6:16])
        for each in ring.options.directory.iterdir()
        if each.suffix == ".pcap"
    )


# What it was asked to be


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"segment_size": MB - 1}, "--segment-size is at least 1MB"),
        ({"size": 2 * MB - 1}, "less than 2 segments of 1MB"),
        ({"reserve": Share(percent=100.0)}, "--ring-reserve"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, given, words):
    with pytest.raises(UsageError, match=words):
        options(tmp_path, **given)


def test_without_room_for_two_segments_it_says_what_there_is(tmp_path):
    with small_disk(tmp_path / "disk", 8 * MB) as disk:
        fill(disk, leave=3 * MB)
        for _ in range(2):  # the directory is let go each time
            with pytest.raises(UsageError) as caught:
                Ring(options(disk, reserve=Share(size=2 * MB)))
        assert "no room for 2 segments of 1MB in" in caught.value.message
        assert "2MB are to stay free" in caught.value.message
        assert "--ring-reserve or --segment-size" in caught.value.hint


def test_the_reserve_is_the_greater_of_both(tmp_path):
    with small_disk(tmp_path / "disk", 16 * MB) as disk:
        for given in (
            {"reserve": Share(size=10 * MB, percent=1.0)},
            {"reserve": Share(size=1, percent=62.5)},
        ):
            ring = Ring(options(disk, size=12 * MB, **given))
            assert ring.limit_bytes == pytest.approx(6 * MB, rel=0.05)
            assert "are to stay free" in ring.info().shortened
            ring.close()


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def broken(_self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ddump_worker.directory.Directory.survey", broken)
    with pytest.raises(UsageError, match=r"cannot use .*/ring: Input/output error"):
        Ring(options(tmp_path))
    monkeypatch.undo()
    Ring(options(tmp_path)).close()


# Rotation


def test_it_is_a_plain_capture_at_any_moment(open_ring):
    written = open_ring()
    records = written.fill(2)
    assert records == [
        record
        for each in written.ring.segments()
        for record in parse_pcap(each.path.read_bytes())
    ]


def test_the_oldest_goes_and_the_limit_holds(open_ring):
    written = open_ring()
    for _ in range(10):
        written.fill()
        used = sum(
            each.stat().st_blocks * 512
            for each in written.ring.options.directory.glob("*.pcap")
        )
        assert used <= 4 * MB + 4 * 4096
    assert written.names() == on_disk(written.ring) == [8, 9, 10, 11]
    assert written.ring.evicted == 7
    assert not list(written.ring.options.directory.glob("*7-*"))


def test_coverage_is_one_stretch_that_loses_its_beginning(open_ring):
    written = open_ring()
    written.fill()
    assert written.ring.coverage() == (Interval(begin_ns=NOW, end_ns=written.now_ns),)
    written.fill(9)
    oldest = written.ring.segments()[0]
    assert written.ring.coverage() == (
        Interval(begin_ns=oldest.begin_ns, end_ns=written.now_ns),
    )
    assert oldest.begin_ns > NOW


def test_nothing_is_covered_that_was_not_flushed(open_ring):
    written = open_ring()
    assert written.ring.coverage() == ()
    written.tail.flush(NOW - 5)
    assert written.ring.coverage() == ()
    written.tail.flush(NOW + 10)
    written.tail.rotate(NOW + 50)
    written.tail.flush(NOW + 20)
    assert written.ring.coverage() == (Interval(begin_ns=NOW, end_ns=NOW + 20),)
    written.tail.flush(NOW + 70)
    assert written.ring.coverage() == (Interval(begin_ns=NOW, end_ns=NOW + 70),)
    assert [each.end_ns for each in written.ring.segments()] == [NOW + 50, NOW + 70]
    assert [each.closed for each in written.ring.segments()] == [True, False]


# Pins


def test_a_pinned_segment_outlives_its_eviction(open_ring):
    written = open_ring(pinned=Share(size=10 * MB))
    records = written.fill()
    first = written.ring.segments()[0]
    pins = written.ring.pin([first])
    written.fill(5)
    assert first.number not in on_disk(written.ring)
    assert written.ring.info().pinned_bytes == first.disk_bytes
    with first.lease() as descriptor:
        assert parse_pcap(os.pread(descriptor, MB, 0)) == records
    pins.release(first)
    pins.release(first)
    assert written.ring.info().pinned_bytes == 0
    with pytest.raises(RevokedError):
        first.lease().__enter__()


def test_it_is_free_when_the_last_of_its_readers_lets_go(open_ring):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill()
    first = written.ring.segments()[0]
    with written.ring.pin([first]) as one:
        other = written.ring.pin([first, *written.ring.segments()])
        written.fill(5)
        other.close()
        other.close()
        assert not first.revoked
        one.release(first)
        assert first.revoked


def test_one_that_is_let_go_in_time_is_not_held(open_ring):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill()
    first = written.ring.segments()[0]
    written.ring.pin([first]).close()
    written.fill(5)
    assert first.revoked
    assert written.ring.info().pinned_bytes == 0


def test_beyond_the_pinned_limit_the_slowest_reader_loses(open_ring):
    written = open_ring(pinned=Share(size=2 * MB))
    written.fill(2)
    segments = written.ring.segments()[:2]
    with written.ring.pin(segments):
        written.fill(2)
        newer = written.ring.segments()[:2]
        with written.ring.pin(newer):
            written.fill(5)
            held = [each for each in {*segments, *newer} if not each.revoked]
            assert len(held) == 2
            assert max(held, key=lambda each: each.number) is newer[-1]
            assert segments[0].revoked
            info = written.ring.info()
            assert 0 < info.pinned_bytes <= info.pinned_limit_bytes == 2 * MB


def test_a_fifth_of_the_ring_may_be_pinned(open_ring):
    written = open_ring(size=10 * MB)
    assert written.ring.info().pinned_limit_bytes == 2 * MB


def test_one_that_cannot_be_kept_is_gone(open_ring, caplog):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill()
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        first.path.unlink()
        written.fill(5)
    assert first.revoked
    assert f"{first.path} cannot be kept" in caplog.text


# Strangers


def test_a_segment_whose_file_is_gone_is_forgotten(open_ring, caplog):
    written = open_ring()
    written.fill(3)
    first, second, *_ = written.ring.segments()
    second.path.unlink()
    for _ in range(2):
        with pytest.raises(RevokedError, match=second.name):
            second.lease().__enter__()
    assert caplog.text.count(f"{second.path} is not served any more: its file is") == 1
    assert written.names() == [1, 3, 4]
    assert written.ring.info().packets == 8
    assert written.ring.coverage() == (
        Interval(begin_ns=first.begin_ns, end_ns=first.end_ns),
        Interval(begin_ns=second.end_ns, end_ns=written.now_ns),
    )
    written.fill(1)
    # It goes in its turn, and was not evicted.
    assert written.names() == [3, 4, 5]
    written.fill(1)
    assert written.names() == [3, 4, 5, 6]
    assert written.ring.evicted == 1


def test_what_is_not_what_was_written_is_left_until_its_turn(open_ring, caplog):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill(2)
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        for _ in range(2):
            written.ring.forget(first, "its bytes changed")
        assert caplog.text.count("is not served any more: its bytes changed") == 1
        with pytest.raises(RevokedError, match="is gone: its bytes changed"):
            first.lease().__enter__()
        written.fill(1)
        assert first.path.exists()
        assert 1 not in written.names()
        written.fill(1)
        assert not first.path.exists()
        assert written.ring.info().pinned_bytes == 0


def test_one_that_is_evicted_and_read_may_be_forgotten(open_ring):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill()
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        written.fill(5)
        written.ring.forget(first, "its bytes changed")
        assert written.ring.info().pinned_bytes == 0
    assert not deleted_and_open(written.ring.options.directory)


def test_one_that_is_adopted_is_forgotten_as_well(open_ring):
    open_ring().fill(2)
    written = open_ring()
    adopt(written.ring)
    first = written.ring.segments()[0]
    first.path.unlink()
    with pytest.raises(RevokedError):
        first.lease().__enter__()
    assert written.names() == [2, 3, 4]


def test_what_is_held_is_let_go_when_it_is_closed(open_ring):
    written = open_ring(pinned=Share(size=10 * MB))
    written.fill()
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        written.fill(5)
        written.ring.close()
        assert first.revoked


def test_readers_pin_while_it_rotates(open_ring):
    written = open_ring(pinned=Share(size=20 * MB))
    failures = []
    ended = threading.Event()

    def read() -> None:
        seen = 0
        try:
            while not ended.is_set() or not seen:
                segments = written.ring.segments()
                with written.ring.pin(segments) as pins:
                    for segment in segments:
                        end = segment.index.committed
                        try:
                            with segment.lease() as descriptor:
                                body = os.pread(descriptor, end, 0)
                        except RevokedError:
                            continue  # it was gone before it was pinned
                        assert len(parse_pcap(body)) == segment.index.packets or (
                            segment.growing or segment.index.committed > end
                        )
                        seen += 1
                        pins.release(segment)
        except BaseException as exc:  # noqa: BLE001 - judged by the test
            failures.append(exc)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for each in readers:
        each.start()
    written.fill(40)
    ended.set()
    for each in readers:
        each.join()
    assert not failures
    assert written.ring.info().pinned_bytes == 0
    assert not written.ring._pins
    assert not deleted_and_open(written.ring.options.directory)


# Watching


def test_those_who_watch_are_called_until_they_end_it(open_ring):
    written = open_ring()
    calls = []
    end = written.ring.watch(lambda: calls.append(1))
    end_other = written.ring.watch(lambda: calls.append(2))
    written.ring.notify()
    end()
    end()
    written.ring.notify()
    end_other()
    written.ring.notify()
    assert calls == [1, 2, 2]


# Adopting


def test_what_an_earlier_run_left_is_there_again(open_ring, caplog):
    caplog.set_level(logging.INFO)
    written = open_ring()
    records = written.fill(2)
    end_ns = written.now_ns
    written = open_ring(now_ns=end_ns + 60 * SECOND)
    assert written.names() == [4]
    assert written.ring.info().adopting
    adopt(written.ring)
    assert not written.ring.info().adopting
    assert written.names() == [1, 2, 3, 4]
    assert "3 segments of an earlier run adopted" in caplog.text
    later = written.fill()
    assert written.ring.coverage() == (
        Interval(begin_ns=NOW, end_ns=end_ns),
        Interval(begin_ns=end_ns + 60 * SECOND, end_ns=written.now_ns),
    )
    found = [
        record
        for each in written.ring.segments()
        for record in parse_pcap(each.path.read_bytes())
    ]
    assert found == records + later
    infos = written.ring.segment_infos()
    assert [each.packets for each in infos] == [4, 4, 0, 4, 0]
    assert [each.growing for each in infos] == [False] * 4 + [True]
    info = written.ring.info()
    assert (info.segments, info.packets) == (5, 12)
    assert info.bytes == sum(each.bytes for each in infos)
    assert [each.begin_ns for each in info.coverage] == [NOW, end_ns + 60 * SECOND]


def test_the_newest_are_there_first(open_ring):
    open_ring().fill(3)
    written = open_ring()
    seen = []
    ended = threading.Event()
    adopt_one = written.ring.directory.adopt

    def watched(segment, following) -> None:
        adopt_one(segment, following)
        seen.append(segment.number)
        if len(seen) == 2:
            ended.set()

    written.ring.directory.adopt = watched
    written.ring.adopt(ended)
    assert seen == [4, 3]
    assert written.names() == [3, 4, 5]
    adopt(written.ring)
    assert written.names() == [1, 2, 3, 4, 5]


def test_what_is_not_yet_adopted_counts_and_goes_first(open_ring):
    open_ring(size=6 * MB).fill(5)
    written = open_ring(size=4 * MB)
    # Room for the first segment was made at once.
    assert on_disk(written.ring) == [3, 4, 5, 6, 7]
    written.fill(2)
    adopt(written.ring)
    assert written.names() == on_disk(written.ring) == [5, 6, 7, 8, 9]


def test_one_that_goes_while_it_is_looked_through_is_not_there_again(open_ring):
    open_ring().fill(2)
    written = open_ring()
    adopt_one = written.ring.directory.adopt

    def slow(segment, following) -> None:
        adopt_one(segment, following)
        if segment.number == 1:
            written.fill(4)
            segment.sidecar_path.write_text("{}")  # as if it were written just then

    written.ring.directory.adopt = slow
    adopt(written.ring)
    assert 1 not in written.names()
    assert not list(written.ring.options.directory.glob("ddump-0000000001-*"))


def test_one_that_cannot_be_adopted_is_left_alone_and_named(open_ring, caplog):
    open_ring().fill(2)
    written = open_ring()
    first = written.ring.options.directory / on_disk_name(written.ring, 1)
    first.write_bytes(bytes(100))
    adopt(written.ring)
    assert written.names() == [2, 3, 4]
    assert f"left alone: {first}: " in caplog.text
    written.fill(8)
    assert first.exists()


def on_disk_name(ring: Ring, number: int) -> str:
    (found,) = ring.options.directory.glob(f"ddump-{number:010}-*.pcap")
    return found.name


def test_the_drops_of_earlier_runs_are_known(open_ring):
    written = open_ring()
    written.tail.count_dropped(7, since_ns=0, until_ns=1)
    written.fill()
    written = open_ring()
    adopt(written.ring)
    assert written.ring.info().dropped == 7


def test_a_ring_of_another_link_type_leaves_these_alone(open_ring, caplog):
    open_ring().fill(2)
    written = open_ring(link=Link.SLL2)
    adopt(written.ring)
    # Their numbers do not count, but no file is replaced.
    assert written.names() == [2]
    assert on_disk(written.ring) == [1, 2, 2, 3]
    assert "link type 113, this ring's is 276" in caplog.text


# A disk that gets full


def test_others_that_fill_the_disk_make_it_shorter_and_it_grows_again(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 24 * MB) as disk:
        written = Written(disk, size=8 * MB, reserve=Share(size=2 * MB))
        written.fill(10)
        assert written.ring.info().shortened == ""
        assert len(written.names()) == 8
        filler = fill(disk, leave=0)
        written.fill(1)
        info = written.ring.info()
        assert "2MB are to stay free" in info.shortened
        assert info.limit_bytes < 8 * MB
        assert info.bytes <= info.limit_bytes
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize >= 2 * MB
        written.fill(5)
        assert caplog.text.count("the ring is shorter than 8MB") == 1
        filler.unlink()
        written.fill(10)
        assert written.ring.info().shortened == ""
        assert len(written.names()) == 8
        written.close()


def test_a_pinned_segment_gives_way_to_the_reserve(tmp_path):
    with small_disk(tmp_path / "disk", 24 * MB) as disk:
        written = Written(
            disk, size=8 * MB, reserve=Share(size=2 * MB), pinned=Share(size=8 * MB)
        )
        written.fill(7)
        first = written.ring.segments()[0]
        with written.ring.pin([first]):
            written.fill(2)
            assert not first.revoked
            fill(disk, leave=0)
            written.fill(1)
            assert first.revoked
        written.close()
