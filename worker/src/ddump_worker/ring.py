"""The ring: which segments there are, who reads them, and which have to go.

The recorder's thread adds and evicts, the adopting thread adds what an earlier run
left, and readers on any thread take snapshots and pins. The lock guards lists and
counts only; files are opened, deleted and closed outside it, so that no reader holds
the recorder up and the recorder holds up no reader.

A segment that is evicted while it is pinned is held: its name is gone, its bytes stay.
What is held beyond ``pinned_limit_bytes``, or while the disk is short of room, is
revoked, oldest first: the slowest readers lose it.

A segment whose file a stranger deleted, replaced or changed is forgotten: nobody sees it
any more. What is left of the file stays, and counts, until it would have been evicted:
so the ring keeps its size also where the file comes back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ddump_common.answers import IntervalInfo, RingInfo, SegmentInfo
from ddump_common.api import Link
from ddump_common.errors import DdumpError, UsageError
from ddump_common.pcap import MAX_SNAPLEN
from ddump_common.ring import RingNote
from ddump_common.units import format_size
from ddump_common.window import Interval, merge_intervals

from .capture import DEFAULT_BUFFER_SIZE
from .directory import Directory
from .policy import LEAST_SEGMENTS, excess, plan
from .share import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from .segment import Segment

__all__ = ["RECORDING", "Pins", "Ring", "RingOptions"]

RECORDING = "recording"
"""The state of a ring that is recorded without trouble; any other says what is wrong."""

_log = logging.getLogger(__name__)

DEFAULT_SIZE = 2_000_000_000
DEFAULT_SEGMENT_SIZE = 64_000_000  # 32 in a ring: one that goes is 3 % of what is known
DEFAULT_RESERVE = Share(size=1_000_000_000, percent=5)
DEFAULT_PINNED = Share(percent=20)

# A batch of packets and the largest packet that there is fit into it.
LEAST_SEGMENT_SIZE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RingOptions:
    """What the ring was asked to be; sizes are bytes.

    The disk is to keep ``reserve`` free. ``pinned``, of ``size``, is how much may be
    evicted and still read. ``interfaces``, ``filter``, ``snaplen`` and ``buffer_size`` are of the capture.
    """

    directory: Path
    size: int = DEFAULT_SIZE
    segment_size: int = DEFAULT_SEGMENT_SIZE
    reserve: Share = DEFAULT_RESERVE
    pinned: Share = DEFAULT_PINNED
    link: Link = Link.SLL
    interfaces: tuple[str, ...] = ()
    filter: str = ""
    snaplen: int = MAX_SNAPLEN
    buffer_size: int = DEFAULT_BUFFER_SIZE

    def __post_init__(self) -> None:
        if self.segment_size < LEAST_SEGMENT_SIZE:
            raise UsageError(
                f"segments of {format_size(self.segment_size)} are too small",
                hint=f"--segment-size is at least {format_size(LEAST_SEGMENT_SIZE)}",
            )
        if self.size < LEAST_SEGMENTS * self.segment_size:
            raise UsageError(
                f"a ring of {format_size(self.size)} is less than {LEAST_SEGMENTS} "
                f"segments of {format_size(self.segment_size)}",
                hint="give a larger --ring-size or a smaller --segment-size",
            )
        if self.reserve.percent >= 100:
            raise UsageError(
                f"a reserve of {self.reserve}",
                hint="--ring-reserve is a size, or a percentage below 100",
            )

    @property
    def partial(self) -> str:
        """Why it does not keep all that a live capture would have, if it does not."""
        reasons = []
        if self.filter.strip():
            reasons.append(f"only {self.filter}")
        if self.interfaces:
            reasons.append(f"only from {', '.join(self.interfaces)}")
        if self.snaplen < MAX_SNAPLEN:
            reasons.append(f"cut to {self.snaplen} bytes")
        return "; ".join(reasons)


class Pins:
    """Segments that one reader still needs. Any thread; a context manager.

    Letting go may free a file, which waits for the disk: not on an event loop.
    """

    def __init__(self, ring: Ring, segments: Iterable[Segment]) -> None:
        self._ring = ring
        self._segments = set(segments)

    def release(self, segment: Segment) -> None:
        """Need ``segment`` no longer; again is harmless."""
        self._ring._unpin(self._segments, [segment])  # noqa: SLF001 - the other half

    def close(self) -> None:
        """Need nothing any longer; again is harmless."""
        self._ring._unpin(self._segments, tuple(self._segments))  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ring:
    """The segments in a directory, which this process alone records to.

    ``flushed_ns`` is a moment of the clock that stamps packets: all that came before
    is in the segments; 0 while none is known. ``state`` is ``recording``, or says why nothing is recorded.
    ``evicted`` counts the segments that had to go since the start.

    Raises:
        UsageError: the directory cannot be used, or has no room for two segments.

    """

    def __init__(self, options: RingOptions) -> None:
        self.options = options
        self.flushed_ns = 0
        self.state = "not started"
        self.evicted = 0
        self.directory = Directory(
            options.directory, link=options.link, snaplen=options.snaplen
        )
        self._lock = threading.Lock()
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._pins: dict[Segment, int] = {}
        self._held: dict[Segment, None] = {}  # oldest first
        self._visible: tuple[Segment, ...] | None = None
        self._shortened = ""
        self._undeletable: set[Segment] = set()
        self._stuck_bytes = 0
        try:
            self._present = self.directory.survey()
            self._unread = dict.fromkeys(self._present)
            for each in self._present:
                each.report = self.forget
            self.limit_bytes = self._first_limit()
        except BaseException as exc:
            self.directory.close()
            if isinstance(exc, OSError):
                raise UsageError(
                    f"cannot use the ring directory {options.directory}: {exc.strerror}"
                ) from exc
            raise

    def _first_limit(self) -> int:
        options = self.options
        least = LEAST_SEGMENTS * options.segment_size
        used = sum(each.disk_bytes for each in self._present)
        free, total = self.directory.space()
        reserve = options.reserve.of(total)
        possible = used + free - reserve
        room = (
            f"{format_size(max(possible, 0))} can be had: {format_size(free)} of the "
            f"disk are free, the ring has {format_size(used)}, and "
            f"{format_size(reserve)} are to stay free"
        )
        if possible < least:
            raise UsageError(
                f"no room for {LEAST_SEGMENTS} segments of "
                f"{format_size(options.segment_size)} in {options.directory}: {room}",
                hint="free some space, or lower --ring-reserve or --segment-size",
            )
        if possible < options.size:
            self._shorten(room)
        return min(options.size, possible)

    def _shorten(self, reason: str) -> None:
        # Said once per trouble, not with each segment.
        if not self._shortened:
            _log.warning(
                "the ring is shorter than %s: %s",
                format_size(self.options.size),
                reason,
            )
        self._shortened = reason

    @property
    def pinned_limit_bytes(self) -> int:
        """How many bytes may be evicted and still read."""
        return self.options.pinned.of(self.options.size)

    # What readers ask; any thread.

    def segments(self) -> tuple[Segment, ...]:
        """Return the segments, oldest first; those not yet looked through are missing."""
        visible = self._visible
        if visible is None:
            with self._lock:
                visible = tuple(
                    each
                    for each in self._present
                    if each not in self._unread and not each.revoked
                )
                self._visible = visible
        return visible

    def coverage(self) -> tuple[Interval, ...]:
        """Return when the ring was recorded, by the recorder's clock."""
        return merge_intervals(
            Interval(begin_ns=each.begin_ns, end_ns=end_ns)
            for each in self.segments()
            if (end_ns := each.end_ns) > each.begin_ns
        )

    def pin(self, segments: Iterable[Segment]) -> Pins:
        """Keep the bytes of ``segments`` beyond their eviction, as far as may be."""
        pins = Pins(self, segments)
        with self._lock:
            for each in pins._segments:  # noqa: SLF001
                self._pins[each] = self._pins.get(each, 0) + 1
        return pins

    def _unpin(self, pinned: set[Segment], segments: Iterable[Segment]) -> None:
        free = []
        with self._lock:
            for each in segments:
                if each not in pinned:
                    continue
                pinned.remove(each)
                self._pins[each] -= 1
                if not self._pins[each]:
                    del self._pins[each]
                    if each in self._held:
                        del self._held[each]
                        free.append(each)
        for each in free:
            each.revoke()

    def forget(self, segment: Segment, reason: str) -> None:
        """Show ``segment`` no longer, as its file is not what was written; any thread.

        ``reason`` says what is wrong with it. The file is left alone until its turn to
        be evicted comes; again, or after that, is harmless. While the whole directory is
        elsewhere nothing is forgotten: it may come back.
        """
        if not self.directory.in_place:
            return
        if not segment.revoke(reason):
            return
        with self._lock:
            self._held.pop(segment, None)
            self._visible = None
        _log.error("%s is not served any more: %s", segment.path, reason)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called on each commit and flush; return the way to end it.

        It is called by the recorder's thread, which it must not hold up.
        """
        with self._lock:
            self._watchers = (*self._watchers, callback)

        def end() -> None:
            with self._lock:
                self._watchers = tuple(
                    each for each in self._watchers if each is not callback
                )

        return end

    def segment_infos(self) -> list[SegmentInfo]:
        """Return what is told of the segments, oldest first."""
        return [each.info() for each in self.segments()]

    def info(self) -> RingInfo:
        """Return what is told of the ring; of ``windows`` it knows nothing."""
        segments = self.segments()
        with self._lock:
            pinned_bytes = sum(each.disk_bytes for each in self._held)
        return RingInfo(
            state=self.state,
            link=self.options.link,
            segments=len(segments),
            packets=sum(each.index.packets for each in segments),
            bytes=sum(each.size for each in segments),
            limit_bytes=self.limit_bytes,
            pinned_bytes=pinned_bytes,
            pinned_limit_bytes=self.pinned_limit_bytes,
            dropped=sum(each.drops.total for each in segments),
            lost=sum(each.losses.total for each in segments),
            coverage=[
                IntervalInfo(begin_ns=each.begin_ns, end_ns=each.end_ns)
                for each in self.coverage()
            ],
            shortened=self._shortened,
            partial=self.options.partial,
            adopting=bool(self._unread),
        )

    def note(self) -> RingNote:
        """Return what answers out of the ring say of it."""
        return RingNote(
            link=self.options.link,
            recording=self.state == RECORDING,
            partial=bool(self.options.partial),
            adopting=bool(self._unread),
        )

    # What the recorder does; its thread only.

    def notify(self) -> None:
        """Call those who watch."""
        for callback in self._watchers:
            callback()

    def add(self, segment: Segment) -> None:
        """Take in the newest segment."""
        segment.report = self.forget
        with self._lock:
            self._present.append(segment)
            self._visible = None

    def make_room(self) -> None:
        """Evict what has to go for one more segment, which is not yet added.

        What cannot be deleted stays, and the next one goes in its place.

        Raises:
            OSError: too little can be deleted, or the free space is not told.

        """
        options = self.options
        stuck: set[Segment] = set()
        while True:
            free, total = self.directory.space()
            with self._lock:
                present = [each for each in self._present if each not in stuck]
                held = list(self._held)
                pinned = bool(self._pins)
            reserve = options.reserve.of(total)
            self._stuck_bytes = sum(each.disk_bytes for each in stuck)
            size = options.size - self._stuck_bytes
            if size < LEAST_SEGMENTS * options.segment_size:
                raise OSError(
                    f"{len(stuck)} files of {self.directory.path} cannot be deleted"
                )
            decided = plan(
                [each.disk_bytes for each in present],
                [each.disk_bytes for each in held],
                size=size,
                segment_size=options.segment_size,
                free=free,
                reserve=reserve,
                pinned=pinned,
            )
            for each in held[: decided.revoke]:
                self._revoke(each)
            left = [
                each
                for each in present[: decided.evict]
                if not each.growing and not self._evict(each, hold=decided.hold)
            ]
            if not left:
                break
            stuck.update(left)
        self.limit_bytes = decided.limit + self._stuck_bytes
        if self.limit_bytes < options.size:
            self._shorten(
                f"{format_size(free)} of the disk are free, and {format_size(reserve)} "
                "are to stay free"
            )
        else:
            self._shortened = ""

    def give_way(self) -> bool:
        """Free some of a disk that is full; return whether there was anything to free."""
        with self._lock:
            held = next(iter(self._held), None)
            present = [each for each in self._present if not each.growing]
        if held is not None:
            self._revoke(held)
            return True
        if not any(self._evict(each, hold=False) for each in present):
            return False
        with self._lock:
            self.limit_bytes = sum(each.disk_bytes for each in self._present)
        self._shorten("the disk is full")
        return True

    @property
    def is_stuck(self) -> bool:
        """Whether something could not be deleted when room was made last."""
        return bool(self._stuck_bytes)

    def _evict(self, segment: Segment, *, hold: bool) -> bool:
        """Delete ``segment``; return whether its file is gone."""
        with self._lock:
            if segment not in self._present:
                return True  # it could not be adopted, and was left alone
            unread = segment in self._unread
            self._unread.pop(segment, None)
        forgotten = segment.revoked
        if unread:
            segment.revoke()  # nobody has seen it
        elif not forgotten:
            self._keep(segment)
        if not self._discard(segment):
            segment.let_go()
            return False
        with self._lock:
            self._present.remove(segment)
            self._visible = None
            held = hold and segment in self._pins and not segment.revoked
            if held:
                self._held[segment] = None
        if not held:
            segment.revoke()
        self.evicted += not forgotten
        with self._lock:
            over = list(self._held)
        sizes = [each.disk_bytes for each in over]
        for each in over[: excess(sizes, limit=self.pinned_limit_bytes)]:
            self._revoke(each)
        return True

    def _keep(self, segment: Segment) -> None:
        # It is open before its name goes: a reader finds the one or the other.
        try:
            segment.keep()
        except OSError as exc:
            _log.warning("%s cannot be kept: %s", segment.path, exc.strerror)
            segment.revoke()

    def _discard(self, segment: Segment) -> bool:
        try:
            self.directory.discard(segment)
        except OSError as exc:
            # Said once, not with each segment that is made.
            if segment not in self._undeletable:
                _log.error("%s cannot be deleted: %s", segment.path, exc.strerror)
            self._undeletable.add(segment)
            return False
        self._undeletable.discard(segment)
        return True

    def _revoke(self, segment: Segment) -> None:
        with self._lock:
            self._held.pop(segment, None)
        _log.info("%s is taken from those who still read it", segment.name)
        segment.revoke()

    # What the adopting thread does.

    def adopt(self, ended: threading.Event) -> None:
        """Look through what an earlier run left, newest first, until ``ended`` is set."""
        began = time.monotonic()
        count = 0
        while not ended.is_set():
            with self._lock:
                segment = next(reversed(self._unread), None)
            if segment is None:
                break
            count += self._adopt(segment)
        if count:
            _log.info(
                "%d segments of an earlier run adopted in %.1f s",
                count,
                time.monotonic() - began,
            )

    def _adopt(self, segment: Segment) -> bool:
        with self._lock:
            following = next(
                (each for each in self._present if each.number > segment.number), None
            )
        try:
            self.directory.adopt(segment, following)
            adopted = True
        except (OSError, DdumpError) as exc:
            if not segment.revoked:
                _log.warning("left alone: %s: %s", segment.path, exc)
            adopted = False
        with self._lock:
            evicted = segment not in self._unread
            self._unread.pop(segment, None)
            if not adopted and not evicted:
                self._present.remove(segment)
            self._visible = None
        if evicted:
            # Its sidecar may have been written anew just now.
            with contextlib.suppress(OSError):  # it was named when it was evicted
                self.directory.discard(segment)
        return adopted and not evicted

    def close(self) -> None:
        """Let go of the directory and of what is held; again is harmless."""
        with self._lock:
            held, self._held = list(self._held), {}
        for each in held:
            each.revoke()
        self.directory.close()
