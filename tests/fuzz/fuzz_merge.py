"""The invariant: whatever bytes the inputs of a merge send, in whatever pieces, and
whatever is asked of it in between, then

* nothing but a FormatError comes out of ``receive_data`` and ``receive_eof``, it ends
  that input alone, and no read or write leaves its buffer (run it under ASan: fuzz.sh);
* what an input delivers, and the error that ends it, do not depend on the pieces;
* every record that was accepted leaves exactly once, in a capture that is whole, and
  late ones, and only those, are counted;
* when all inputs have ended and all has left, nothing is held.

Usage: fuzz_merge.py --seconds N [--seed S]. It prints the seed of each failure, which
runs that case again.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddump_common.errors import FormatError
from ddump_merger._merge import Merge
from support.captures import SLL, SLL2, late_in, parse_blocks, parse_records
from support.fuzzing import fuzz
from support.hostile import any_capture, any_split, tampered
from support.merges import drain

MAX_OUTPUT = 262_144 + 64


def read_in(parts, *, pcapng):
    """Return what one input alone delivers, and how it ends."""
    merge = Merge(1, nano=True, pcapng=pcapng)
    merge.start(SLL)
    error = None
    try:
        for part in parts:
            merge.receive_data(0, part)
        merge.receive_eof(0)
    except FormatError as exc:
        error = (type(exc), str(exc), exc.offset)
    assert error is None or 0 <= error[2] <= sum(map(len, parts))
    data = drain(merge)
    assert merge.done
    assert merge.buffered(0) == 0
    return data, error


def drive(rng, merge, splits):
    """Send all pieces in some order, asking for this and that; return what comes out."""
    waiting = dict(enumerate(map(iter, splits)))
    refused = set()
    out = []

    def take():
        data = merge.data_to_send()
        assert len(data) <= MAX_OUTPUT
        out.append(data)

    while waiting:
        i = rng.choice(list(waiting))
        assert merge.lagging() in waiting
        try:
            part = next(waiting[i], None)
            if part is None:
                del waiting[i]
                merge.receive_eof(i)
            else:
                merge.receive_data(i, part)
        except FormatError:
            waiting.pop(i, None)
        match rng.randrange(30):
            case 0:
                merge.advance(i, rng.randrange(-10, 20 * 10**9))
            case 1:
                merge.limit(i, rng.randrange(5000), live=rng.random() < 0.5)
            case 2 if rng.random() < 0.2:
                merge.refuse(i)
                refused.add(i)
                waiting.pop(i, None)
            case 3 | 4 | 5:
                take()
            case _:
                pass
    while not merge.done:
        take()
        assert out[-1]
    assert merge.lagging() == -1
    return b"".join(out), refused


def check_merge(rng, splits, expected):
    """Merge the inputs together; what comes out must be what each delivers alone."""
    pcapng = rng.random() < 0.5
    merge = Merge(
        len(splits), disorder_ns=rng.choice((0, 3, 10**9)), nano=True, pcapng=pcapng
    )
    merge.start(rng.choice((SLL, SLL2)))
    out, refused = drive(rng, merge, splits)
    if pcapng:
        packets = parse_blocks(out)
        times = [units for _, units, _ in packets]
    else:
        packets = parse_records(out, nano=True)
        times = [packet.timestamp_ns for packet in packets]
    counters = [merge.counters(i) for i in range(len(splits))]
    assert sum(each[0] for each in counters) == len(packets)
    assert sum(each[2] for each in counters) == late_in(times)
    for i, (packets_alone, _) in enumerate(expected[pcapng]):
        assert merge.buffered(i) == 0
        if i not in refused:
            assert counters[i][0] == packets_alone


def check(seed):
    """Make one case of the seed and judge it."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    inputs = []
    for _ in range(rng.randrange(1, 5)):
        data = (
            rng.randbytes(rng.randrange(200))
            if rng.random() < 0.05
            else any_capture(rng)
        )
        inputs.append(tampered(rng, data))
    expected = {}
    for pcapng in (False, True):
        expected[pcapng] = []
        for data in inputs:
            whole = read_in([data], pcapng=pcapng)
            pieces = read_in(any_split(rng, data), pcapng=pcapng)
            assert pieces == whole, "the pieces change the result"
            parsed = parse_blocks(whole[0]) if pcapng else parse_records(whole[0])
            expected[pcapng].append((len(parsed), whole[1]))
    check_merge(rng, [any_split(rng, data) for data in inputs], expected)


if __name__ == "__main__":
    fuzz(check)
