"""What workers say of themselves, and so of what was lost of our streams.

Classic pcap has no place for the packets that the kernel dropped. A worker numbers its
streams and remembers the last ones, so its status has the account of ours: what was
lost, and how far a window has been read. One that does not answer soon, or is no worker
of ours, leaves that unknown.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ddump_common.answers import Segments, Status
from ddump_common.api import SEGMENTS_PATH, STATUS_PATH
from ddump_common.errors import RefusedError, UnreachableError
from ddump_common.units import SECONDS

from .stream import HttpSource, fetch

if TYPE_CHECKING:
    import aiohttp

    from ddump_common.answers import StreamInfo

    from .lane import Lane
    from .target import HttpTarget

__all__ = ["Account", "ask", "fetch_segments", "fetch_status", "settle"]

T = TypeVar("T", bound=msgspec.Struct)

logger = logging.getLogger(__name__)

# Far above a worker's with all its streams, each with the longest filter.
_MAX_STATUS_BYTES = 1 << 20

# Sixty thousand segments: 4 TB of them.
_MAX_SEGMENTS_BYTES = 16 << 20

# People wait for the account at the end, the more so after an interrupt.
_PATIENCE_NS = 2 * SECONDS


async def fetch_status(
    target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
) -> Status:
    """Return what a worker says of itself.

    Raises:
        PeerError: it cannot be had, and why.

    """
    return await _fetch(
        target, session, STATUS_PATH, Status,
        max_bytes=_MAX_STATUS_BYTES, timeout_ns=timeout_ns,
    )  # fmt: skip


async def fetch_segments(
    target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
) -> Segments:
    """Return what a worker says of its ring.

    Raises:
        PeerError: it cannot be had, and why.

    """
    return await _fetch(
        target, session, SEGMENTS_PATH, Segments,
        max_bytes=_MAX_SEGMENTS_BYTES, timeout_ns=timeout_ns,
    )  # fmt: skip


async def _fetch(
    target: HttpTarget,
    session: aiohttp.ClientSession,
    path: str,
    type_: type[T],
    *,
    max_bytes: int,
    timeout_ns: int,
) -> T:
    body = await fetch(
        target,
        target.api_url(path),
        session,
        accept="application/json",
        max_bytes=max_bytes,
        timeout_ns=timeout_ns,
    )
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.DecodeError as exc:
        raise RefusedError(
            f"the answer is not a worker's {type_.__name__.lower()}: {exc}",
            status=HTTPStatus.OK,
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a worker says of one stream, at ``time_ns`` by its clock."""

    stream: StreamInfo
    time_ns: int


async def ask(lane: Lane) -> Account | None:
    """Return what the worker says of the lane's stream; ``None`` when it tells nobody.

    Raises:
        UnreachableError: it does not answer now.

    """
    source = lane.source
    if not isinstance(source, HttpSource) or source.number is None:
        return None
    try:
        status = await fetch_status(
            source.target, source.session, timeout_ns=_PATIENCE_NS
        )
    except RefusedError:
        return None
    for stream in (*status.streams, *status.ended):
        if stream.id == source.number:
            return Account(stream=stream, time_ns=status.time_ns)
    return None


async def settle(lane: Lane) -> None:
    """Ask the worker what is missing of its stream; set ``dropped`` and ``skipped``.

    To be done soon after its end, while the worker remembers it. Cancelling it leaves
    the numbers unknown.
    """
    try:
        account = await ask(lane)
    except UnreachableError:
        return
    if account is None:
        return
    stream = account.stream
    lane.dropped = stream.dropped + stream.interface_dropped
    lane.skipped = stream.skipped
    if stream.skipped:
        logger.error(
            "%s: up to %d packets of the window could no longer be read from the ring",
            lane.name,
            stream.skipped,
        )
