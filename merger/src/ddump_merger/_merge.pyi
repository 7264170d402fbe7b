from typing import final

__all__ = ["Merge"]

@final
class Merge:
    """The k-way merge of captures by timestamp, without any I/O.

    Bytes of each input go in by ``receive_data`` as they come, in any split; records
    come out by ``data_to_send`` in order of (timestamp, input, arrival), each when no
    open input can still deliver an earlier one. Inputs are numbered from 0. What one
    input does never raises for another.
    """

    def __init__(
        self,
        inputs: int,
        *,
        disorder_ns: int = 50_000_000,
        pcapng: bool = False,
        nano: bool = False,
        max_packets: int = 0,
    ) -> None:
        """``max_packets`` 0 is no limit; ``nano`` is the output's precision."""

    def limit(self, i: int, max_bytes: int, *, live: bool) -> None:
        """Bound what input ``i`` may hold, records' bookkeeping included.

        At the bound a live input forces the oldest records out, whosever they are; any
        other input only when it is itself the one that holds the merge back.
        """

    def receive_data(self, i: int, data: bytes) -> None:
        """Take the next bytes of input ``i``; a reference is kept, they are not copied.

        Raises:
            FormatError: the input is not, or no longer, a capture. It has then ended;
                what it delivered before stays in the merge.

        """

    def receive_eof(self, i: int) -> None:
        """End input ``i``. Idempotent.

        Raises:
            TruncatedError: in the middle of a header or a record. It has ended.

        """

    def refuse(self, i: int) -> None:
        """End input ``i`` and forget all that it delivered and was not yet released."""

    def advance(self, i: int, timestamp_ns: int) -> None:
        """Promise that input ``i`` holds nothing earlier any more; never moves back."""

    def start(self, link_type: int) -> None:
        """Fix the output's link type; nothing is released before. SLL and SLL2 inputs
        are converted to whichever of the two it is."""

    def data_to_send(self) -> bytes:
        """Return the next records as bytes, about 256 KiB at most; empty: not now."""

    def link_type(self, i: int) -> int | None:
        """Return the input's link type once its header has come."""

    def buffered(self, i: int) -> int:
        """Return the bytes that input ``i`` holds, bookkeeping included."""

    def lagging(self) -> int:
        """Return the open input with the least watermark (which the merge waits for), or -1."""

    def counters(self, i: int) -> tuple[int, int, int, int]:
        """Return (packets, bytes of packet data, late packets, cut packets) of input ``i``.

        Packets count when they are released. Late ones came after a later one of any
        input was released; cut ones did not fit the output's snaplen when converted.
        """

    @property
    def done(self) -> bool:
        """Whether nothing will ever come out any more."""
