"""The growing end of the ring, where the disk does not take what it should."""

from __future__ import annotations

import errno
import os

import pytest

from ddump_worker import tail
from ddump_worker.ring import Ring, RingOptions
from ddump_worker.segment import RevokedError
from ddump_worker.share import Share
from ddump_worker.sidecar import Mark, Sidecar, read_sidecar
from ddump_worker.tail import Tail
from support.captures import Record, parse_pcap, pcap_record
from support.disks import fill, small_disk

MB = 1_000_000
S = 10**9
NOW = 1_700_000_000 * S
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
                    "reserve": Share(),
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
        made = Written(disk, pinned=Share(size=8 * MB))
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

    def answer(now_ns):
        error = left.pop(0) if left else None
        if error is not None:
            raise OSError(error, os.strerror(error))
        return create(now_ns)

    monkeypatch.setattr(directory, "create", answer)
    return left


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_segment_for_which_there_is_no_room_costs_the_oldest(
    written, monkeypatch, error
):
    written.write(3 * PER_SEGMENT)
    assert written.numbers() == [1, 2, 3]
    left = refusing(written.ring.directory, monkeypatch, error)
    written.write(1)
    assert written.numbers() == [2, 3, 4]
    assert not left


def test_with_nothing_to_evict_it_takes_nothing_ahead(written, monkeypatch):
    written.write(PER_SEGMENT)
    errors = [errno.ENOSPC]

    def full(_descriptor, size):
        assert size == MB
        error = errors.pop()
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("ddump_worker.tail.preallocate", full)
    written.write(1)
    assert not errors
    assert written.numbers() == [1, 2]
    growing = written.ring.segments()[-1]
    assert growing.disk_bytes == MB  # as much as it may come to


def test_with_no_room_at_all_what_comes_is_lost(written, monkeypatch):
    written.write(PER_SEGMENT)
    refusing(written.ring.directory, monkeypatch, errno.ENOSPC)
    written.write(1)
    (segment,) = written.ring.segments()
    assert segment.size <= segment.disk_bytes == MB
    assert segment.losses.total == 1
    assert written.ring.info().state == (
        "no segment can be made: No space left on device"
    )
    written.write(1)
    assert written.numbers() == [1, 2]
    assert written.ring.info().state == "recording"


def test_room_that_is_taken_ahead_costs_the_oldest(written, monkeypatch):
    written.write(3 * PER_SEGMENT)
    take = tail.preallocate
    errors = [errno.EDQUOT]

    def full(descriptor, size):
        if errors:
            error = errors.pop()
            raise OSError(error, os.strerror(error))
        take(descriptor, size)

    monkeypatch.setattr(tail, "preallocate", full)
    written.write(1)
    assert written.numbers() == [2, 3, 4]
    growing = written.ring.segments()[-1]
    assert growing.path.stat().st_blocks * 512 >= MB


def test_one_that_cannot_have_its_room_leaves_nothing(written, monkeypatch):
    written.write(PER_SEGMENT)

    def refused(_descriptor, _size):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with monkeypatch.context() as patch:
        patch.setattr("ddump_worker.tail.preallocate", refused)
        written.write(1)
    assert len(list(written.ring.options.directory.glob("*.pcap"))) == 1
    assert written.ring.info().state == "no segment can be made: File too large"
    written.write(1)
    assert written.numbers() == [1, 3]


def test_a_directory_that_is_away_costs_nothing_that_is_in_it(written, caplog):
    written.write(3 * PER_SEGMENT + 1)
    before = written.numbers()
    here = written.ring.options.directory
    away = here.with_name("away")
    here.rename(away)
    written.write(50)
    sizes = [each.stat().st_blocks * 512 for each in away.glob("*.pcap")]
    assert sum(sizes) <= 8 * MB
    assert max(each.stat().st_size for each in away.glob("*.pcap")) <= MB
    assert written.numbers() == before
    assert written.ring.evicted == 0
    info = written.ring.info()
    assert info.lost == 50 - (PER_SEGMENT - 1)
    assert info.state == "no segment can be made: No such file or directory"
    assert caplog.text.count("no segment can be made") == 1
    away.rename(here)
    written.write(1)
    assert written.numbers() == [*before, before[-1] + 1]
    assert written.ring.info().state == "recording"
    assert f"no segment can be made; {info.lost} packets were lost" in caplog.text


