"""The streams of this worker: where each is in its life, and the sums over all."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol

from ddump_common.answers import StreamInfo, StreamState, Totals
from ddump_common.api import RingQuery
from ddump_common.errors import CaptureError

from .heartbeat import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ddump_common.api import CaptureQuery

    from .access import Order
    from .interfaces import Interface

__all__ = ["Delivery", "Stream", "Streams"]

_log = logging.getLogger(__name__)

_REMEMBERED = 64
"""How many ended streams are told of: whoever had one may ask what it lost."""

TRANSITIONS: dict[StreamState, frozenset[StreamState]] = {
    StreamState.OPENING: frozenset({StreamState.RUNNING, StreamState.CLOSED}),
    StreamState.RUNNING: frozenset({StreamState.DRAINING, StreamState.CLOSED}),
    StreamState.DRAINING: frozenset({StreamState.CLOSED}),
    StreamState.CLOSED: frozenset(),
}


class Delivery(Protocol):
    """What a stream needs of a live capture, or of a pull from the ring."""

    @property
    def packets(self) -> int:
        """How many packets were delivered."""

    @property
    def data_bytes(self) -> int:
        """How many bytes of packet data were delivered."""

    @property
    def received(self) -> int | None:
        """How many packets the kernel took for it, those dropped included."""

    @property
    def dropped(self) -> int:
        """How many packets the kernel dropped."""

    @property
    def undelivered(self) -> int:
        """How many packets were captured, and left behind at its end."""

    @property
    def skipped(self) -> int:
        """How many packets were recorded and could not be read any more."""

    @property
    def position_ns(self) -> int | None:
        """How far a window is read."""

    @property
    def granted(self) -> int:
        """How many bytes of kernel memory it has."""

    def refresh(self) -> None:
        """Ask the kernel for its counters."""

    def stop(self) -> None:
        """Have it end cleanly soon."""

    def fail(self, failure: CaptureError) -> None:
        """Have it end with ``failure``."""


class DropMeter:
    """Sums what network interfaces dropped, as their counters start anew at times."""

    def __init__(self, interfaces: Sequence[Interface], chosen: frozenset[int]) -> None:
        self._chosen = chosen
        self._last = {each.index: each.dropped for each in interfaces}
        self.dropped = 0

    def observe(self, interfaces: Sequence[Interface]) -> None:
        """Take the counters of now. An interface that is new starts at 0."""
        for each in interfaces:
            last = self._last.get(each.index, 0)
            if not self._chosen or each.index in self._chosen:
                # Less than before: another interface of that index, or a reset.
                self.dropped += (
                    each.dropped - last if each.dropped >= last else each.dropped
                )
            self._last[each.index] = each.dropped


class Stream:
    """One request for packets, from its acceptance to its end."""

    def __init__(
        self,
        *,
        number: int,
        order: Order[CaptureQuery],
        started_ns: int,
        meter: DropMeter,
        chosen: Mapping[int, str],
    ) -> None:
        self.number = number
        self.order = order
        self.started_ns = started_ns
        self.state = StreamState.OPENING
        self._capture: Delivery | None = None
        # What is past was dropped before it was known that somebody would ask.
        self._is_metered = not isinstance(order.query, RingQuery) or order.query.follow
        self._meter = meter
        self._chosen = chosen
        self._missing: list[str] = []
        self._stopping = False

    @property
    def query(self) -> CaptureQuery:
        """What it delivers."""
        return self.order.query

    @property
    def is_window(self) -> bool:
        """Whether it is a window of the ring."""
        return isinstance(self.query, RingQuery)

    def run(self, capture: Delivery) -> None:
        """Take the open capture, or pull; the stream runs."""
        self.move(StreamState.RUNNING)
        self._capture = capture
        if self._stopping:
            capture.stop()

    def move(self, state: StreamState) -> None:
        """Enter the next state of its life."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a stream that is {self.state} cannot become {state}")
        self.state = state

    def stop(self) -> None:
        """Have the stream end cleanly, as soon as it runs."""
        self._stopping = True
        if self._capture is not None:
            self._capture.stop()

    def refresh(self, interfaces: Sequence[Interface]) -> None:
        """Take the counters of the kernel and of the interfaces."""
        if self._is_metered:
            self._meter.observe(interfaces)
        if self._capture is not None:
            self._capture.refresh()
            failure = self.failure(interfaces)
            if failure is not None:
                self._capture.fail(failure)

    def failure(self, interfaces: Sequence[Interface]) -> CaptureError | None:
        """Return why nothing can come: all interfaces that it names are gone."""
        present = {each.index for each in interfaces}
        missing = [name for index, name in self._chosen.items() if index not in present]
        if not missing:
            return None
        names = ", ".join(missing)
        if len(missing) == len(self._chosen):
            return CaptureError(f"gone from this host: {names}")
        if missing != self._missing:
            _log.warning("stream %d: gone from this host: %s", self.number, names)
            self._missing = missing
        return None

    def tally(self) -> Tally:
        """Return what is counted of it now; what interfaces dropped, when last asked."""
        capture = self._capture
        if capture is None:
            raise RuntimeError("a stream that does not run counts nothing")
        capture.refresh()
        return Tally(
            received=capture.received,
            interface_dropped=self._meter.dropped if self._is_metered else None,
            # What it left in the ring at its end is lost like what never got in.
            dropped=capture.dropped + capture.undelivered,
            delivered=capture.packets,
            skipped=capture.skipped,
            counted_ns=time.time_ns(),
        )

    def info(self) -> StreamInfo:
        """Return what is known of it now."""
        capture = self._capture
        return StreamInfo(
            id=self.number,
            client=self.order.client.address,
            identity=str(self.order.client.identity),
            state=self.state,
            filter=self.query.filter,
            started_ns=self.started_ns,
            packets=capture.packets if capture else 0,
            bytes=capture.data_bytes if capture else 0,
            dropped=capture.dropped if capture else 0,
            interface_dropped=self._meter.dropped,
            undelivered=capture.undelivered if capture else 0,
            buffer_bytes=capture.granted if capture else 0,
            window=self.is_window,
            skipped=capture.skipped if capture else 0,
            position_ns=capture.position_ns if capture else None,
        )


