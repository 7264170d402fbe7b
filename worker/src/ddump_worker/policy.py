"""Which segments a ring gives up, and when: arithmetic on bytes, without any file.

The ring may grow to the size that was asked for, as long as the reserve stays free on
its disk. Where that is not so, first what is evicted and still read is given up, then
the oldest segments; but never so much that a ring of two segments would be left, for
one that records nothing is worth less than a reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Plan", "excess", "plan"]

LEAST_SEGMENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done before a segment is made.

    The ring may have ``limit`` bytes; the ``revoke`` oldest of the held segments go,
    then the ``evict`` oldest of those that are present. Where ``hold`` is false there is
    no room to keep them for their readers.
    """

    limit: int
    revoke: int
    evict: int
    hold: bool


def excess(sizes: Sequence[int], *, limit: int) -> int:
    """Return how many of the first ``sizes`` must go for the rest to be in ``limit``."""
    total = sum(sizes)
    count = 0
    while total > limit and count < len(sizes):
        total -= sizes[count]
        count += 1
    return count


def plan(
    present: Sequence[int],
    held: Sequence[int],
    *,
    size: int,
    segment_size: int,
    free: int,
    reserve: int,
    pinned: bool,
) -> Plan:
    """Return how room is made for one more segment of ``segment_size`` bytes.

    ``present`` and ``held`` are the bytes that segments take, oldest first: of those in
    the ring, and of those evicted and still read. ``size`` is what the ring was asked
    to be, ``free`` what the disk has left, of which ``reserve`` is to stay. Where
    something is ``pinned``, what is evicted may go on taking its bytes.
    """
    used = sum(present)
    spare = free - reserve
    needed = segment_size if pinned else min(size - used, segment_size)
    revoke = 0
    while revoke < len(held) and spare < needed:
        spare += held[revoke]
        revoke += 1
    limit = max(min(size, used + spare), LEAST_SEGMENTS * segment_size)
    return Plan(
        limit=limit,
        revoke=revoke,
        evict=excess(present, limit=limit - segment_size),
        hold=spare >= segment_size,
    )
