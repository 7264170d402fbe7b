"""Going on after a break: what a target is asked for then. Pure.

Of a worker that keeps a ring all is asked for that came since its last promise, and what
comes from then on: of a window, what is left of it. Of any other, what comes from now on,
as it was asked before. Limits go on from where they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddump_common.api import RING_PATH, CaptureQuery, Link, RingQuery

if TYPE_CHECKING:
    from ddump_common.ring import RingNote

    from .target import HttpTarget

__all__ = ["Position", "by_clock", "keeps", "resumed", "started_anew"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a target had come when its stream broke; times are by its clock.

    It was opened at ``opened_ns``, and all of before ``since_ns`` has come. ``packets``
    have come in all, with ``octets`` of data; ``again`` of them, and
    ``again_octets``, will come once more from a ring.
    """

    opened_ns: int
    since_ns: int
    packets: int
    octets: int
    again: int = 0
    again_octets: int = 0


def keeps(ring: RingNote | None, query: CaptureQuery) -> bool:
    """Return whether a ring has all that a stream would have brought, while it lasts.

    And as it would have: SLL has no interface, SLL2 no VLAN tag, so that what comes of
    one as the other is not what had come already. Of what came out of the ring itself
    that holds whatever it keeps.
    """
    if ring is None:
        return False
    if isinstance(query, RingQuery):
        return ring.recording or not query.follow
    if not ring.recording or ring.partial or ring.link != query.link:
        return False
    return not query.interfaces or query.link is Link.SLL2  # which has the interface


def resumed(
    target: HttpTarget, position: Position, *, now_ns: int
) -> HttpTarget | None:
    """Return what to ask the ring of a target for; ``None`` when nothing is left.

    ``now_ns`` is the present of its worker.
    """
    query = target.query
    packets = _left(query.packets, position.packets, again=position.again)
    octets = _left(query.bytes, position.octets, again=position.again_octets)
    until_ns = _until_ns(query, position)
    if packets == 0 or octets == 0:
        return None
    if until_ns is not None and until_ns <= position.since_ns:
        return None
    duration_ns = None
    if not target.goes_on and query.duration_ns is not None:
        duration_ns = position.opened_ns + query.duration_ns - now_ns
        if duration_ns <= 0:
            return None
    asked = RingQuery(
        filter=query.filter,
        interfaces=query.interfaces,
        snaplen=query.snaplen,
        packets=packets,
        bytes=octets,
        duration_ns=duration_ns,
        idle_ns=query.idle_ns,
        link=query.link,
        precision=query.precision,
        since_ns=position.since_ns,
        until_ns=until_ns,
        follow=target.goes_on and (until_ns is None or until_ns > now_ns),
    )
    return target.at(RING_PATH, asked)


def started_anew(
    target: HttpTarget, position: Position, *, now_ns: int
) -> HttpTarget | None:
    """Return what to ask a target for from now on; ``None`` when nothing is left.

    ``now_ns`` is the present of its worker.
    """
    query = target.query
    packets = _left(query.packets, position.packets, again=0)
    octets = _left(query.bytes, position.octets, again=0)
    until_ns = _until_ns(query, position)
    if packets == 0 or octets == 0 or (until_ns is not None and until_ns <= now_ns):
        return None
    if isinstance(query, RingQuery):
        asked: CaptureQuery = replace(
            query, packets=packets, bytes=octets, duration_ns=None,
            since_ns=now_ns, until_ns=until_ns,
        )  # fmt: skip
    else:
        duration_ns = None if until_ns is None else until_ns - now_ns
        asked = replace(query, packets=packets, bytes=octets, duration_ns=duration_ns)
    return replace(target, query=asked)


def by_clock(target: HttpTarget, offset_ns: int) -> HttpTarget:
    """Return ``target`` with its window by a clock that is ``offset_ns`` ahead of ours.

    What comes is moved to our clock, in which the window was asked for.
    """
    query = target.query
    if not isinstance(query, RingQuery) or not offset_ns:
        return target
    since_ns, until_ns = (
        None if each is None else max(each + offset_ns, 1)
        for each in (query.since_ns, query.until_ns)
    )
    return replace(target, query=replace(query, since_ns=since_ns, until_ns=until_ns))


def _left(limit: int | None, come: int, *, again: int) -> int | None:
    """Return what is left of a limit, given that some of what has come will come again."""
    if limit is None:
        return None
    return limit - come + again if come < limit else 0


def _until_ns(query: CaptureQuery, position: Position) -> int | None:
    """Return when the stream ends that was asked for at first."""
    until_ns = query.until_ns if isinstance(query, RingQuery) else None
    if isinstance(query, RingQuery) and not query.follow:
        # Without an end it ended in the present. How long it takes is another limit.
        return position.opened_ns if until_ns is None else until_ns
    ends = [] if until_ns is None else [until_ns]
    if query.duration_ns is not None:
        ends.append(position.opened_ns + query.duration_ns)
    return min(ends, default=None)
