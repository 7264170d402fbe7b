"""What the merge counts, and what it was told, of each input."""

from __future__ import annotations

from typing import NamedTuple

from ddump_common.note import StreamNote

__all__ = ["Counters", "Heartbeat"]


class Counters(NamedTuple):
    """What became of an input's packets so far, all its captures together.

    ``packets`` were released, ``octets`` is their data as written. Of them ``late`` came
    after a later one of any input was released; ``refilled`` were asked for once more
    after an outage, and neither are late nor make others so, whenever they come; ``cut`` did not fit the
    output's snaplen when converted. Beside them ``joined`` were left out, for they had
    come before, and ``backwards`` heartbeats went back in time and meant nothing.
    """

    packets: int = 0
    octets: int = 0
    late: int = 0
    cut: int = 0
    refilled: int = 0
    joined: int = 0
    backwards: int = 0


class Heartbeat(NamedTuple):
    """The last statistics block of the capture that an input reads now.

    Times are the input's own, not shifted. ``blocks`` is how many have come, ``read``
    how many packets had come before it. ``promised_ns`` is the greatest time of any:
    nothing earlier follows. Options that were not given are ``None``; a long
    ``comment`` is cut.
    """

    promised_ns: int
    blocks: int
    read: int
    started_ns: int | None
    ended_ns: int | None
    received: int | None
    interface_dropped: int | None
    dropped: int | None
    delivered: int | None
    comment: bytes

    @property
    def note(self) -> StreamNote:
        """What the comment says."""
        return StreamNote.parse(self.comment.decode(errors="replace"))
