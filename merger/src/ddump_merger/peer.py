"""A worker as it is asked beside its streams: for its time, its ring, new streams."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from ddump_common.errors import RefusedError
from ddump_common.units import SECONDS

from .account import fetch_ring
from .names import fetch_names
from .skew import measure
from .stream import HttpSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

    from ddump_common.ring import RingNote

    from .skew import Skew
    from .target import HttpTarget

__all__ = ["HttpPeer"]

# What is good to know is not waited for as long as what was asked for.
_PATIENCE_NS = 2 * SECONDS


class HttpPeer:
    """The worker that ``target`` names; all its requests go through ``session``."""

    def __init__(
        self,
        target: HttpTarget,
        session: aiohttp.ClientSession,
        *,
        connect_timeout_ns: int,
    ) -> None:
        self.target = target
        self._session = session
        self._connect_timeout_ns = connect_timeout_ns
        self._patience_ns = min(connect_timeout_ns, _PATIENCE_NS)

    def stream(self, target: HttpTarget) -> HttpSource:
        """Return another stream of the worker's; it is not open yet."""
        return HttpSource(
            target, self._session, connect_timeout_ns=self._connect_timeout_ns
        )

    async def skew(self) -> Skew | None:
        """Return how far its clock is from ours; ``None`` when that is not known."""
        return await measure(self.target, self._session, timeout_ns=self._patience_ns)

    async def names(self) -> Mapping[int, str]:
        """Return the names of its interfaces by index, as far as they are known."""
        return await fetch_names(
            self.target, self._session, timeout_ns=self._patience_ns
        )

    async def ring(self) -> RingNote | None:
        """Return what its ring keeps; ``None`` when it has none, or does not tell.

        Raises:
            PeerError: it cannot be asked, or its ring not be had.

        """
        try:
            return await fetch_ring(
                self.target, self._session, timeout_ns=self._connect_timeout_ns
            )
        except RefusedError as exc:
            if exc.status == HTTPStatus.NOT_FOUND:
                return None
            raise
