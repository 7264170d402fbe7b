"""How a target is opened, and opened again after a break: tries, the ring, the seam.

A worker's ring has what its stream would have brought meanwhile. It is asked for all
since the last promise; what had come of that already is known by the tail of the stream
and left out, packet by packet. So both edges join, and a broken network costs nothing.
Nobody waits for who is away, but the past of others for a past: it is as good later.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from ddump_common.api import Link
from ddump_common.errors import BrokenStreamError, RefusedError, UnreachableError
from ddump_common.units import MILLISECONDS, SECONDS, format_duration

from .backoff import Backoff
from .lane import LaneState
from .resume import by_clock, keeps, resumed, started_anew
from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ddump_common.errors import FormatError
    from ddump_common.ring import RingNote

    from ._merge import Seam
    from .inlet import Inlet
    from .lane import Lane
    from .resume import Position
    from .skew import Skew
    from .source import Source
    from .stretch import Stretch

__all__ = ["Peer", "Reconnect"]

logger = logging.getLogger(__name__)

# What a worker, or the proxy before it, answers while it comes back.
_TRANSIENT = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)

# A ring that looks through its past for longer says with its answer what it lacks.
_LONGEST_ADOPTION_NS = 15 * SECONDS
_ADOPTION_PAUSE_NS = 500 * MILLISECONDS


class Peer(Protocol):
    """A worker as it is asked beside its first stream."""

    @property
    def target(self) -> HttpTarget:
        """What it was named by."""

    def stream(self, target: HttpTarget) -> Source:
        """Return another stream of the worker's; it is not open yet."""

    async def skew(self) -> Skew | None:
        """Return how far its clock is from ours; ``None`` when that is not known."""

    async def names(self) -> Mapping[int, str]:
        """Return the names of its interfaces by index, as far as they are known."""

    async def ring(self) -> RingNote | None:
        """Return what its ring keeps; ``None`` when it has none, or does not tell.

        Raises:
            PeerError: it cannot be asked, or its ring not be had.

        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Break:
    """What is gone on with: ``target`` is what was asked for first, ``seam`` what had come."""

    peer: Peer
    target: HttpTarget
    seam: Seam | None
    reason: BrokenStreamError


class Reconnect:
    """Opens the sources of one lane."""

    def __init__(
        self, lane: Lane, inlet: Inlet, peer: Peer | None, stretch: Stretch
    ) -> None:
        self._lane = lane
        self._inlet = inlet
        self._merge = inlet.merge
        self._peer = peer
        self._target = None if peer is None else peer.target
        self._stretch = stretch
        self._backoff = Backoff()
        self._loop = asyncio.get_running_loop()
        self._opened = 0.0
        self._adopted_by: float | None = None
        self._broke_at: tuple[int, int] | None = None
        self._patience_ends = 0.0
        self._ring_fails = False

    def _is_possible(self, target: HttpTarget) -> bool:
        """Whether a stream that broke is gone on with."""
        config, source = self._inlet.config, self._lane.source
        return (
            config.reconnect
            and not config.fail_fast
            and self._lane.has_header
            and (source.trusted or target.goes_on)
            and (source.trusted or not source.bounded)
        )

    async def open(self) -> None:
        """Open the lane's source for the first time.

        Raises:
            PeerError: it cannot be opened, and why.

        """
        lane, config = self._lane, self._inlet.config
        if self._peer is not None:
            self._stretch.measured(await self._peer.skew())
            if config.pcapng and config.link is Link.SLL2:
                lane.interfaces = await self._peer.names()
            self._target = by_clock(self._peer.target, -lane.shift_ns)
            if self._target is not self._peer.target:
                lane.source = self._peer.stream(self._target)
        await lane.source.open()
        self._begin()
        logger.info("%s: opened", lane.name)
        self._stretch.ledger.check_window()
        # Nobody can tell when it has caught up.
        lane.live = lane.live or (lane.follows and not lane.trusted)

    def _begin(self) -> None:
        lane = self._lane
        lane.state = LaneState.OPEN
        self._opened = lane.heard = self._loop.time()
        self._stretch.begin()

    async def go_on(self, reason: BrokenStreamError) -> bool:
        """Try until the lane has a stream again; return whether there is one to come.

        A window is given up when nothing has come of it for ``--timeout``. Cancelling it
        leaves the lane without a stream. What broke was read to its end.

        Raises:
            PeerError: it refuses for good, or ``reason``: it is not to be tried again.

        """
        lane, stretch, peer = self._lane, self._stretch, self._peer
        target = self._target
        if peer is None or target is None or not self._is_possible(target):
            raise reason
        self._backoff.reset(lived_ns=int((self._loop.time() - self._opened) * SECONDS))
        lane.state = LaneState.BROKEN
        lane.source.close()
        stretch.stop(reason)
        self._inlet.wake.set()
        self._adopted_by = None
        seam = await stretch.seam()
        broken = _Break(peer=peer, target=target, seam=seam, reason=reason)
        if not lane.live:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline(stretch.position(seam))):
                    return await self._try_on(broken)
            if not lane.follows:
                patience = format_duration(self._inlet.config.timeout_ns)
                raise BrokenStreamError(
                    f"{reason.message}, and did not come back within {patience}",
                    hint="see --timeout",
                ) from reason
            stretch.suspend()
        return await self._try_on(broken)

    def _deadline(self, position: Position) -> float:
        """Return until when a break at ``position`` is waited for.

        One where the last had been is the same.
        """
        at = position.since_ns, position.packets
        if at != self._broke_at:
            self._broke_at = at
            self._patience_ends = (
                self._loop.time() + self._inlet.config.timeout_ns / SECONDS
            )
        return self._patience_ends

    async def _try_on(self, broken: _Break) -> bool:
        lane, asked_ns = self._lane, 0
        while True:
            await asyncio.sleep(self._backoff.next_ns(asked_ns=asked_ns) / SECONDS)
            try:
                return await self._try(broken)
            except UnreachableError as exc:
                logger.info("%s: %s", lane.name, exc)
                asked_ns = 0
            except RefusedError as exc:
                if not _passes(exc):
                    raise
                logger.info("%s: %s", lane.name, exc)
                asked_ns = exc.retry_after_ns

    async def judge(self) -> None:
        """Measure the worker's clock anew, as its stream does not fit to it, and judge it.

        One of the two clocks may have been set, or have drifted. Cancelling it leaves
        the stream unjudged.
        """
        if self._peer is not None:
            self._stretch.measured(await self._peer.skew())
        self._stretch.judge()

    def leave_ring(self, error: FormatError) -> BrokenStreamError | None:
        """Return the break that ``error`` is when a ring sent it for a live stream.

        Then its ring is not asked again: the target itself may be as good as ever.
        """
        first, asked = self._target, self._lane.source.target
        if first is None or not first.live:
            return None
        if not isinstance(asked, HttpTarget) or asked.live:
            return None
        self._ring_fails = True
        return BrokenStreamError(f"its ring: {error}")

    async def _try(self, broken: _Break) -> bool:
        lane, stretch = self._lane, self._stretch
        peer, target, seam = broken.peer, broken.target, broken.seam
        asks = lane.trusted and not self._ring_fails
        ring = await self._ring(peer) if asks else None
        if lane.skew is not None:
            stretch.measured(await peer.skew())
        if stretch.compare_clock() and keeps(ring, target.query):
            position = stretch.position(seam)
            asked = resumed(target, position, now_ns=stretch.present_ns())
            if asked is None:
                stretch.over(filled=True)
                return False
            if (source := await self._open_ring(peer.stream(asked))) is not None:
                stretch.reopen(source, seam=seam)
                self._begin()
                stretch.refill()
                return True
        if not target.goes_on:
            raise broken.reason
        position = stretch.position(None)
        asked = started_anew(target, position, now_ns=stretch.present_ns())
        if asked is None:
            stretch.over(filled=False)
            return False
        source = peer.stream(asked)
        await source.open()
        stretch.reopen(source, seam=None)
        self._begin()
        stretch.lose()
        return True

    async def _ring(self, peer: Peer) -> RingNote | None:
        """Return what the worker's ring keeps, once it has looked through its past.

        Raises:
            PeerError: there may be one later.

        """
        try:
            return await self._adopted(peer)
        except RefusedError as exc:
            self._do_without(exc)
            return None

    async def _adopted(self, peer: Peer) -> RingNote | None:
        waited = False
        if self._adopted_by is None:
            self._adopted_by = self._loop.time() + _LONGEST_ADOPTION_NS / SECONDS
        while True:
            ring = await peer.ring()
            if ring is None or not ring.adopting:
                return ring
            if self._loop.time() >= self._adopted_by:
                return ring
            if not waited:
                waited = True
                logger.warning(
                    "%s: its ring looks through its past; waiting for it",
                    self._lane.name,
                )
            await asyncio.sleep(_ADOPTION_PAUSE_NS / SECONDS)

    async def _open_ring(self, source: Source) -> Source | None:
        """Open a stream of the ring; ``None`` when there is none of it.

        Raises:
            PeerError: there may be one later.

        """
        try:
            await source.open()
        except RefusedError as exc:
            self._do_without(exc)
            return None
        return source

    def _do_without(self, exc: RefusedError) -> None:
        """Say that the stream goes on without the ring; raise what passes.

        A worker that is busy with other windows is not waited for by who came for none,
        and asked again after the next break.
        """
        live = self._target is not None and self._target.live
        busy = live and exc.status == HTTPStatus.SERVICE_UNAVAILABLE
        if _passes(exc) and not busy:
            raise exc
        logger.warning("%s: its ring: %s", self._lane.name, exc)
        self._ring_fails = not busy


def _passes(exc: RefusedError) -> bool:
    """Whether it is worth to ask again.

    Who has as many streams as a rule allows is told when: one of them may be the one
    that broke, which the worker has not noticed yet.
    """
    forbidden = exc.status == HTTPStatus.FORBIDDEN
    return exc.status in _TRANSIENT or (forbidden and exc.retry_after_ns > 0)
