"""A recorder that is killed at any moment: what it leaves is whole, and told truly."""

from __future__ import annotations

import random
import struct
import threading
import time

from ddump_worker.ring import Ring, RingOptions
from ddump_worker.share import Share
from support.killed import NUMBER, RING_SIZE, SEGMENT_SIZE, victim

ROUNDS = 25
LONGEST_SECONDS = 0.15


def whole_records(data: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """Return where the whole records end, and of each the time and the two numbers."""
    found = []
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, caplen, _ = struct.unpack_from("<IIII", data, at)
        if at + 16 + caplen > len(data):
            break
        found.append((seconds * 10**9 + fraction, *NUMBER.unpack_from(data, at + 16)))
        at += 16 + caplen
    return at, found


def check_numbers(found: list[tuple[int, int, int]]) -> None:
    """Of each life all is there from some packet on, and from 0 on but of the first."""
    lives: dict[int, list[int]] = {}
    for _, life, number in found:
        lives.setdefault(life, []).append(number)
    assert list(lives) == sorted(lives)
    for position, numbers in enumerate(lives.values()):
        first = numbers[0] if position == 0 else 0
        assert numbers == list(range(first, first + len(numbers)))


def test_all_whole_records_are_there_again(tmp_path):
    directory = tmp_path / "ring"
    chooser = random.Random(7)  # noqa: S311 - which moments does not matter
    options = RingOptions(
        directory=directory,
        size=RING_SIZE,
        segment_size=SEGMENT_SIZE,
        reserve=Share(),
    )
    with victim(directory) as killed:
        for _ in range(ROUNDS):
            killed.kill_after(chooser.uniform(0, LONGEST_SECONDS))
            killed_ns = time.time_ns()
            left = {path.name: path.read_bytes() for path in directory.glob("*.pcap")}
            ring = Ring(options)
            ring.adopt(threading.Event())
            segments = ring.segments()
            assert [each.name for each in segments] == sorted(
                name for name, data in left.items() if len(data) >= 24
            )
            found = []
            for segment in segments:
                end, records = whole_records(left[segment.name])
                assert segment.path.read_bytes() == left[segment.name][:end]
                assert segment.index.packets == len(records)
                assert segment.size == end
                found += records
            check_numbers(found)
            used = sum(path.stat().st_blocks * 512 for path in directory.glob("*.pcap"))
            assert used <= RING_SIZE + 4096 * len(segments)
            for each in ring.coverage():
                assert each.end_ns <= killed_ns
                # What is said to be covered is there, as far as it was not evicted.
                assert each.end_ns <= max(stamp for stamp, _, _ in found)
            names = {each.path.name for each in segments}
            names |= {each.sidecar_path.name for each in segments} | {"lock"}
            assert {each.name for each in directory.iterdir()} <= names
            ring.close()
