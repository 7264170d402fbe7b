"""Ways to drive the merge kernel that more than one test file needs."""

from __future__ import annotations

from itertools import pairwise

from ddump_merger._merge import Merge
from ddump_merger.counters import Counters
from support.captures import SLL, parse_records

__all__ = ["drain", "merge_whole", "pieces", "read_alone"]


def drain(merge) -> bytes:
    """Return all that may leave now. An interface gets the number of its input."""
    parts = []
    while True:
        while data := merge.data_to_send():
            parts.append(data)
        described = merge.undescribed()
        if described is None:
            return b"".join(parts)
        merge.describe(*described, described[0])


def pieces(data, cuts) -> list[bytes]:
    """Return ``data`` cut at the offsets ``cuts``."""
    bounds = sorted({0, len(data), *(cut for cut in cuts if 0 < cut < len(data))})
    return [data[start:end] for start, end in pairwise(bounds)]


def merge_whole(captures, *, link_type=SLL, **options) -> bytes:
    """Merge whole captures, each given in one piece."""
    merge = Merge(len(captures), **options)
    merge.start(link_type)
    for i, capture in enumerate(captures):
        merge.receive_data(i, capture)
        merge.receive_eof(i)
    data = drain(merge)
    assert merge.done
    assert [merge.buffered(i) for i in range(len(captures))] == [0] * len(captures)
    return data


def read_alone(parts, *, link_type=SLL):
    """Return the records of one input that comes in ``parts``, to the nanosecond.

    What is wrong with it is raised when it comes, after the records before it were
    seen to be kept: they are the ``records`` of the exception's notes.
    """
    merge = Merge(1, nano=True)
    merge.start(link_type)
    try:
        for part in parts:
            merge.receive_data(0, part)
        merge.receive_eof(0)
    except Exception as exc:
        exc.records = parse_records(drain(merge), nano=True)
        assert merge.done
        raise
    records = parse_records(drain(merge), nano=True)
    assert merge.done
    assert merge.counters(0) == Counters(
        packets=len(records), octets=sum(len(record.data) for record in records)
    )
    return records
