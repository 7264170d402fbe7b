"""The heartbeats of one stream, as they come: its promise, its books, its tail.

A worker that promised heartbeats and sends none is found out while its packets are read:
their time counts, not ours. Sans-I/O beside the merge, which reads the blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddump_common.note import StreamNote
from ddump_common.units import SECONDS, format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddump_common.note import EndReason

    from ._merge import Merge
    from .books import Books
    from .counters import Heartbeat
    from .tail import Tail

__all__ = ["PATIENCE_NS", "Heartbeats"]

# Forty heartbeats.
PATIENCE_NS = 10 * SECONDS

# A worker promises what is some hundred milliseconds old, a second at most.
_LATEST_NS = 5 * SECONDS
# Clocks drift, and are put right.
_EARLIEST_NS = SECONDS

# More between two reads is no time in which a heartbeat could have come.
_LONGEST_READ = 1.0


class Heartbeats:
    """Those of the stream that input ``index`` of ``merge`` reads.

    Every new one is entered into ``books``; ``tails`` are kept up to date, the last of
    which is that of this stream.
    """

    def __init__(
        self, merge: Merge, index: int, *, books: Books, tails: Sequence[Tail]
    ) -> None:
        self.last: Heartbeat | None = None
        self._merge = merge
        self._index = index
        self._books = books
        self.tails = tails
        self._without = 0.0
        self._behind = 0.0

    @property
    def withheld(self) -> bool:
        """Whether packets came for so long that a heartbeat should have come as well."""
        return self._without * SECONDS >= PATIENCE_NS

    def doubt(self, *, present_ns: int, error_ns: int, seconds: float) -> str:
        """Return why the last promise is not to be believed; empty when it is.

        The worker's clock shows ``present_ns``, give or take ``error_ns``. Late promises
        are wrong only while they are waited for, as they were for ``seconds``: what had
        piled up in the connection is late, too.
        """
        promised_ns = 0 if self.last is None else self.last.promised_ns
        if promised_ns > present_ns + error_ns + _EARLIEST_NS:
            return "its heartbeats promise what is yet to come"
        late_ns = present_ns - error_ns - promised_ns
        if late_ns <= _LATEST_NS:
            self._behind = 0.0
            return ""
        self._behind += min(seconds, _LONGEST_READ)
        if self._behind * SECONDS < PATIENCE_NS:
            return ""
        return (
            f"its heartbeats are {format_duration(late_ns // SECONDS * SECONDS)} late"
        )

    @property
    def end(self) -> EndReason | None:
        """Why the stream ended; ``None`` when its worker has not said that it did."""
        last = self.last
        if last is None or last.ended_ns is None:
            return None
        return StreamNote.parse(last.comment.decode(errors="replace")).ended

    def receive_data(self, data: bytes, *, seconds: float) -> Heartbeat | None:
        """Take what the merge was given; return the last heartbeat in it, if there is one.

        ``seconds`` is how long it was waited for.
        """
        offset, first, newest_ns = self._merge.progress(self._index)
        if self.tails:
            self.tails[-1].receive_data(data, offset=offset, newest_ns=newest_ns)
        heartbeat = self._merge.heartbeat(self._index)
        if heartbeat is None or heartbeat == self.last:
            self._without += min(seconds, _LONGEST_READ)
            return None
        self._without = 0.0
        self.last = heartbeat
        self._books.check(heartbeat)
        if self.tails:
            self.tails[-1].describe(first)
        for tail in self.tails:
            tail.promise(heartbeat.promised_ns)
        return heartbeat
