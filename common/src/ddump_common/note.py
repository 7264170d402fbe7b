"""What a worker says of a stream in the comments of its statistics blocks.

pcapng has no field for why a stream ended, for packets that were recorded and can no
longer be read, nor, where the time of a block is a promise, for when its counts were
taken. A comment says it in words that people read as well::

    counted: 1763820180250000000
    ended: complete; counted: 1763820180250000000; skipped: 12
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

__all__ = ["EndReason", "StreamNote"]

_ENDED = re.compile(r"(?:^|; )ended: ([a-z]{1,20})(?=;|$)")
_COUNTED = re.compile(r"(?:^|; )counted: ([0-9]{1,18}|[1-8][0-9]{18})(?=;|$)", re.ASCII)
_SKIPPED = re.compile(r"(?:^|; )skipped: ([0-9]{1,18})(?=;|$)", re.ASCII)


class EndReason(enum.StrEnum):
    """Why a stream ended cleanly.

    All are as it was asked to but ``shutdown``, and ``cap``: a limit that the worker
    sets whoever asks was reached.
    """

    PACKETS = "packets"
    BYTES = "bytes"
    DURATION = "duration"
    IDLE = "idle"
    COMPLETE = "complete"
    SHUTDOWN = "shutdown"
    CAP = "cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamNote:
    """The comment of one block: ``ended`` is ``None`` before the last one.

    Its counts are as of ``counted_ns``, in nanoseconds since the epoch; ``None`` when
    that is not told. ``skipped`` packets of a window, at most, were recorded and could
    not be read.
    """

    ended: EndReason | None = None
    counted_ns: int | None = None
    skipped: int = 0

    def __str__(self) -> str:
        words = [] if self.ended is None else [f"ended: {self.ended}"]
        if self.counted_ns is not None:
            words.append(f"counted: {self.counted_ns}")
        if self.skipped:
            words.append(f"skipped: {self.skipped}")
        return "; ".join(words)

    @classmethod
    def parse(cls, comment: str) -> StreamNote:
        """Read what ``str`` returns; what is not understood is left alone."""
        ended, counted, skipped = (
            pattern.search(comment) for pattern in (_ENDED, _COUNTED, _SKIPPED)
        )
        known = set(EndReason)
        return cls(
            ended=EndReason(ended[1]) if ended and ended[1] in known else None,
            counted_ns=int(counted[1]) if counted else None,
            skipped=int(skipped[1]) if skipped else 0,
        )
