"""Looks names up, each on a thread that nothing waits for.

``getaddrinfo`` blocks for as long as a dead name server makes it, and cannot be ended.
The event loop's own threads are few, so that names queue behind each other, and are
waited for at the end, so that the command would not leave.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Resolver"]

# Threads at a time: a fleet's names are asked for at once, a thread has its price.
_MOST_LOOKUPS = 64

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Resolver(AbstractResolver):
    """The resolver of one HTTP session."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_MOST_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of ``host``. Cancelling it leaves the thread alone.

        Raises:
            OSError: there are none, and why.

        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def look_up() -> None:
            try:
                addresses = _look_up(host, port, family)
            except OSError as exc:
                report(answer.set_exception, exc)
            else:
                report(answer.set_result, addresses)

        def report(settle: Callable[..., None], outcome: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know
                loop.call_soon_threadsafe(_settle, answer, settle, outcome)

        async with self._slots:
            threading.Thread(
                target=look_up, name=f"look up {host}", daemon=True
            ).start()
            return await answer

    async def close(self) -> None:
        """Nothing is open."""


def _settle(
    answer: asyncio.Future[list[ResolveResult]],
    settle: Callable[..., None],
    outcome: object,
) -> None:
    if not answer.done():
        settle(outcome)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    addresses = []
    for its_family, _, protocol, _, address in found:
        # As numbers, with the zone of a link-local address.
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        numeric, _ = socket.getnameinfo(address, flags)
        addresses.append(
            ResolveResult(
                hostname=host, host=numeric, port=port, family=its_family,
                proto=protocol, flags=_NUMERIC,
            )
        )  # fmt: skip
    return addresses
