"""What workers say of themselves and of their rings."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ddump_common.answers import Segments, Status
from ddump_common.api import (
    RING_HEADER,
    RING_PATH,
    SEGMENTS_PATH,
    STATUS_PATH,
    RingQuery,
)
from ddump_common.errors import RefusedError, UsageError
from ddump_common.ring import RingNote

from .stream import fetch, fetch_field

if TYPE_CHECKING:
    import aiohttp

    from .target import HttpTarget

__all__ = ["fetch_ring", "fetch_segments", "fetch_status"]

T = TypeVar("T", bound=msgspec.Struct)

# Far above a worker's with all its streams, each with the longest filter.
_MAX_STATUS_BYTES = 1 << 20

# Sixty thousand segments: 4 TB of them.
_MAX_SEGMENTS_BYTES = 16 << 20


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


async def fetch_ring(
    target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
) -> RingNote | None:
    """Return what a worker's ring keeps; ``None`` when it does not tell.

    Who may follow the ring may ask for that; who asked for a window need not be allowed to
    follow it.

    Raises:
        PeerError: the ring cannot be had so, and why.

    """
    value = await fetch_field(
        target.at(RING_PATH, RingQuery(follow=target.goes_on)),
        session,
        RING_HEADER,
        timeout_ns=timeout_ns,
    )
    try:
        return RingNote.parse(value) if value else None
    except UsageError as exc:
        raise RefusedError(
            f"its {RING_HEADER} is wrong: {exc}", status=HTTPStatus.OK
        ) from exc


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
