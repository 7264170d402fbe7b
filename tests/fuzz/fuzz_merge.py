"""The invariant: whatever bytes the inputs of a merge send, in whatever pieces, and
whatever is asked of it in between, then

* nothing but a FormatError comes out of ``receive_data`` and ``receive_eof``, it ends
  that input alone, and no read or write leaves its buffer (run it under ASan: fuzz.sh);
* what an input delivers, what is known of it, and the error that ends it, do not depend
  on the pieces;
* every record that was accepted leaves exactly once, in a capture that is whole, or is
  counted as joined; late ones, and only those, are counted; that goes for inputs that
  are suspended, shifted, opened anew, with a seam or without, as well;
* when all inputs have ended and all has left, nothing is held.

Usage: fuzz_merge.py --seconds N [--seed S]. It prints the seed of each failure, which
runs that case again.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddump_common.errors import FormatError
from ddump_merger._merge import Merge, Seam
from support.captures import SLL, SLL2, late_in, parse_blocks, parse_records
from support.fuzzing import fuzz
from support.hostile import any_capture, any_split, tampered
from support.merges import drain

MAX_OUTPUT = 262_144 + 64
MAX_REOPENED = 6


def any_input(rng):
    noise = rng.random() < 0.05
    data = rng.randbytes(rng.randrange(200)) if noise else any_capture(rng)
    return tampered(rng, data)


def read_in(parts, *, pcapng, trusted):
    """Return what one input alone delivers, what is known of it, and how it ends."""
    merge = Merge(1, nano=True, pcapng=pcapng)
    merge.start(SLL)
    if trusted:
        merge.trust(0)
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
    return data, error, merge.heartbeat(0), merge.progress(0), merge.counters(0)


def check_pieces(rng, data):
    """The pieces change nothing; nor do they change what a seam keeps."""
    pcapng, trusted = rng.random() < 0.5, rng.random() < 0.5
    parts = any_split(rng, data)
    whole = read_in([data], pcapng=pcapng, trusted=trusted)
    pieces = read_in(parts, pcapng=pcapng, trusted=trusted)
    assert pieces == whole, "the pieces change the result"
    offset, first, _ = whole[3]
    assert 0 <= first <= offset <= len(data)
    seams = [seam_of(each, 0) for each in ([data], parts)]
    assert len({None if seam is None else len(seam) for seam in seams}) == 1
    if seams[0] is not None:
        known = len(seams[0])
        seams[0].next_stream()
        for part in parts:
            seams[0].receive_data(part)
        assert len(seams[0]) == known, "what came twice had come once"


def seam_of(parts, since_ns):
    """Return a seam of a capture, ``None`` when it is none."""
    seam = Seam(since_ns)
    try:
        for part in parts:
            seam.receive_data(part)
    except FormatError:
        return None
    return seam


def counters_at_end(alone):
    with suppress(FormatError):
        alone.receive_eof(0)
    drain(alone)
    assert alone.done
    return alone.counters(0)


class Case:
    """A merge that is driven at random, and what must be true of it.

    ``alone`` is, of each capture that an input read, a merge that reads nothing else.
    """

    def __init__(self, rng):
        self.rng = rng
        self.count = rng.randrange(1, 5)
        self.pcapng = rng.random() < 0.5
        self.link_type = rng.choice((SLL, SLL2))
        self.merge = self.new_merge(
            self.count,
            disorder_ns=rng.choice((0, 3, 10**9)),
            per_interface=rng.random() < 0.5,
        )
        self.waiting = {}
        self.sent = {}
        self.alone = {i: [] for i in range(self.count)}
        self.shifts = [0] * self.count
        self.suspended = set()
        self.refused = set()
        self.refills = False
        self.reopened = 0
        self.described = []
        self.out = []
        for i in range(self.count):
            self.begin(i)

    def new_merge(self, inputs, **options):
        merge = Merge(inputs, nano=True, pcapng=self.pcapng, **options)
        merge.start(self.link_type)
        return merge

    def begin(self, i):
        """Have the input read another capture."""
        data = any_input(self.rng)
        self.sent[i] = data
        self.waiting[i] = iter(any_split(self.rng, data))
        alone = self.new_merge(1)
        alone.shift(0, self.shifts[i])
        self.alone[i].append(alone)

    def read(self, i):
        """Give the input its next piece, or its end; the same to the one alone."""
        part = next(self.waiting[i], None)
        errors = []
        for merge, number in ((self.merge, i), (self.alone[i][-1], 0)):
            try:
                if part is None:
                    merge.receive_eof(number)
                else:
                    merge.receive_data(number, part)
                errors.append(None)
            except FormatError as exc:
                errors.append(str(exc))
        assert errors[0] == errors[1]
        assert self.merge.heartbeat(i) == self.alone[i][-1].heartbeat(0)
        assert self.merge.progress(i) == self.alone[i][-1].progress(0)
        if part is None or errors[0]:
            del self.waiting[i]

    def take(self):
        data = self.merge.data_to_send()
        assert len(data) <= MAX_OUTPUT
        self.out.append(data)
        asked = self.merge.undescribed()
        if asked is not None:
            assert self.pcapng
            assert asked not in self.described
            assert not self.merge.data_to_send()
            self.merge.describe(*asked, len(self.described))
            self.described.append(asked)
        return bool(data) or asked is not None

    def trust(self, i):
        for merge, number in ((self.merge, i), (self.alone[i][-1], 0)):
            if i in self.waiting:
                merge.trust(number)

    def shift(self, i):
        self.shifts[i] = self.rng.choice((0, 1, -1, 10**9, -(10**9), 1 << 62))
        for merge, number in ((self.merge, i), (self.alone[i][-1], 0)):
            merge.shift(number, self.shifts[i])

    def suspend(self, i):
        self.merge.suspend(i)
        self.suspended.add(i)

    def resume(self, i):
        self.merge.resume(i)
        self.suspended.discard(i)

    def reopen(self, i):
        if self.reopened == MAX_REOPENED:
            return
        self.reopened += 1
        since_ns = self.rng.randrange(-10, 20 * 10**9)
        known = self.rng.choice((self.sent[i], any_input(self.rng)))
        seam = seam_of(any_split(self.rng, known), self.rng.choice((0, since_ns)))
        self.merge.reopen(i, since_ns=since_ns, seam=seam)
        again = self.sent[i]
        self.begin(i)
        if self.rng.random() < 0.5:  # the same once more
            self.sent[i] = again
            self.waiting[i] = iter(any_split(self.rng, again))

    def refill(self, i):
        self.refills = True
        self.merge.refill(i, self.rng.randrange(-10, 20 * 10**9))

    def advance(self, i):
        self.merge.advance(i, self.rng.randrange(-10, 20 * 10**9))

    def limit(self, i):
        self.merge.limit(i, self.rng.randrange(5000), live=self.rng.random() < 0.5)

    def refuse(self, i):
        if self.rng.random() < 0.2:
            self.merge.refuse(i)
            self.refused.add(i)
            self.waiting.pop(i, None)

    def run(self):
        steps = (
            self.trust, self.shift, self.suspend, self.resume, self.reopen,
            self.refill, self.advance, self.limit, self.refuse,
        )  # fmt: skip
        while self.waiting:
            waited_for = set(self.waiting) - self.suspended
            lagging = self.merge.lagging()
            assert lagging in waited_for if waited_for else lagging == -1
            assert not self.merge.done
            self.read(self.rng.choice(list(self.waiting)))
            if self.rng.random() < 0.2:
                self.rng.choice(steps)(self.rng.randrange(self.count))
            if self.rng.random() < 0.1:
                self.take()
        while not self.merge.done:
            assert self.take()
        assert self.merge.lagging() == -1
        self.judge()

    def judge(self):
        out = b"".join(self.out)
        if self.pcapng:
            packets = parse_blocks(out)
            times = [units for _, units, _ in packets]
            assert all(number < len(self.described) for number, _, _ in packets)
        else:
            packets = parse_records(out, nano=True)
            times = [packet.timestamp_ns for packet in packets]
        counters = [self.merge.counters(i) for i in range(self.count)]
        assert sum(each.packets for each in counters) == len(packets)
        if not self.refills:
            assert sum(each.late for each in counters) == late_in(times)
            assert not any(each.refilled for each in counters)
        for i, each in enumerate(counters):
            assert self.merge.buffered(i) == 0
            alone = [counters_at_end(merge) for merge in self.alone[i]]
            assert each.backwards == sum(one.backwards for one in alone)
            if i not in self.refused:
                assert each.packets + each.joined == sum(one.packets for one in alone)


def check(seed):
    """Make one case of the seed and judge it."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    for _ in range(rng.randrange(1, 4)):
        check_pieces(rng, any_input(rng))
    Case(rng).run()


if __name__ == "__main__":
    fuzz(check)
