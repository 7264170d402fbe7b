"""What workers answer with, beside captures: the shapes of their JSON."""

from __future__ import annotations

import enum

import msgspec

__all__ = [
    "Health",
    "InterfaceInfo",
    "IntervalInfo",
    "Memory",
    "Problem",
    "RingInfo",
    "SegmentInfo",
    "Segments",
    "Status",
    "StreamInfo",
    "StreamState",
    "Totals",
]


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as ``application/problem+json`` (RFC 9457).

    ``parameter`` names the request parameter at fault, ``hint`` says what to do.
    """

    title: str
    status: int
    detail: str = ""
    hint: str = ""
    parameter: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /api/v1/health``."""

    status: str
    version: str


class StreamState(enum.StrEnum):
    """Where a stream is in its life."""

    OPENING = "opening"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stream: who asked for what, and what became of it so far.

    ``client`` is an address, ``identity`` who it was, as ``KIND:NAME``.
    ``dropped`` packets were lost by the kernel because this stream's ring was full;
    ``interface_dropped`` by the network interfaces; ``undelivered`` were captured, and
    lost when the stream was cut or its client left, or as the kernel held them back at
    its end. ``buffer_bytes`` is the ring that the kernel really granted. Times are
    nanoseconds since the epoch.

    Of a ``window``, ``dropped`` may have been lost by the kernel in it, and
    ``interface_dropped`` is counted if it is followed; ``skipped`` are missing from the
    ring, whatever its filter: they were rotated away before it reached them, their file
    is damaged or missing, or the disk did not take them when they came; it is read up to
    ``position_ns``.
    """

    id: int
    client: str
    identity: str = ""
    state: StreamState
    filter: str
    started_ns: int
    packets: int
    bytes: int
    dropped: int
    interface_dropped: int
    undelivered: int = 0
    buffer_bytes: int
    window: bool = False
    skipped: int = 0
    position_ns: int | None = None


class IntervalInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The moments from ``begin_ns`` on that are before ``end_ns``."""

    begin_ns: int
    end_ns: int


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the ring.

    It holds what came from ``begin_ns`` to ``end_ns`` by the recorder's clock;
    ``least_ns`` and ``greatest_ns`` are the timestamps in it, none in an empty one.
    ``bytes`` are those of the file. ``dropped`` packets were lost by the kernel
    while it was written, ``lost`` as the disk did not take them. A ``growing`` one is
    being written.
    """

    name: str
    begin_ns: int
    end_ns: int
    least_ns: int | None = None
    greatest_ns: int | None = None
    packets: int
    bytes: int
    dropped: int = 0
    lost: int = 0
    growing: bool = False


class RingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The ring as a whole.

    ``state`` is ``recording``, or why it is not. ``bytes`` are on disk, of which
    ``limit_bytes`` may be used; ``pinned_bytes`` besides are evicted and still read.
    ``shortened`` says why the ring is shorter than it was asked to be, if it is.
    ``adopting`` is whether segments of an earlier run are still being looked through.
    ``dropped`` and ``lost`` are sums over what the ring holds, as of a segment.
    ``partial`` says why it does not keep all that a live capture would have, when it is
    recorded through a filter, from some interfaces, or cut. ``interfaces`` are the
    indices that each name had in what it holds, where its link type keeps them.
    """

    state: str
    link: str
    segments: int
    packets: int
    bytes: int
    limit_bytes: int
    pinned_bytes: int
    pinned_limit_bytes: int
    dropped: int
    lost: int
    coverage: list[IntervalInfo]
    shortened: str = ""
    adopting: bool = False
    windows: int = 0
    max_windows: int = 0
    partial: str = ""
    interfaces: dict[str, list[int]] = {}


class Segments(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /api/v1/segments``, oldest first."""

    host: str
    time_ns: int
    ring: RingInfo | None
    segments: list[SegmentInfo]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of kernel memory for capture rings: taken, and the most that may be."""

    used_bytes: int
    limit_bytes: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all streams, ended and running, since the worker started."""

    packets: int
    bytes: int
    dropped: int
    interface_dropped: int
    undelivered: int = 0
    streams: int
    refused: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /api/v1/status``; ``ended`` are the last streams that were closed."""

    host: str
    version: str
    started_ns: int
    time_ns: int
    connections: int
    max_connections: int
    max_streams: int
    memory: Memory
    totals: Totals
    states: dict[str, int]
    streams: list[StreamInfo]
    ended: list[StreamInfo] = []
    ring: RingInfo | None = None


class InterfaceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One network interface of ``GET /api/v1/interfaces``."""

    name: str
    index: int
    up: bool
    loopback: bool
    promiscuous: bool
    addresses: list[str]
