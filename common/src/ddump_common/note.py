"""What a worker says of a stream in the comments of its statistics blocks.

pcapng has no field for why a stream ended, nor for packets that were recorded and can
no longer be read. A comment says it in words that people read as well::

    ended: duration
    ended: complete; skipped: 12
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

__all__ = ["EndReason", "StreamNote"]

_ENDED = re.compile(r"(?:^|; )ended: ([a-z]{1,20})(?=;|$)")
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

    ``skipped`` packets of a window, at most, were recorded and could not be read.
    """

    ended: EndReason | None = None
    skipped: int = 0

    def __str__(self) -> str:
        words = [] if self.ended is None else [f"ended: {self.ended}"]
        if self.skipped:
            words.append(f"skipped: {self.skipped}")
        return "; ".join(words)

    @classmethod
    def parse(cls, comment: str) -> StreamNote:
        """Read what ``str`` returns; what is not understood is left alone."""
        ended, skipped = _ENDED.search(comment), _SKIPPED.search(comment)
        known = set(EndReason)
        return cls(
            ended=EndReason(ended[1]) if ended and ended[1] in known else None,
            skipped=int(skipped[1]) if skipped else 0,
        )
