"""The recorder's thread, with a source that is scripted; and with real traffic below."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest

from ddump_common.api import Link
from ddump_common.errors import CaptureError
from ddump_common.window import Interval
from ddump_worker.recorder import RECORDING, Recorder, interface_names
from ddump_worker.ring import Ring, RingOptions
from ddump_worker.share import Share
from ddump_worker.sidecar import read_sidecar
from support.captures import Record, parse_pcap
from support.disks import fill, small_disk
from support.sources import ScriptedSource

MB = 1_000_000
SECOND = 10**9
NOW = 1_700_000_000 * SECOND
IN_FLIGHT = 50_000_000
PATIENCE = 10


class Clock:
    """A clock of the host that a test sets, and the steady one behind it."""

    def __init__(self) -> None:
        self.now_ns = NOW
        self.steady_ns = 0

    def advance(self, nanoseconds: int) -> None:
        self.steady_ns += nanoseconds
        self.now_ns += nanoseconds

    def realtime(self) -> int:
        return self.now_ns

    def steady(self) -> int:
        return self.steady_ns


class Recorded:
    """A recorder at work on a scripted source."""

    def __init__(self, path, *, names=dict, clock=None, **given) -> None:
        given = {
            "directory": path,
            "size": 4 * MB,
            "segment_size": MB,
            "reserve": Share(),
        } | given
        self.source = ScriptedSource()
        self.ring = Ring(RingOptions(**given))
        clocks = {}
        if clock is not None:
            clocks = {"clock": clock.realtime, "steady": clock.steady}
        self.recorder = Recorder(self.ring, self.source, names=names, **clocks)
        self._changed = threading.Condition()
        self._fed = 0
        self._done = 0
        self.ring.watch(self._on_change)

    def _on_change(self) -> None:
        # After the batch was committed, on the recorder's thread.
        with self._changed:
            self._done = self.source.packets
            self._changed.notify_all()

    def await_that(self, condition) -> None:
        """Wait until ``condition`` holds; looked at on each commit and flush."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def await_rounds(self, count: int) -> None:
        """Wait until the recorder has looked for packets so often again."""
        goal = self.recorder.rounds + count
        self.await_that(lambda: self.recorder.rounds >= goal)

    def feed(self, records: list[Record], *, each: int = 1) -> None:
        """Have ``records`` recorded, ``each`` of them in a batch."""
        self._fed += len(records)
        for at in range(0, len(records), each):
            self.source.feed(records[at : at + each])
        self.await_that(lambda: self._done == self._fed)

    def records(self) -> list[Record]:
        return [
            record
            for segment in self.ring.segments()
            for record in parse_pcap(segment.path.read_bytes())
        ]

    def close(self) -> None:
        self.recorder.stop()
        self.ring.close()
        assert self.source.closed.is_set()


@pytest.fixture
def record(tmp_path):
    """Start recorders in one directory, one after the other."""
    opened = []

    def make(path=tmp_path / "ring", **given) -> Recorded:
        while opened:
            opened.pop().close()
        opened.append(Recorded(path, **given))
        opened[-1].recorder.start()
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()


def some(count: int, *, at: int = NOW, size: int = 100) -> list[Record]:
    return [Record(at + number, bytes(size)) for number in range(count)]


def test_what_is_captured_is_in_a_file_at_once(record):
    recorded = record()
    records = some(100)
    recorded.feed(records, each=7)
    assert recorded.records() == records
    assert recorded.ring.info().state == RECORDING
    (segment,) = recorded.ring.segments()
    assert segment.growing


def test_when_it_is_stopped_all_that_waits_is_recorded(record):
    recorded = record()
    records = some(1000)
    for each in records:
        recorded.source.feed([each])
    recorded.recorder.stop()
    recorded.recorder.stop()
    assert recorded.records() == records
    assert recorded.recorder.failure is None
    assert recorded.ring.info().state == "ended"
    (segment,) = recorded.ring.segments()
    assert not segment.growing
    said = read_sidecar(segment.sidecar_path)
    assert said.closed
    assert said == segment.sidecar()
    assert segment.path.stat().st_blocks * 512 < MB


def test_what_an_open_block_hides_at_the_end_is_waited_for(record):
    recorded = record()
    recorded.source.hidden = 1
    ending = threading.Thread(target=recorded.recorder.stop)
    ending.start()
    assert recorded.source.stopped.wait(PATIENCE)
    records = some(1)
    recorded.source.feed(records)
    recorded.source.hidden = 0
    ending.join()
    assert recorded.records() == records


