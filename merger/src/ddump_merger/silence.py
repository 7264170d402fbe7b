"""Waiting for a source that must not be silent for long.

Silence counts while somebody listens. When a timer is late, this process slept or was
busy, and what came meanwhile has not been looked at yet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from .source import Source

__all__ = ["SilentError", "read_within"]

# A silence is listened to in so many parts: one in which the process slept is void.
_PARTS = 10

# The process itself slept when a timer is this late, in seconds.
_LATEST_TIMER = 0.5


class SilentError(Exception):
    """Nothing came for as long as was waited for."""


async def read_within(source: Source, silence_ns: int) -> bytes:
    """Return the next bytes of ``source``, none at its end. Cancelling it loses none.

    Raises:
        BrokenStreamError: as the source's.
        SilentError: nothing came for ``silence_ns``.

    """
    loop = asyncio.get_running_loop()
    part = silence_ns / SECONDS / _PARTS
    silent = 0
    while silent < _PARTS:
        due = loop.time() + part
        try:
            async with asyncio.timeout_at(due):
                return await source.read()
        except TimeoutError:
            if loop.time() - due < _LATEST_TIMER:
                silent += 1
    if data := source.arrived():
        return data
    raise SilentError
