"""What a pcapng stream tells of itself while it runs: its statistics blocks.

One comes every ``HEARTBEAT_NS``, between packets and also when there are none. Its time
is a promise, that nothing earlier follows; its counters are of what came before it in
the stream. Nothing here waits or looks at a clock: whoever reads packets says what is
promised, asks whether a block is due, and puts it into the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.api import HEARTBEAT_NS
from ddump_common.note import StreamNote
from ddump_common.pcapng import Statistics
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddump_common.note import EndReason

__all__ = ["Heartbeat", "Tally"]

_SECONDS = HEARTBEAT_NS / SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a stream's packets so far, as ``StreamInfo`` has it.

    ``received`` are those that the kernel took for it, ``dropped`` of them included: a
    window has none. Nor has it ``interface_dropped``, unless it is followed. All are as
    of ``counted_ns``.
    """

    received: int | None
    interface_dropped: int | None
    dropped: int
    delivered: int
    skipped: int
    counted_ns: int


class Heartbeat:
    """The statistics blocks of one stream, which ``tally`` counts.

    ``started_ns`` is when it began. ``due`` is when the next block is, in seconds of a
    clock that is never set; the first is at once.
    """

    def __init__(
        self, *, started_ns: int, promised_ns: int, tally: Callable[[], Tally]
    ) -> None:
        self.due = 0.0
        self.promised_ns = promised_ns
        self._started_ns = started_ns
        self._tally = tally

    def promise(self, time_ns: int) -> None:
        """Have the next block promise ``time_ns``, unless more was promised before."""
        self.promised_ns = max(self.promised_ns, time_ns)

    def block(self, now: float) -> bytes:
        """Return a block that is due, or comes early; all that it counts was sent."""
        # From when it was due, so that what delays one does not delay all; but those
        # that were missed are not made up for.
        self.due = max(min(self.due, now) + _SECONDS, now)
        if self.due <= now:
            self.due = now + _SECONDS
        return self._block()

    def last_block(self, reason: EndReason, *, ended_ns: int) -> bytes:
        """Return the block with which the stream ends, which holds its totals."""
        return self._block(reason, ended_ns)

    def _block(
        self, reason: EndReason | None = None, ended_ns: int | None = None
    ) -> bytes:
        tally = self._tally()
        return Statistics(
            time_ns=self.promised_ns,
            started_ns=self._started_ns,
            ended_ns=ended_ns,
            received=tally.received,
            interface_dropped=tally.interface_dropped,
            dropped=tally.dropped,
            delivered=tally.delivered,
            comment=str(
                StreamNote(
                    ended=reason, counted_ns=tally.counted_ns, skipped=tally.skipped
                )
            ),
        ).serialize()
