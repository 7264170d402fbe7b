"""Where the packets of one stream come from, and how their delivery ends.

A live capture and a pull from the ring read in ways of their own. What they have in
common is here: the limits that end them, who may end them, and that a pcapng stream
has its heartbeats while they wait and read.
"""

from __future__ import annotations

import abc
import asyncio
import math
from typing import TYPE_CHECKING

from ddump_common.note import EndReason
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ddump_common.api import CaptureQuery
    from ddump_common.errors import CaptureError

    from .heartbeat import Heartbeat

__all__ = ["Source"]


class Source(abc.ABC):
    """Delivers the packets that ``query`` asks for, once.

    It began at ``started_ns`` and has nothing from before ``promised_ns``.
    """

    def __init__(
        self, query: CaptureQuery, *, started_ns: int, promised_ns: int
    ) -> None:
        self.started_ns = started_ns
        self.promised_ns = promised_ns
        self._query = query
        self._loop = asyncio.get_running_loop()
        self._reason: EndReason | CaptureError | None = None
        self._heartbeat: Heartbeat | None = None
        self._on_draining: Callable[[], None] | None = None
        self._closed = False

    @property
    @abc.abstractmethod
    def packets(self) -> int:
        """How many packets were delivered."""

    def stop(self) -> None:
        """Have ``deliver`` end soon, after all that is captured or recorded by now."""
        self._end(EndReason.SHUTDOWN)

    def fail(self, failure: CaptureError) -> None:
        """Have ``deliver`` raise, after all that is captured or recorded by now."""
        self._end(failure)

    def _end(self, reason: EndReason | CaptureError) -> None:
        # At once, also while the client does not take what was read before.
        if self._reason is None and not self._closed:
            self._reason = reason
            self._stop()
            if self._on_draining is not None:
                self._on_draining()

    @abc.abstractmethod
    def _stop(self) -> None:
        """Take in nothing that comes later; once, when there is a reason to end."""

    async def deliver(
        self,
        send: Callable[[bytes], Awaitable[None]],
        *,
        heartbeat: Heartbeat | None = None,
        on_draining: Callable[[], None] | None = None,
    ) -> EndReason:
        """Send batches of records until all is sent or a limit is reached; say which.

        ``heartbeat`` has its blocks sent between them when they are due, and is told
        what may be promised. ``on_draining`` is called when nothing that comes later
        will be sent, and only what is there still is: at that moment, also while a
        ``send`` waits. Cancelling loses what was read and not sent, and no more.

        Raises:
            CaptureError: no more can be read, or it was said to fail.

        """
        self._heartbeat = heartbeat
        if self._reason is not None and on_draining is not None:
            on_draining()
        self._on_draining = on_draining
        timer = None
        if self._query.duration_ns is not None:
            timer = self._loop.call_later(
                self._query.duration_ns / SECONDS, self._end, EndReason.DURATION
            )
        try:
            return await self._deliver(send)
        finally:
            if timer is not None:
                timer.cancel()

    @abc.abstractmethod
    async def _deliver(self, send: Callable[[bytes], Awaitable[None]]) -> EndReason: ...

    def _limit(self) -> EndReason:
        packets = self._query.packets
        if packets is not None and self.packets >= packets:
            return EndReason.PACKETS
        return EndReason.BYTES

    @property
    def _due(self) -> float:
        """When the next heartbeat is, by the loop's clock."""
        return math.inf if self._heartbeat is None else self._heartbeat.due

    async def _beat(
        self, send: Callable[[bytes], Awaitable[None]], *, at_once: bool = False
    ) -> None:
        """Send the heartbeat, if it is due or ``at_once``; all that was read has to be sent."""
        now = self._loop.time()
        if self._heartbeat is not None and (at_once or self._heartbeat.due <= now):
            await send(self._heartbeat.block(now))
