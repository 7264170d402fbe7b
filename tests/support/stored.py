"""Segments of a ring on disk, indexed by the kernel, and what a plain reading of them gives.

The oracle is slow and obvious: it reads a whole file, sorts all records stably, and takes
those of the window.
"""

from __future__ import annotations

import os
import struct
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field

from ddump_worker._ring import HEADER_BYTES, Cutter, Index
from support.captures import (
    SLL,
    SLL2,
    Record,
    parse_blocks,
    parse_records,
    pcap_header,
    pcap_record,
)

__all__ = [
    "COOKED",
    "Stored",
    "body_of",
    "cut_all",
    "follow_all",
    "parts_of",
    "readable",
    "records_in",
    "stored",
    "tagged",
    "untagged",
    "window_of",
]

COOKED = {SLL: 16, SLL2: 20}
MAX_CAPLEN = 262_144
TAGS = (b"\x81\x00", b"\x88\xa8")


@dataclass(slots=True)
class Stored:
    """A segment: the open file, its index, its records."""

    descriptor: int
    index: Index
    records: list[Record]
    link_type: int = SLL

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size


def body_of(records) -> bytes:
    return b"".join(pcap_record(record, nano=True) for record in records)


def stored(records, *, link_type=SLL, batch=1 << 18) -> Stored:
    """Write a segment to a file without a name and index it in batches."""
    body = body_of(records)
    descriptor = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR, 0o600)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(pcap_header(nano=True, link_type=link_type) + body)
    index = Index(link_type=link_type)
    at = 0
    while at < len(body):
        taken = index.append(body[at : at + batch])
        if taken == 0:
            batch *= 2
        at += taken
    return Stored(descriptor, index, list(records), link_type)


@dataclass(slots=True)
class Parts:
    """Segments in order of arrival."""

    segments: list[Stored] = field(default_factory=list)

    @property
    def descriptors(self) -> list[int]:
        return [segment.descriptor for segment in self.segments]

    @property
    def records(self) -> list[Record]:
        return [record for segment in self.segments for record in segment.records]

    def cutter(self, **options) -> Cutter:
        """Return a cutter to which all segments are added; nanoseconds by default."""
        link_type = self.segments[0].link_type if self.segments else SLL
        options = {
            "link_type": link_type,
            "output_link_type": link_type,
            "nano": True,
            **options,
        }
        cutter = Cutter(**options)
        for number, segment in enumerate(self.segments):
            assert cutter.add(segment.index, segment.index.committed) == number
        return cutter


@contextmanager
def parts_of(*segments, **options):
    """Store each list of records as a segment; close the files at the end."""
    parts = Parts()
    try:
        parts.segments.extend(stored(records, **options) for records in segments)
        yield parts
    finally:
        for descriptor in parts.descriptors:
            os.close(descriptor)


def tagged(data, kind=TAGS[0], number=7) -> bytes:
    """Return a packet of SLL with the VLAN tag that libpcap puts into it."""
    return data[:14] + kind + number.to_bytes(2, "big") + data[14:]


def untagged(record) -> Record:
    """Return what a live filter saw of a record of SLL."""
    data = record.data
    if data[14:16] not in TAGS:
        return record
    whole = data + bytes(18)
    seen = (whole[:14] + whole[18:])[: len(data) - 4]
    return Record(record.timestamp_ns, seen, record.length - 4)


def window_of(records, since_ns=0, until_ns=1 << 63) -> list[Record]:
    """Return the records of the window in order of time and arrival."""
    inside = [each for each in records if since_ns <= each.timestamp_ns < until_ns]
    return sorted(inside, key=lambda each: each.timestamp_ns)


def cut_all(cutter, descriptors, max_bytes=1 << 18, *, pcapng=False) -> bytes:
    """Cut until nothing comes any more; check what is said of it meanwhile."""
    largest = 32 + MAX_CAPLEN if pcapng else 16 + MAX_CAPLEN
    data = []
    while not cutter.exhausted and not cutter.finished:
        position = cutter.position_ns
        data.append(cutter.cut(descriptors.__getitem__, max_bytes))
        assert len(data[-1]) < max_bytes + largest
        assert position <= cutter.position_ns
        times = [each.timestamp_ns for each in records_in(data[-1], pcapng=pcapng)]
        assert all(position <= time for time in times)
    assert cutter.cut(descriptors.__getitem__, max_bytes) == b""
    assert not any(cutter.needs(part) for part in range(len(descriptors)))
    return b"".join(data)


def follow_all(cutter, segments, max_bytes=1 << 18) -> bytes:
    """Follow each segment to the end of what is indexed."""
    data = []
    for segment in segments:
        offset = HEADER_BYTES
        while offset < segment.index.committed and not cutter.finished:
            part, after = cutter.follow(
                segment.descriptor, segment.index, offset, max_bytes
            )
            assert len(part) < max_bytes + 32 + MAX_CAPLEN
            assert after > offset
            offset = after
            data.append(part)
    return b"".join(data)


def records_in(data, *, pcapng=False) -> list[Record]:
    """Return the records of a capture in nanoseconds, or of enhanced packet blocks."""
    if not pcapng:
        return parse_records(data, nano=True)
    found = []
    for number, timestamp_ns, record in parse_blocks(data):
        assert number == 0
        found.append(Record(timestamp_ns, record.data, record.length))
    return found


def readable(body, link_type) -> tuple[list[Record], int, bool]:
    """Return the valid records at the beginning of ``body``, their bytes, and whether
    something that is no record follows (False: nothing, or a part of one)."""
    records = []
    at = 0
    while at + 16 <= len(body):
        seconds, fraction, caplen, length = struct.unpack_from("<IIII", body, at)
        if not (
            fraction < 10**9
            and 1 <= caplen <= min(length, MAX_CAPLEN)
            and COOKED[link_type] <= length <= 1 << 31
        ):
            return records, at, True
        if at + 16 + caplen > len(body):
            break
        data = body[at + 16 : at + 16 + caplen]
        records.append(Record(seconds * 10**9 + fraction, data, length))
        at += 16 + caplen
    return records, at, False
