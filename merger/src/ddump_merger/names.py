"""What the interfaces of a worker's host are called, by the index that packets have.

An index is given to another interface now and then, most of all when the host starts
anew. Of a live capture the names are those of this moment. Of a window they are those
that its ring remembers; an index that had several of them is called by all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ddump_common.answers import InterfaceInfo, Status
from ddump_common.api import INTERFACES_PATH, STATUS_PATH
from ddump_common.errors import PeerError

from .stream import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import aiohttp

    from .target import HttpTarget

__all__ = ["fetch_names"]

# Thousands of interfaces with their addresses, and all that the ring remembers.
_MAX_BYTES = 4 << 20


async def fetch_names(
    target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
) -> dict[int, str]:
    """Return the names that the worker tells; none when it tells none.

    Nothing that goes wrong is an error. Each of two questions takes ``timeout_ns`` at
    most.
    """

    async def ask(path: str, read: Callable[[bytes], dict[int, str]]) -> dict[int, str]:
        try:
            body = await fetch(
                target,
                target.api_url(path),
                session,
                accept="application/json",
                max_bytes=_MAX_BYTES,
                timeout_ns=timeout_ns,
            )
            return read(body)
        except (PeerError, msgspec.DecodeError):
            return {}  # the index itself is the name then

    present = await ask(INTERFACES_PATH, _present)
    remembered = await ask(STATUS_PATH, _remembered)
    return {**remembered, **present} if target.live else {**present, **remembered}


def _present(body: bytes) -> dict[int, str]:
    told = msgspec.json.decode(body, type=list[InterfaceInfo])
    return _by_index((each.name, [each.index]) for each in told)


def _remembered(body: bytes) -> dict[int, str]:
    ring = msgspec.json.decode(body, type=Status).ring
    return {} if ring is None else _by_index(ring.interfaces.items())


def _by_index(told: Iterable[tuple[str, Iterable[int]]]) -> dict[int, str]:
    names: dict[int, list[str]] = {}
    for name, indices in sorted(told, key=lambda pair: pair[0]):
        for index in indices:
            names.setdefault(index, []).append(name)
    return {index: "|".join(called) for index, called in names.items()}