class Streams:
    """All streams, and the sums that stay when they are gone."""

    def __init__(self) -> None:
        self._open: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._ended: Counter[str] = Counter()
        self.stopping = False
        """Whether streams are to end, those too that begin from now on."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.ended: deque[StreamInfo] = deque(maxlen=_REMEMBERED)
        """The last account of each stream that was closed lately, oldest first."""
        self.refused: Counter[str] = Counter()
        """How many requests were refused, by reason."""

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def check(self, order: Order[CaptureQuery]) -> None:
        """Refuse what ``open`` would refuse at this moment."""
        identity = order.client.identity
        order.check_streams(
            sum(each.order.client.identity == identity for each in self)
        )

    def open(
        self,
        *,
        order: Order[CaptureQuery],
        started_ns: int,
        interfaces: Sequence[Interface] = (),
        chosen: frozenset[int] = frozenset(),
    ) -> Stream:
        """Begin a stream; ``chosen`` are its interfaces, none means all.

        Of a window that is not followed no interface is asked what it drops; and what
        it names may be gone, and be in the ring all the same.

        Raises:
            ForbiddenError: the identity that asks has as many as it may have.

        """
        self.check(order)
        stream = Stream(
            number=next(self._numbers),
            order=order,
            started_ns=started_ns,
            meter=DropMeter(interfaces, chosen),
            chosen={
                each.index: each.name
                for each in interfaces
                if each.index in chosen and not isinstance(order.query, RingQuery)
            },
        )
        self._open[stream.number] = stream
        self._empty.clear()
        if self.stopping:
            stream.stop()
        return stream

    def close(self, stream: Stream) -> StreamInfo:
        """End a stream; return its last account."""
        stream.move(StreamState.CLOSED)
        info = stream.info()
        del self._open[stream.number]
        self.ended.append(info)
        if not self._open:
            self._empty.set()
        self._ended.update(
            streams=1,
            packets=info.packets,
            bytes=info.bytes,
            dropped=_own_dropped(info),
            interface_dropped=info.interface_dropped,
            undelivered=info.undelivered,
        )
        return info

    def stop(self) -> None:
        """Have all streams end cleanly, those too that begin from now on."""
        self.stopping = True
        for stream in self:
            stream.stop()

    async def all_closed(self) -> None:
        """Wait until no stream is open. Cancelling changes nothing."""
        await self._empty.wait()

    def refresh(self, interfaces: Sequence[Interface]) -> None:
        """Take the counters of the kernel and of the interfaces for all streams."""
        for stream in self:
            stream.refresh(interfaces)

    def infos(self) -> list[StreamInfo]:
        """Return what is known of each open stream."""
        return [stream.info() for stream in self]

    def states(self) -> dict[str, int]:
        """Return how many streams are in each state, and how many were closed."""
        counts = Counter(stream.state.value for stream in self)
        counts[StreamState.CLOSED.value] += self._ended["streams"]
        return {state.value: counts[state.value] for state in StreamState}

    def totals(self) -> Totals:
        """Return the sums over all streams since the start."""
        infos = self.infos()
        return Totals(
            packets=self._ended["packets"] + sum(i.packets for i in infos),
            bytes=self._ended["bytes"] + sum(i.bytes for i in infos),
            dropped=self._ended["dropped"] + sum(map(_own_dropped, infos)),
            interface_dropped=self._ended["interface_dropped"]
            + sum(i.interface_dropped for i in infos),
            undelivered=self._ended["undelivered"] + sum(i.undelivered for i in infos),
            streams=self._ended["streams"] + len(infos),
            refused=self.refused.total(),
        )


def _own_dropped(info: StreamInfo) -> int:
    # Of a window they are the recorder's, and those of each pull of the same packets.
    return 0 if info.window else info.dropped
