"""The body of a stream, written without copying it.

aiohttp joins a chunk with its framing before Python 3.12.9, as writing several buffers
at once was unsafe with asyncio's own transports. uvloop's are safe: that copy of each
batch, and the memory for it, cost as much again as all else that a stream costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Body"]


class Body:
    """Writes the body of a response that was prepared, and whose headers were sent."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response
        # To HTTP/1.0 a body is sent as it is.
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"

    async def write(self, data: bytes) -> None:
        """Send ``data``, and wait until the client has taken most of it.

        The transport keeps ``data`` itself: it must not change. Cancelling does not
        take back what was written.

        Raises:
            ConnectionError: the client has left.

        """
        if not self._chunked:
            await self._response.write(data)
            return
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        await self._request.writer.drain()
