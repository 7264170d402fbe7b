"""Connections that are gone when the run is.

A TLS connection that was closed lives on until the other side has said goodbye, which
it may never do, and a loop of uvloop cannot be closed before. What is still there when
the session ends is aborted, and waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from .certificate import Certificate

__all__ = ["Connector"]

# An aborted connection is gone by the loop's next turn.
_PATIENCE_SECONDS = 1.0


class Connector(aiohttp.TCPConnector):
    """Makes connections, and knows which of them are not gone.

    ``own`` is the certificate that is shown to servers, if there is one.
    """

    own: Certificate | None = None
    _living: tuple[tuple[asyncio.Transport, asyncio.Future[None]], ...] = ()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # as the library has it
    ) -> Connection:
        """Return a connection for a request, as the library's own does."""
        connection = await super().connect(req, traces, timeout)
        living = [each for each in self._living if not each[1].done()]
        protocol = connection.protocol
        closed = None if protocol is None else protocol.closed
        if connection.transport is not None and closed is not None:
            closed.add_done_callback(_retrieve)
            living.append((connection.transport, closed))
        self._living = tuple(living)
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, and return when they are gone."""
        await super().close(abort_ssl=abort_ssl)
        living, self._living = self._living, ()
        gone = [closed for _, closed in living if not closed.done()]
        for transport, closed in living:
            if not closed.done():
                # asyncio's own transport, closed twice, before Python 3.11.5.
                with contextlib.suppress(AttributeError):
                    transport.abort()
        if gone:
            await asyncio.wait(gone, timeout=_PATIENCE_SECONDS)


def _retrieve(closed: asyncio.Future[None]) -> None:
    # Why a connection was lost is told to who reads from it.
    if not closed.cancelled():
        closed.exception()
