"""A segment's leases: who reads its bytes, and until when."""

from __future__ import annotations

import os
import threading

import pytest

from ddump_worker.segment import RevokedError, Segment
from support.captures import Record, pcap_header, pcap_record

RECORDS = [Record(10**18, bytes(20)), Record(10**18 - 5, b"x" * 40, 60)]


@pytest.fixture
def segment(tmp_path):
    made = Segment(
        tmp_path / "ddump-0000000001-20010909T014640Z.pcap",
        number=1,
        link_type=113,
        begin_ns=10**18,
        end_ns=10**18 + 7,
        interfaces={2: frozenset({"eth1", "eth0"})},
    )
    body = b"".join(pcap_record(each, nano=True) for each in RECORDS)
    made.path.write_bytes(pcap_header(nano=True) + body)
    assert made.index.append(body) == len(body)
    made.size = made.index.committed
    yield made
    made.revoke()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_lease_is_open_for_the_time_of_the_body(segment):
    with segment.lease() as descriptor:
        assert os.pread(descriptor, 4, 0) == b"\x4d\x3c\xb2\xa1"
        assert not os.get_inheritable(descriptor)
    assert not is_open(descriptor)


def test_a_kept_segment_is_read_without_its_name_until_it_is_revoked(segment):
    segment.keep()
    segment.path.unlink()
    with segment.lease() as first, segment.lease() as second:
        assert first != second
        segment.revoke()
        segment.revoke()
        # What is lent stays whole; nothing more is lent.
        assert len(os.pread(first, 1 << 16, 0)) == segment.size
        with pytest.raises(RevokedError, match=r"0001-20010909T014640Z\.pcap has left"):
            segment.lease().__enter__()
    assert segment.revoked
    assert not is_open(first)
    assert not is_open(second)


def test_a_revoked_segment_is_not_read_though_its_file_is_there(segment):
    segment.revoke()
    with pytest.raises(RevokedError):
        segment.lease().__enter__()


def test_a_file_that_somebody_deleted_is_gone(segment):
    segment.path.unlink()
    with pytest.raises(RevokedError):
        segment.lease().__enter__()
    with pytest.raises(FileNotFoundError):
        segment.keep()


def test_a_file_that_cannot_be_opened_is_an_error_of_its_own(segment):
    folder = segment.path.parent
    folder.rename(folder.with_name("away"))
    folder.touch()
    with pytest.raises(NotADirectoryError):
        segment.lease().__enter__()
    assert not segment.revoked


def as_link(segment):
    segment.path.unlink()
    segment.path.symlink_to("/etc/hostname")


def as_fifo(segment):
    segment.path.unlink()
    os.mkfifo(segment.path)


def as_copy(segment):
    body = segment.path.read_bytes()
    segment.path.rename(segment.path.with_suffix(".old"))
    segment.path.write_bytes(body)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda segment: segment.path.unlink(), "its file is missing"),
        (lambda segment: os.truncate(segment.path, 50), "cut to 50 of 116 bytes"),
        (as_link, "another file bears its name"),
        (as_fifo, "another file bears its name"),
        (as_copy, "another file bears its name"),
    ],
)
def test_what_a_stranger_did_to_its_file_is_reported(segment, change, words):
    status = segment.path.stat()
    segment.identity = (status.st_dev, status.st_ino)
    change(segment)
    with pytest.raises(OSError, match=words):
        segment.keep()
    reports = []

    def report(found, reason):
        reports.append(reason)
        found.revoke(reason)

    segment.report = report
    for _ in range(2):
        with pytest.raises(RevokedError, match=rf"0001-.*\.pcap is gone: .*{words}"):
            segment.lease().__enter__()
    assert len(reports) == 1


def test_one_that_is_revoked_is_not_kept(segment):
    segment.revoke()
    segment.keep()
    assert segment._kept is None


def test_one_that_is_let_go_is_read_by_its_name(segment):
    segment.keep()
    segment.let_go()
    with segment.lease() as descriptor:
        assert os.pread(descriptor, 4, 0)


def test_readers_go_on_while_the_name_goes(segment):
    failures = []
    going = threading.Event()
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                with segment.lease() as descriptor:
                    assert os.fstat(descriptor).st_size == segment.size
                going.set()
        except BaseException as exc:  # noqa: BLE001 - judged by the test
            failures.append(exc)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for each in readers:
        each.start()
    assert going.wait(5)
    segment.keep()
    segment.path.unlink()
    going.clear()
    assert going.wait(5)
    ended.set()
    for each in readers:
        each.join()
    assert not failures


def test_its_facts(segment):
    info = segment.info()
    assert (info.packets, info.bytes) == (2, 24 + 32 + 60 - 4 + 4)
    assert (info.least_ns, info.greatest_ns) == (10**18 - 5, 10**18)
    assert (info.name, info.growing) == (segment.path.name, False)
    assert repr(segment) == f"<Segment {segment.path.name}>"
    said = segment.sidecar()
    assert said.interfaces == {"2": ["eth0", "eth1"]}
    assert (said.begin_ns, said.end_ns, said.closed) == (10**18, 10**18 + 7, False)
    assert segment.sidecar_path.name == "ddump-0000000001-20010909T014640Z.json"
