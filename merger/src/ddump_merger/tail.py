"""The end of a stream: what it brought since its last promise, kept until the next.

After a break a worker is asked for all that is not before that promise, and some of it
has come already. This is where that is taken from. What no packet can be left in that
is asked for again is dropped as promises move on. Sans-I/O.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Tail"]


class Tail:
    """The blocks of one stream from some block on, and those that describe them.

    It holds ``max_bytes`` and a read of the stream at most: what is too much is
    forgotten, the oldest first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._promised_ns = 0
        self._forgotten_ns = -1
        self.newest_ns = -1
        """The greatest timestamp that came, -1 before any."""
        self._preamble: bytes | None = None
        self._chunks: deque[bytes] = deque()
        # Offsets in the stream: of the first chunk, of the first block that is kept, of
        # the end of all whole blocks, of the end of all chunks.
        self._begin = self._start = self._whole = self._end = 0
        # Ends of reads, as the offset of the next block, and the newest time before it.
        self._marks: deque[tuple[int, int]] = deque()

    @property
    def since_ns(self) -> int:
        """What to ask for from: all that has come and is not before it is in the tail.

        That is the last promise, or later when packets were forgotten.
        """
        return max(self._promised_ns, self._forgotten_ns + 1)

    @property
    def exact(self) -> bool:
        """Whether it has all that came and is not before the last promise."""
        return self._forgotten_ns < self._promised_ns

    @property
    def empty(self) -> bool:
        """Whether no packet of it can be asked for again."""
        return self.newest_ns < self.since_ns

    def __len__(self) -> int:
        """Return how many bytes are kept."""
        return self._end - self._begin + len(self._preamble or b"")

    def receive_data(self, data: bytes, *, offset: int, newest_ns: int) -> None:
        """Take the next bytes of the stream; a reference is kept.

        With them the stream was read up to the block that begins at ``offset``, and the
        greatest time before it is ``newest_ns``, -1 without any packet.
        """
        self._chunks.append(data)
        self._end += len(data)
        self.newest_ns = newest_ns
        if offset > self._whole:
            self._whole = offset
            self._marks.append((offset, newest_ns))
        while len(self) > self._max_bytes and len(self._marks) > 1:
            start, forgotten_ns = self._marks.popleft()
            self._forgotten_ns = max(self._forgotten_ns, forgotten_ns)
            self._drop_before(start)
        if self._preamble is None and self._start:
            # What describes the packets is gone, so what is kept means nothing.
            self._forgotten_ns = max(self._forgotten_ns, newest_ns)
            self._marks.clear()
            self._drop_before(self._end)

    def describe(self, first: int) -> None:
        """Keep what is before ``first`` for good: it says how the packets are written.

        Said again, it means nothing.
        """
        if self._preamble is None and self._start == 0:
            self._preamble = b"".join(self._chunks)[:first]
            self._drop_before(first)

    def promise(self, promised_ns: int) -> None:
        """Drop what is needed no more: nothing before ``promised_ns`` is asked for again."""
        self._promised_ns = max(self._promised_ns, promised_ns)
        start = self._start
        while self._marks and self._marks[0][1] < self.since_ns:
            start, _ = self._marks.popleft()
        self._drop_before(start)

    def pieces(self) -> Iterator[bytes]:
        """Yield a capture of what is kept: what describes it, and then whole blocks."""
        if self._preamble:
            yield self._preamble
        at = self._begin
        for chunk in self._chunks:
            if piece := chunk[max(self._start - at, 0) : max(self._whole - at, 0)]:
                yield piece
            at += len(chunk)

    def _drop_before(self, start: int) -> None:
        self._start = max(start, self._start)
        while self._chunks and self._begin + len(self._chunks[0]) <= self._start:
            self._begin += len(self._chunks.popleft())
