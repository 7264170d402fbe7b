"""The last word on connections that are not taken: it has to arrive.

Closed at once, a request that is still arriving would reset the connection, and what was
said with it. So each is waited for a moment, and only so many are at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

from .places import Places

if TYPE_CHECKING:
    import ssl

__all__ = ["Farewells"]

_MAX_FAREWELLS = 64
_SECONDS = 1.0


class Farewells:
    """Says a last word on connections, and waits for a few of them at once."""

    def __init__(self) -> None:
        self._places = Places(_MAX_FAREWELLS)

    async def say(
        self,
        accepted: socket.socket,
        goodbye: bytes,
        *,
        host: str,
        context: ssl.SSLContext | None = None,
    ) -> bool:
        """Say ``goodbye`` to ``host``, and wait a moment until the client has heard it.

        With a ``context`` by TLS, where it answers whatever is said first. Return whether
        it was said: not by TLS to who takes longer to listen, or loses its place to others.
        """
        until = asyncio.get_running_loop().time() + _SECONDS
        word = _LastWord(goodbye)
        with contextlib.suppress(OSError):  # among them, that the time is over
            async with self._places.hold(host, until=until):
                if context is None:
                    await _say_plainly(accepted, word)
                else:
                    await _say_encrypted(accepted, word, context)
        return word.said


class _LastWord(asyncio.Protocol):
    """Answers the first that comes, and closes."""

    def __init__(self, goodbye: bytes) -> None:
        self.goodbye = goodbye
        self.said = False
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, _: bytes) -> None:
        if self._transport is not None and not self.said:
            self._transport.write(self.goodbye)
            self._transport.close()
            self.said = True

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set()


async def _say_plainly(accepted: socket.socket, word: _LastWord) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(accepted, word.goodbye)
    word.said = True
    accepted.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(accepted, 65536):
        pass


async def _say_encrypted(
    accepted: socket.socket, word: _LastWord, context: ssl.SSLContext
) -> None:
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: word,
        accepted,
        ssl=context,
        ssl_handshake_timeout=2 * _SECONDS,  # the caller's is over before
        ssl_shutdown_timeout=2 * _SECONDS,
    )
    try:
        await word.ended.wait()
    finally:
        transport.abort()
