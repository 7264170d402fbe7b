"""How far a target's clock is from ours, as NTP estimates it (RFC 5905, section 8).

A worker says in ``Ddump-Time`` what its clock showed as it answered. That was between
our question and its answer: at the middle, give or take half of the round trip, however
unequal the two ways are. Of several answers the one with the shortest round trip counts.

Only what is between the writing of a request and the reading of its answer's headers is
timed, not the way to a connection; ``tracing`` has the HTTP library say when that was.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from ddump_common.api import HEALTH_PATH, TIME_HEADER
from ddump_common.units import MILLISECONDS, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import SimpleNamespace

    from .target import HttpTarget

__all__ = ["Skew", "Stopwatch", "combine", "measure", "tracing"]

# One round trip may have been slow by chance, and three times is a short wait.
_SAMPLES = 3

# More than that is worth a word: it is what disturbs order that people can see.
_NOTABLE_NS = 10 * MILLISECONDS

# Beyond, in 2262, signed nanoseconds have run over.
_LATEST_NS = (1 << 63) - 1
_TIME = re.compile("[0-9]{1,19}", re.ASCII)

# What a request may fail with; TimeoutError is an OSError.
_FAILURES = (
    aiohttp.ClientError,
    aiohttp.http.HttpProcessingError,
    OSError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """A clock that is ``offset_ns`` ahead of ours, give or take ``error_ns``."""

    offset_ns: int
    error_ns: int

    @classmethod
    def of(cls, *, sent_ns: int, received_ns: int, time_ns: int) -> Skew:
        """Return what follows from a clock that showed ``time_ns`` between the two.

        The true offset is within the error for any delays of question and answer.
        """
        middle_ns = (sent_ns + received_ns) // 2
        return cls(offset_ns=time_ns - middle_ns, error_ns=received_ns - middle_ns)

    @property
    def certain(self) -> bool:
        """Whether the clock can be told to differ from ours at all."""
        return abs(self.offset_ns) > self.error_ns

    def differs(self, other: Skew) -> bool:
        """Whether both cannot be of one clock that was not set in between."""
        return abs(self.offset_ns - other.offset_ns) > self.error_ns + other.error_ns

    @property
    def notable(self) -> bool:
        """Whether it differs by more than 10 ms, whatever the error."""
        return abs(self.offset_ns) > _NOTABLE_NS + self.error_ns

    @property
    def told_offset(self) -> str:
        """The offset as people read it: ``+3.002 s``."""
        return self._told(self.offset_ns, sign="+")

    def __str__(self) -> str:
        return f"{self.told_offset} ± {self._told(self.error_ns, sign='-')}"

    def _told(self, nanoseconds: int, *, sign: str) -> str:
        """Return a time with as many digits as the error leaves a meaning.

        ``sign`` is as of format(): ``+`` shows one of what is not negative, too.
        """
        if abs(nanoseconds) >= SECONDS:
            return f"{nanoseconds / SECONDS:{sign}.3f} s"
        digits = 1 if self.error_ns >= MILLISECONDS // 10 else 3
        return f"{nanoseconds / MILLISECONDS:{sign}z.{digits}f} ms"


def combine(samples: Iterable[Skew | None]) -> Skew | None:
    """Return the sample with the least error, the first of equals; ``None`` of none."""
    known = [sample for sample in samples if sample is not None]
    return min(known, key=lambda sample: sample.error_ns, default=None)


@dataclass(slots=True)
class Stopwatch:
    """Goes along with one request as its ``trace_request_ctx``, and times it.

    Where our own clock is set meanwhile does not count: only the beginning is taken
    from it, what passes since then from one that is steady.
    """

    sent_ns: int | None = None
    received_ns: int | None = None
    _steady_ns: int = 0

    def start(self) -> None:
        """Note that the request is about to be written."""
        self._steady_ns = time.monotonic_ns()
        self.sent_ns = time.time_ns()

    def stop(self) -> None:
        """Note that the headers of its answer were read."""
        if self.sent_ns is not None:
            self.received_ns = self.sent_ns + time.monotonic_ns() - self._steady_ns

    def skew(self, response: aiohttp.ClientResponse) -> Skew | None:
        """Return what the answer tells of its worker's clock; ``None`` when nothing."""
        shown = response.headers.get(TIME_HEADER, "")
        if self.sent_ns is None or self.received_ns is None:
            return None
        if not _TIME.fullmatch(shown) or int(shown) > _LATEST_NS:
            return None
        return Skew.of(
            sent_ns=self.sent_ns, received_ns=self.received_ns, time_ns=int(shown)
        )


def tracing() -> aiohttp.TraceConfig:
    """Return what a session needs to time the requests that a ``Stopwatch`` goes with."""

    async def on_written(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _: object
    ) -> None:
        # The library says so before the bytes go, so that no answer can be earlier.
        if isinstance(context.trace_request_ctx, Stopwatch):
            context.trace_request_ctx.start()

    async def on_answered(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _: object
    ) -> None:
        if isinstance(context.trace_request_ctx, Stopwatch):
            context.trace_request_ctx.stop()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(on_written)
    trace.on_request_end.append(on_answered)
    return trace


async def measure(
    target: HttpTarget, session: aiohttp.ClientSession, *, timeout_ns: int
) -> Skew | None:
    """Ask a target for its time, up to three times, and return the best estimate.

    ``None`` when it tells none: the first answer without it is the last that is asked
    for. Nothing that goes wrong is an error, and all of it takes ``timeout_ns`` at
    most. The session has to have ``tracing``.
    """
    samples: list[Skew] = []
    with suppress(*_FAILURES):
        async with asyncio.timeout(timeout_ns / SECONDS):
            while len(samples) < _SAMPLES:
                sample = await _sample(target, session)
                if sample is None:
                    break
                samples.append(sample)
    return combine(samples)


async def _sample(target: HttpTarget, session: aiohttp.ClientSession) -> Skew | None:
    stopwatch = Stopwatch()
    headers = {}
    if target.authorization is not None:
        headers["Authorization"] = target.authorization.header
    response = await session.get(
        URL(target.api_url(HEALTH_PATH), encoded=True),
        headers=headers,
        allow_redirects=False,
        trace_request_ctx=stopwatch,
    )
    response.close()
    return stopwatch.skew(response)