def test_when_packets_were_that_are_lost_is_known_in_the_next_run_too(written):
    def batch(*seconds):
        return b"".join(
            pcap_record(Record(NOW + each * S, bytes(90_000)), nano=True)
            for each in seconds
        )

    written.tail.append(batch(1), 1)
    written.give_back()
    filler = fill(written.ring.options.directory.parent, leave=0)
    written.tail.append(batch(3, 2), 2)
    written.tail.append(batch(5), 1)
    filler.unlink()
    written.tail.append(batch(7), 1)
    (segment,) = written.ring.segments()
    assert segment.losses.total == 3
    written.tail.refresh()
    said = read_sidecar(segment.sidecar_path)
    assert (said.lost, said.lost_marks) == (
        3,
        [Mark(NOW + 2 * S, NOW + 3 * S, 2), Mark(NOW + 5 * S, NOW + 5 * S, 1)],
    )


def test_what_is_lost_is_not_covered(written):
    written.write(PER_SEGMENT)
    written.tail.flush(NOW + S)
    here = written.ring.options.directory
    away = here.with_name("away")
    here.rename(away)
    written.tail.rotate(NOW + 2 * S)
    written.tail.append(BATCH, 1)
    written.tail.flush(NOW + 3 * S)
    assert [each.end_ns for each in written.ring.coverage()] == [NOW + S]
    away.rename(here)
    written.tail.rotate(NOW + 4 * S)
    written.tail.append(BATCH, 1)
    written.tail.flush(NOW + 5 * S)
    before, after = written.ring.coverage()
    assert (before.end_ns, after.begin_ns) == (NOW + S, NOW + 4 * S)


def test_nothing_is_forgotten_while_the_directory_is_away(written):
    written.write(3 * PER_SEGMENT)
    segments = written.ring.segments()
    here = written.ring.options.directory
    away = here.with_name("away")
    here.rename(away)
    with pytest.raises(RevokedError), segments[0].lease():
        pass
    away.rename(here)
    with segments[0].lease() as descriptor:
        assert os.fstat(descriptor).st_size == segments[0].size
    assert written.ring.segments() == segments


def test_what_cannot_be_deleted_counts_and_others_go(written, monkeypatch, caplog):
    written.write(8 * PER_SEGMENT)
    immutable = set(written.ring.segments()[:2])
    discard = written.ring.directory.discard

    def refused(segment):
        if segment in immutable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        discard(segment)

    monkeypatch.setattr(written.ring.directory, "discard", refused)
    written.write(3 * PER_SEGMENT)
    assert written.numbers() == [1, 2, 6, 7, 8, 9, 10, 11]
    assert written.ring.info().limit_bytes == 8 * MB
    for each in immutable:
        with each.lease():
            pass
        assert caplog.text.count(f"{each.path} cannot be deleted") == 1
    immutable.clear()
    written.write(PER_SEGMENT)
    assert written.numbers()[0] == 2


def test_where_nothing_can_be_deleted_nothing_is_made(written, monkeypatch):
    written.write(8 * PER_SEGMENT)
    before = written.numbers()

    def refused(_segment):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(written.ring.directory, "discard", refused)
        written.write(20)
        assert written.numbers() == before
        assert written.ring.info().lost == 20
        # One was made, and could not be taken away.
        made = list(written.ring.options.directory.glob("*.pcap"))
        assert len(made) == len(before) + 1
        assert "cannot be deleted" in written.ring.info().state
    written.write(1)
    assert written.ring.info().state == "recording"
    assert written.numbers()[0] == 2


@pytest.mark.parametrize(
    "change", [lambda path: path.unlink(), lambda path: os.truncate(path, 1000)]
)
def test_a_growing_file_that_a_stranger_took_is_followed_by_another(
    written, change, caplog
):
    written.write(PER_SEGMENT + 2)
    growing = written.ring.segments()[-1]
    change(growing.path)
    written.tail.refresh()
    assert f"{growing.path} is not served any more: its file " in caplog.text
    assert written.numbers() == [1]
    written.write(1)
    assert written.numbers() == [1, 3]
    assert written.ring.info().lost == 0


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
        begin_ns=NOW, end_ns=NOW, closed=True, run=segment.run
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