def test_what_is_never_shown_keeps_it_for_a_second_and_is_not_covered(record, caplog):
    recorded = record()
    recorded.await_that(lambda: recorded.ring.flushed_ns)
    recorded.source.hidden = 3
    began, began_ns = time.monotonic(), time.time_ns()
    recorded.recorder.stop()
    assert 1 <= time.monotonic() - began < 2
    assert recorded.ring.info().state == "ended"
    assert recorded.ring.info().dropped == 3
    assert recorded.ring.coverage()[-1].end_ns < began_ns
    assert caplog.messages == ["3 packets are left in the kernel's ring"]


def test_one_that_was_not_started_is_stopped(tmp_path):
    recorded = Recorded(tmp_path)
    recorded.close()


def test_an_empty_read_tells_how_far_it_is_flushed(record):
    clock = Clock()
    recorded = record(clock=clock)
    clock.advance(5 * SECOND)
    now_ns = clock.now_ns
    recorded.await_that(lambda: recorded.ring.flushed_ns == now_ns - IN_FLIGHT)
    assert recorded.ring.coverage() == (
        Interval(begin_ns=NOW, end_ns=now_ns - IN_FLIGHT),
    )
    clock.advance(SECOND)
    now_ns = clock.now_ns
    recorded.recorder.stop()
    # Whatever was captured until then is there.
    assert recorded.ring.coverage() == (
        Interval(begin_ns=NOW, end_ns=now_ns - IN_FLIGHT),
    )


def test_what_waits_in_the_kernel_holds_the_promise_whatever_the_clock_says(record):
    clock = Clock()
    recorded = record(clock=clock)
    recorded.await_that(lambda: recorded.ring.flushed_ns == NOW - IN_FLIGHT)
    recorded.source.hidden = 1
    recorded.await_rounds(2)
    clock.now_ns += SECOND // 2  # the steady one stands: it is not that long ago
    recorded.await_rounds(3)
    assert recorded.ring.flushed_ns == NOW - IN_FLIGHT
    assert recorded.ring.coverage() == ()
    recorded.source.hidden = 0
    recorded.feed(some(1))
    recorded.await_that(lambda: recorded.ring.flushed_ns == clock.now_ns - IN_FLIGHT)


