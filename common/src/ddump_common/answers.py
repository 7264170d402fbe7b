"""What workers answer with, beside captures: the shapes of their JSON."""

from __future__ import annotations

import enum

import msgspec

__all__ = [
    "Health",
    "InterfaceInfo",
    "Memory",
    "Problem",
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
    """One stream: what was asked, and what became of it so far.

    ``dropped`` packets were lost by the kernel because this stream's ring was full;
    ``interface_dropped`` by the network interfaces; ``undelivered`` were captured, and
    lost when the stream was cut or its client left. ``buffer_bytes`` is the ring that
    the kernel really granted. Times are nanoseconds since the epoch.
    """

    id: int
    client: str
    state: StreamState
    filter: str
    started_ns: int
    packets: int
    bytes: int
    dropped: int
    interface_dropped: int
    undelivered: int = 0
    buffer_bytes: int


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


class InterfaceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One network interface of ``GET /api/v1/interfaces``."""

    name: str
    index: int
    up: bool
    loopback: bool
    promiscuous: bool
    addresses: list[str]
