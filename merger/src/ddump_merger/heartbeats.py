"""The heartbeats of one stream, as they come: its promise, its books, its tail.

A worker that promised heartbeats and sends none is found out while its packets are read:
their time counts, not ours. So is one whose promises are late or stand still, for only
while they are waited for do they hold anybody back: what had piled up in the connection
is late, too. Sans-I/O beside the merge, which reads the blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddump_common.units import SECONDS, format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddump_common.note import EndReason

    from ._merge import Merge
    from .books import Books
    from .counters import Heartbeat
    from .tail import Tail

__all__ = ["LATEST_NS", "PATIENCE_NS", "Heartbeats"]

# Forty heartbeats.
PATIENCE_NS = 10 * SECONDS

# A worker promises what is some hundred milliseconds old, a second at most.
LATEST_NS = 5 * SECONDS
# Clocks drift, and are put right.
_EARLIEST_NS = SECONDS

# More between two reads is no time in which a heartbeat could have come.
_LONGEST_READ = 1.0

# A process that slept had not waited: such a time alone makes nobody late.
_LONGEST_WAIT = 5.0


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
        self._standing = 0.0
        self._moved: tuple[int, int, int] | None = None

    @property
    def withheld(self) -> bool:
        """Whether packets came for so long that a heartbeat should have come as well."""
        return self._without * SECONDS >= PATIENCE_NS

    @property
    def standing_ns(self) -> int:
        """For how long neither a packet came nor a promise of more."""
        return int(self._standing * SECONDS)

    def early(self, *, present_ns: int) -> bool:
        """Whether the last promise is of what is yet to come.

        The worker's clock shows ``present_ns`` at most.
        """
        promised_ns = 0 if self.last is None else self.last.promised_ns
        return promised_ns > present_ns + _EARLIEST_NS

    def lag(self, *, late_ns: int | None, seconds: float) -> str:
        """Return why others wait for the stream too long; empty when they do not.

        Its last promise is ``late_ns`` old at least, ``None`` when that is not known.
        ``seconds`` is for how long the last bytes were waited for.
        """
        if self.standing_ns >= PATIENCE_NS:
            return "its heartbeats stand still"
        if late_ns is None or late_ns <= LATEST_NS:
            self._behind = 0.0
            return ""
        self._behind += min(seconds, _LONGEST_WAIT)
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
        return last.note.ended

    def receive_data(self, data: bytes, *, seconds: float) -> Heartbeat | None:
        """Take what the merge was given; return the last heartbeat in it, if there is one.

        ``seconds`` is how long it was waited for.
        """
        offset, first, newest_ns = self._merge.progress(self._index)
        if self.tails:
            self.tails[-1].receive_data(data, offset=offset, newest_ns=newest_ns)
        heartbeat = self._merge.heartbeat(self._index)
        self._see_whether_moved(heartbeat, seconds)
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

    def _see_whether_moved(self, last: Heartbeat | None, seconds: float) -> None:
        packets, _ = self._merge.received(self._index)
        joined = self._merge.counters(self._index).joined
        moved = packets, joined, -1 if last is None else last.promised_ns
        if moved == self._moved:
            self._standing += min(seconds, _LONGEST_READ)
        else:
            self._moved, self._standing = moved, 0.0