def test_while_there_is_always_more_the_promise_goes_on(record):
    clock = Clock()
    recorded = record(clock=clock)
    recorded.await_that(lambda: recorded.ring.flushed_ns == NOW - IN_FLIGHT)
    source, stamps, seen = recorded.source, [], set()

    def come() -> None:
        stamps.append(clock.now_ns)
        source.feed(some(1, at=clock.now_ns))
        clock.advance(SECOND // 1000)

    def look() -> None:
        # After each batch, on the recorder's thread.
        if len(stamps) > 1:
            assert source.more
            seen.add(recorded.ring.flushed_ns)
            assert recorded.ring.flushed_ns <= stamps[source.packets]
            come()

    end = recorded.ring.watch(look)
    with source.held:
        come()
        come()
    recorded.await_that(lambda: recorded.ring.flushed_ns > NOW + SECOND // 10)
    end()
    assert len(seen) > 50


def test_while_more_waits_batches_become_larger(record):
    recorded = record(segment_size=64 * MB, size=128 * MB)
    with recorded.source.held:
        for packet in some(50):
            recorded.source.feed([packet])
    recorded.await_that(lambda: recorded.ring.info().packets == 50)
    targets = recorded.source.targets
    assert min(targets) == 256 << 10
    assert max(targets) == 4 << 20


def test_segments_are_filled_one_after_the_other(record):
    recorded = record()
    records = some(100, size=90_000)
    recorded.feed(records, each=2)
    kept = recorded.records()
    assert kept == records[-len(kept) :]
    sizes = [each.size for each in recorded.ring.segments()]
    assert max(sizes) <= MB
    assert min(sizes[:-1]) > MB - 2 * 90_016
    assert sum(sizes) <= 4 * MB


@pytest.mark.parametrize("jump", [-3600 * SECOND, 86_400 * SECOND])
def test_timestamps_that_jump_lose_nothing_from_any_window(record, jump):
    recorded = record()
    before, after = some(10), some(10, at=NOW + SECOND)
    jumped = some(10, at=NOW + jump)
    recorded.feed(before)
    recorded.feed(jumped)
    recorded.feed(after)
    assert recorded.records() == before + jumped + after
    (segment,) = recorded.ring.segments()
    for moment in (NOW, NOW + jump, NOW + SECOND):
        assert segment.index.overlaps(moment, moment + 1)
    assert segment.index.least_ns == min(NOW, NOW + jump)


def test_a_file_that_is_deleted_while_it_grows_is_followed_by_another(record):
    clock = Clock()
    recorded = record(clock=clock)
    recorded.feed(some(3))
    (first,) = recorded.ring.segments()
    first.path.unlink()
    clock.advance(3 * SECOND)
    recorded.await_that(
        lambda: [each.number for each in recorded.ring.segments()] == [2]
    )
    recorded.feed(records := some(3))
    assert recorded.records() == records


@pytest.mark.parametrize("step", [-3600 * SECOND, 86_400 * SECOND])
def test_a_clock_that_is_set_begins_a_stretch_of_its_own(record, step, caplog):
    clock = Clock()
    recorded = record(clock=clock)
    clock.advance(10 * SECOND)
    recorded.await_that(
        lambda: recorded.ring.flushed_ns == NOW + 10 * SECOND - IN_FLIGHT
    )
    clock.now_ns += step
    clock.advance(5 * SECOND)
    end_ns = clock.now_ns
    recorded.await_that(lambda: recorded.ring.flushed_ns == end_ns - IN_FLIGHT)
    clock.advance(SECOND)
    recorded.await_that(lambda: len(recorded.ring.coverage()) == 2)
    recorded.recorder.stop()
    assert set(recorded.ring.coverage()) == {
        Interval(begin_ns=NOW, end_ns=NOW + 10 * SECOND - IN_FLIGHT),
        # From when it was noticed.
        Interval(begin_ns=end_ns, end_ns=clock.now_ns - IN_FLIGHT),
    }
    assert "the clock went" in caplog.text
    # What the first segment will not take is free.
    assert recorded.ring.segments()[0].disk_bytes < MB


def test_the_kernels_drops_are_counted_for_each_segment(record):
    recorded = record()
    recorded.source.dropped = 5
    recorded.feed(some(12, size=90_000))
    recorded.source.dropped = 8
    recorded.recorder.stop()
    first, second = recorded.ring.segments()
    assert (first.drops.total, second.drops.total) == (5, 3)
    assert recorded.ring.info().dropped == 8
    assert read_sidecar(first.sidecar_path).dropped == 5


def test_sidecars_are_written_while_it_grows(record):
    clock = Clock()
    recorded = record(clock=clock)
    recorded.source.dropped = 4
    clock.advance(3 * SECOND)
    recorded.await_that(lambda: recorded.ring.info().dropped == 4)
    (segment,) = recorded.ring.segments()
    clock.advance(3 * SECOND)
    end_ns = clock.now_ns - IN_FLIGHT
    recorded.await_that(
        lambda: read_sidecar(segment.sidecar_path).end_ns == end_ns,
    )
    said = read_sidecar(segment.sidecar_path)
    assert (said.begin_ns, said.dropped, said.closed) == (NOW, 4, False)


def test_names_of_interfaces_are_kept_where_the_index_is(record):
    clock = Clock()
    names = {1: "lo", 2: "eth0"}
    recorded = record(clock=clock, link=Link.SLL2, names=lambda: dict(names))
    (segment,) = recorded.ring.segments()
    assert segment.interfaces == {1: {"lo"}, 2: {"eth0"}}
    del names[1]
    names.update({2: "wan", 3: "eth1"})
    clock.advance(3 * SECOND)
    both = {1: {"lo"}, 2: {"eth0", "wan"}, 3: {"eth1"}}
    recorded.await_that(lambda: segment.interfaces == both)
    recorded.recorder.stop()
    assert read_sidecar(segment.sidecar_path).interfaces == {
        "1": ["lo"],
        "2": ["eth0", "wan"],
        "3": ["eth1"],
    }


def test_names_that_cannot_be_had_are_no_reason_to_stop(record, caplog):
    def refused():
        raise CaptureError("netlink is silent")

    recorded = record(link=Link.SLL2, names=refused)
    recorded.feed(some(3))
    assert "names are not known: netlink is silent" in caplog.text


def test_the_names_are_those_of_this_host():
    assert interface_names()[1] == "lo"


# What goes wrong


@pytest.mark.parametrize("error", [CaptureError("no device"), ValueError()])
def test_an_unforeseen_error_ends_it_and_the_segments_stay(record, caplog, error):
    recorded = record()
    records = some(20)
    recorded.feed(records)
    recorded.source.fail(error)
    recorded.await_that(lambda: recorded.source.closed.is_set())
    assert recorded.recorder.failure is error
    assert recorded.ring.info().state == f"failed: {str(error) or 'ValueError'}"
    assert recorded.records() == records
    (segment,) = recorded.ring.segments()
    with segment.lease() as descriptor:
        assert os.pread(descriptor, 4, 0)
    assert not segment.growing
    assert segment.end_ns == max(segment.begin_ns, recorded.ring.flushed_ns)
    assert "nothing is recorded any more" in caplog.text


def test_a_batch_that_is_no_record_ends_it(record):
    recorded = record()
    records = some(2)
    recorded.feed(records)
    recorded.source.feed_bytes(b"\xff" * 100)
    recorded.await_that(lambda: recorded.source.closed.is_set())
    assert "byte 0 of 100 that were captured begins no record" in str(
        recorded.recorder.failure
    )
    assert recorded.ring.info().packets == 2
    (segment,) = recorded.ring.segments()
    assert segment.path.stat().st_size == segment.size


def test_a_directory_that_takes_no_segment_is_an_error_at_once(tmp_path, monkeypatch):
    recorded = Recorded(tmp_path / "ring")

    def refused(*_, **__):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(recorded.ring.directory, "create", refused)
    with pytest.raises(CaptureError, match=r"cannot record to .*/ring: Permission"):
        recorded.recorder.start()
    recorded.close()


def test_an_end_that_cannot_be_written_is_a_failure(record, monkeypatch):
    recorded = record()

    def refused(*_):
        raise RuntimeError("no end")

    monkeypatch.setattr("ddump_worker.tail.Tail.close", refused)
    recorded.recorder.stop()
    assert str(recorded.recorder.failure) == "no end"
    os.close(recorded.recorder._tail._descriptor)


def test_an_adoption_that_fails_does_not_end_it(record, caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("nonsense")

    monkeypatch.setattr("ddump_worker.ring.Ring.adopt", broken)
    recorded = record()
    recorded.feed(some(3))
    recorded.recorder.stop()
    assert recorded.recorder.failure is None
    assert "segments of an earlier run are missing" in caplog.text


def test_an_earlier_run_is_adopted_while_it_records(record):
    records = some(30, size=90_000)
    record().feed(records)
    recorded = record()
    recorded.await_that(lambda: not recorded.ring.info().adopting)
    assert recorded.records() == records
    assert len(recorded.ring.segments()) == 4


# A disk that is full


def test_a_full_disk_shortens_the_ring_and_loses_nothing_that_is_new(tmp_path, record):
    with small_disk(tmp_path / "disk", 16 * MB) as disk:
        recorded = record(disk / "ring", size=8 * MB)
        recorded.feed(some(90, size=90_000))
        before = len(recorded.ring.segments())
        # Also the room for the sidecars.
        fill(disk, leave=0)
        records = some(60, at=NOW + SECOND, size=90_000)
        recorded.feed(records)
        info = recorded.ring.info()
        assert info.lost == 0
        assert info.shortened
        assert info.state == RECORDING
        kept = recorded.records()
        assert kept[-10:] == records[-10:]
        assert 2 <= len(recorded.ring.segments()) <= before
        recorded.close()


def test_what_a_full_disk_does_not_take_is_counted_and_said_once(
    tmp_path, record, caplog
):
    caplog.set_level(logging.INFO)
    with small_disk(tmp_path / "disk", 16 * MB) as disk:
        recorded = record(disk / "ring", size=8 * MB)
        first = some(3)
        recorded.feed(first)
        (segment,) = recorded.ring.segments()
        # Somebody took what was taken ahead: the disk is full, with nothing to evict.
        os.ftruncate(recorded.recorder._tail._descriptor, segment.size)
        filler = fill(disk, leave=0)
        recorded.feed(some(10, size=90_000), each=2)
        assert recorded.ring.info().lost == 10
        assert "No space left" in recorded.ring.info().state
        assert caplog.text.count("the disk does not take packets") == 1
        assert segment.path.stat().st_size == segment.size
        filler.unlink()
        last = some(4, at=NOW + SECOND)
        recorded.feed(last)
        assert recorded.ring.info().state == RECORDING
        assert "does not take packets; 10 packets were lost" in caplog.text
        assert recorded.records() == first + last
        recorded.close()


def test_while_no_segment_can_be_made_what_comes_is_lost_and_counted(
    record, caplog, monkeypatch
):
    recorded = record()
    create = recorded.ring.directory.create
    refusing = True

    def refused(now_ns):
        if refusing:
            raise OSError(24, "Too many open files")
        return create(now_ns)

    monkeypatch.setattr(recorded.ring.directory, "create", refused)
    records = some(30, size=90_000)
    recorded.feed(records)
    (segment,) = recorded.ring.segments()
    assert segment.size <= MB
    kept = recorded.records()
    assert kept == records[: len(kept)]
    assert recorded.ring.info().lost == len(records) - len(kept)
    assert caplog.text.count("no segment can be made: Too many open files") == 1
    assert "Too many open files" in recorded.ring.info().state
    refusing = False
    recorded.feed(some(1, size=90_000))
    assert len(recorded.ring.segments()) == 2
    assert recorded.ring.info().state == RECORDING
