"""The growing end of the ring, where the disk does not take what it should."""

from __future__ import annotations

import errno
import os

import pytest

from ddump_worker.ring import Ring, RingOptions
from ddump_worker.sidecar import Sidecar, read_sidecar
from ddump_worker.tail import Tail
from support.captures import Record, parse_pcap, pcap_record
from support.disks import fill, small_disk

MB = 1_000_000
NOW = 1_700_000_000 * 10**9
BATCH = pcap_record(Record(NOW, bytes(240_000)), nano=True)
PER_SEGMENT = 4


class Written:
    """A ring of small segments and its end."""

    def __init__(self, path, **given) -> None:
        self.ring = Ring(
            RingOptions(
                **{
                    "directory": path / "ring",
                    "size": 8 * MB,
                    "segment_size": MB,
                    "reserve_bytes": 0,
                    "reserve_percent": 0,
                }
                | given
            )
        )
        self.tail = Tail(self.ring, now_ns=NOW, names=dict)

    def write(self, batches: int) -> None:
        for _ in range(batches):
            if not self.tail.fits(BATCH):
                self.tail.rotate(NOW)
                self.tail.flush(NOW)
            self.tail.append(BATCH, 1)

    def give_back(self) -> None:
        """Let go of what was taken ahead for the growing segment."""
        os.ftruncate(self.tail._descriptor, self.tail._segment.size)

    def numbers(self) -> list[int]:
        return [each.number for each in self.ring.segments()]

    def close(self) -> None:
        self.tail.close(NOW)
        self.ring.close()


@pytest.fixture
def written(tmp_path):
    """A ring on a disk of its own, of 16 MB."""
    with small_disk(tmp_path / "disk", 16 * MB) as disk:
        made = Written(disk, pinned=8 * MB)
        try:
            yield made
        finally:
            made.close()


def test_a_disk_that_is_full_in_the_middle_of_a_segment_costs_the_oldest(written):
    written.write(3 * PER_SEGMENT + 1)
    assert written.numbers() == [1, 2, 3, 4]
    written.give_back()
    fill(written.ring.options.directory.parent, leave=100_000)
    written.write(2)
    assert written.numbers() == [2, 3, 4]
    info = written.ring.info()
    assert (info.lost, info.shortened) == (0, "the disk is full")
    assert info.limit_bytes < 8 * MB
    # What was written in two parts is whole.
    growing = written.ring.segments()[-1]
    assert len(parse_pcap(growing.path.read_bytes())) == 3


def test_what_is_held_for_readers_goes_before_the_ring(written):
    written.write(PER_SEGMENT + 1)
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        written.write(8 * PER_SEGMENT)
        assert written.ring.info().pinned_bytes
        before = written.numbers()
        written.give_back()
        fill(written.ring.options.directory.parent, leave=100_000)
        written.write(1)
        assert first.revoked
        assert written.numbers() == before
        assert written.ring.info().pinned_bytes == 0


def test_a_pinned_segment_is_not_held_by_a_full_disk(written):
    written.write(PER_SEGMENT + 1)
    first = written.ring.segments()[0]
    with written.ring.pin([first]):
        written.give_back()
        fill(written.ring.options.directory.parent, leave=100_000)
        written.write(2)
        assert first.revoked
        assert written.ring.info().lost == 0


def refusing(directory, monkeypatch, *answers):
    """Let ``create`` fail with errors, in this order; ``None`` lets it be."""
    create = directory.create
    left = list(answers)
    sizes = []

    def answer(now_ns, *, size):
        sizes.append(size)
        error = left.pop(0) if left else None
        if error is not None:
            raise OSError(error, os.strerror(error))
        return create(now_ns, size=size)

    monkeypatch.setattr(directory, "create", answer)
    return sizes


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_segment_for_which_there_is_no_room_costs_the_oldest(
    written, monkeypatch, error
):
    written.write(3 * PER_SEGMENT)
    assert written.numbers() == [1, 2, 3]
    sizes = refusing(written.ring.directory, monkeypatch, error)
    written.write(1)
    assert written.numbers() == [2, 3, 4]
    assert sizes == [MB, MB]


def test_with_nothing_to_evict_it_takes_nothing_ahead(written, monkeypatch):
    written.write(PER_SEGMENT)
    full = errno.ENOSPC
    sizes = refusing(written.ring.directory, monkeypatch, full)
    written.write(1)
    assert sizes == [MB, 0]
    assert written.numbers() == [1, 2]
    growing = written.ring.segments()[-1]
    assert growing.disk_bytes == MB  # as much as it may come to


def test_with_no_room_at_all_the_old_one_grows(written, monkeypatch):
    written.write(PER_SEGMENT)
    full = errno.ENOSPC
    refusing(written.ring.directory, monkeypatch, full, full)
    written.write(1)
    (segment,) = written.ring.segments()
    assert segment.size > MB
    assert written.ring.info().state == (
        "no segment can be made: No space left on device"
    )
    written.write(1)
    assert written.numbers() == [1, 2]
    assert written.ring.info().state == "recording"


def test_after_the_clock_was_set_the_old_one_grows_where_it_must(written, monkeypatch):
    refusing(written.ring.directory, monkeypatch, errno.EMFILE, None)
    written.tail.step(NOW - 10**12)
    assert written.numbers() == [1]
    assert written.ring.info().state == "no segment can be made: Too many open files"
    written.tail.step(NOW - 10**12)
    assert [each.closed for each in written.ring.segments()] == [True, False]


def test_a_sidecar_that_cannot_be_written_is_written_later(written, caplog):
    written.write(1)
    (segment,) = written.ring.segments()
    # A directory in its place: it cannot be renamed over.
    segment.sidecar_path.unlink()
    segment.sidecar_path.mkdir()
    written.write(PER_SEGMENT)
    assert f"{segment.sidecar_path} cannot be written" in caplog.text
    segment.sidecar_path.rmdir()
    written.tail.refresh()
    assert read_sidecar(segment.sidecar_path) == Sidecar(
        begin_ns=NOW, end_ns=NOW, closed=True
    )


def test_an_evicted_segment_gets_no_sidecar(written):
    written.write(PER_SEGMENT)
    (segment,) = written.ring.segments()
    written.tail.rotate(NOW + 5)  # it settles
    assert written.ring.give_way()
    written.tail.refresh()
    written.tail.flush(NOW + 10)
    assert not segment.sidecar_path.exists()
    assert not written.ring.give_way()


def test_what_cannot_be_cut_at_its_end_is_named(written, caplog, monkeypatch):
    written.write(PER_SEGMENT)

    def refused(_descriptor, _size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refused)
        written.write(1)
    first = written.ring.segments()[0]
    assert f"{first.path} cannot be cut: Input/output error" in caplog.text
    assert first.disk_bytes == MB  # it still has what was taken ahead
