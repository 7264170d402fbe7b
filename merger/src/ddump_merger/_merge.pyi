# ruff: noqa: PYI021 - the stub is where the contract of the kernel stands

from typing import Self, final

__all__ = ["Merge"]

@final
class Merge:
    """The k-way merge of captures by timestamp, without any I/O.

    Bytes of each input go in by ``receive_data`` as they come, in any split; records
    come out by ``data_to_send`` in order of (timestamp, input, arrival), each when no
    open input can still deliver one that belongs before it: its watermark is later, or
    is that very timestamp and the input has no lower number. A record that is older
    than one that is out already leaves at once, and is counted late. Nothing is dropped.

    A record at t moves the watermark of its input to t - ``disorder_ns``, ``advance``
    to the time given, the end to infinity; nothing moves it back.

    Inputs are numbered from 0; one that was not given is an IndexError. What one input
    does never raises for another. A merge is for one thread at a time: while a loop runs
    without the GIL, all that changes the merge raises RuntimeError in another thread.

    Only records come out; the header of the file is the caller's. In pcapng they are
    enhanced packet blocks whose interface is the number of the input.
    """

    def __new__(
        cls,
        inputs: int,
        *,
        disorder_ns: int = 50_000_000,
        pcapng: bool = False,
        nano: bool = False,
        max_packets: int = 0,
    ) -> Self:
        """``max_packets`` 0 is no limit; ``nano`` is the output's precision."""

    def limit(self, i: int, max_bytes: int, *, live: bool) -> None:
        """Bound what input ``i`` may hold, records' bookkeeping included.

        Over the bound a live input forces the oldest records out, whosever they are; any
        other input only when it is itself the one that holds the merge back. Before it
        is told, the bound is 64 MiB and the input is not live.
        """

    def receive_data(self, i: int, data: bytes) -> None:
        """Take the next bytes of input ``i``; a reference is kept, they are not copied.

        The work is proportional to ``data``, and done without the GIL. Classic pcap and
        pcapng are told apart by the first bytes. Fractions of a nanosecond are cut off;
        a simple packet block, which has no timestamp, takes that of the record before
        it in its input, 0 when there is none.

        Raises:
            FormatError: the input is not, or no longer, a capture, or its link type
                cannot become the output's. It has then ended; what it delivered
                before stays in the merge.
            MemoryError: as above.
            ValueError: the input has ended before.

        """

    def receive_eof(self, i: int) -> None:
        """End input ``i``. Idempotent.

        Raises:
            TruncatedError: in the middle of a header, a record or a block, or before
                the first byte. It has ended.

        """

    def refuse(self, i: int) -> None:
        """End input ``i`` and forget all that it delivered and was not yet released."""

    def advance(self, i: int, timestamp_ns: int) -> None:
        """Promise that input ``i`` holds nothing earlier any more; never moves back."""

    def start(self, link_type: int) -> None:
        """Fix the output's link type; nothing is released before.

        SLL and SLL2 inputs are converted to whichever of the two it is. Inputs whose
        link type comes later and does not fit end with a FormatError when it comes.

        Raises:
            ValueError: an input that is open or holds records has a link type that
                does not fit (nothing is fixed then), or it is fixed already.

        """

    def data_to_send(self) -> bytes:
        """Return the next records as bytes, about 256 KiB at most; empty: not now.

        The bytes are never written again. They are made without the GIL.
        """

    def link_type(self, i: int) -> int | None:
        """Return the input's link type once it has come: in pcapng, with an interface."""

    def buffered(self, i: int) -> int:
        """Return the bytes that input ``i`` holds, bookkeeping included."""

    def lagging(self) -> int:
        """Return the open input with the least watermark (which the merge waits for), or -1."""

    def counters(self, i: int) -> tuple[int, int, int, int]:
        """Return (packets, bytes of packet data, late packets, cut packets) of input ``i``.

        Packets count when they are released, their bytes as they are written. Late ones
        came after a later one of any input was released; cut ones did not fit the
        output's snaplen when converted.
        """

    @property
    def done(self) -> bool:
        """Whether nothing will ever come out any more."""
