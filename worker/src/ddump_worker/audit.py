"""The audit trail: one line in the log for each request, when it has ended.

It tells who asked for what, what they got, and how it ended; of what came with the
request only what was understood, so that no credential and no query string is in it.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from ddump_common.api import RingQuery
from ddump_common.timespec import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddump_common.answers import Problem, StreamInfo
    from ddump_common.api import CaptureQuery

    from .access import Order
    from .identity import Client

__all__ = ["ENTRY", "Entry", "ended_by"]

_log = logging.getLogger(__name__)

# Of what anybody may send, however long: a line of the log stays one that can be read.
_MAX_METHOD = 32
_MAX_PATH = 256
_MAX_IDENTITY = 512
_MAX_WORDS = 512
# What separates the words of a filter, as libpcap's scanner has it.
_BLANKS = re.compile(r"[ \t\r\n]+")


@dataclass(slots=True, kw_only=True)
class Entry:
    """What is known of one request so far.

    ``status`` is that of the answer, ``None`` as long as none has begun; ``query`` is
    what was asked for, and ``order`` what became of it.
    """

    address: str
    method: str = ""
    path: str = ""
    client: Client | None = None
    status: int | None = None
    query: CaptureQuery | None = None
    order: Order[CaptureQuery] | None = None
    stream: StreamInfo | None = None
    ended: str = "answered"
    _began: float = field(default_factory=time.monotonic)

    def log(self) -> None:
        """Write the line; to be called once, at the end."""
        _log.info("request", extra={"fields": dict(self._fields())})

    def _fields(self) -> Iterator[tuple[str, object]]:
        client = self.client
        yield "identity", client and _cut(str(client.identity), _MAX_IDENTITY)
        yield "address", self.address if client is None else client.address
        yield "method", _cut(self.method, _MAX_METHOD) or None
        yield "path", _cut(self.path, _MAX_PATH) or None
        yield "status", self.status
        yield "ended", _cut(self.ended, _MAX_WORDS)
        if self.query is not None:
            yield from _asked(self.query)
        if self.stream is not None:
            yield from _became(self.stream)
        yield "seconds", round(time.monotonic() - self._began, 3)
        # Last, as they are long: who cuts lines that are shall not cut the numbers.
        if self.query is not None:
            yield "filter", _one_line(self.query.filter)
            # Nothing is run for what is refused, nor for HEAD.
            order = None if self.stream is None else self.order
            yield "filter_run", None if order is None else _one_line(order.filter)


def _one_line(expression: str) -> str:
    return _BLANKS.sub(" ", expression.strip())


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _asked(query: CaptureQuery) -> Iterator[tuple[str, object]]:
    yield "interfaces", list(query.interfaces)
    if isinstance(query, RingQuery):
        yield "since", None if query.since_ns is None else format_time(query.since_ns)
        yield "until", None if query.until_ns is None else format_time(query.until_ns)
        yield "follow", query.follow


def _became(stream: StreamInfo) -> Iterator[tuple[str, object]]:
    yield "stream", stream.id
    yield "packets", stream.packets
    yield "bytes", stream.bytes
    yield "dropped", stream.dropped
    if stream.window:
        yield "skipped", stream.skipped
    else:
        yield "interface_dropped", stream.interface_dropped
        yield "undelivered", stream.undelivered


def ended_by(problem: Problem) -> str:
    """Return how a request ended that was answered with ``problem``."""
    return f"{problem.title}: {problem.detail}" if problem.detail else problem.title


ENTRY = web.RequestKey("ENTRY", Entry)
"""Where a request keeps its entry, from its beginning on."""
