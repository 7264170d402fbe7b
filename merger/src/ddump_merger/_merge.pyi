# ruff: noqa: PYI021 - the stub is where the contract of the kernel stands

from typing import Self, final

from .counters import Counters, Heartbeat

__all__ = ["Merge", "Seam"]

@final
class Seam:
    """Records that an input has brought already, to be left out when they come again.

    They are known by timestamp in nanoseconds (by the input's own clock), length on the
    wire and captured data (by a keyed hash of 64 bits). Each is left out as often as it
    had come. A packet takes 43 bytes of memory at most; the data is not kept.
    """

    def __new__(cls, since_ns: int) -> Self:
        """``since_ns``: earlier ones are not asked for again, and not kept."""

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes of a capture that an input has read.

        From its beginning on; or the bytes before its first packet (``progress``), then
        those from any later record or block on. The work is proportional to ``data``,
        and done without the GIL.

        Raises:
            FormatError: it is no capture. The seam cannot be used any more.
            MemoryError: as above.
            ValueError: it cannot be used, or was given to ``reopen``.

        """

    def next_stream(self) -> None:
        """Go on with the input's next stream, which was asked for what came before again.

        What both have came once: of all streams, a packet counts as often as it came in
        the one that had it most. A unit that the last stream did not end is forgotten.

        Raises:
            ValueError: as above.

        """

    def __len__(self) -> int:
        """Return how many packets are still to be left out."""

    @property
    def octets(self) -> int:
        """The bytes of captured data in all packets that were taken."""

@final
class Merge:
    """The k-way merge of captures by timestamp, without any I/O.

    Bytes of each input go in by ``receive_data`` as they come, in any split; records
    come out by ``data_to_send`` in order of (timestamp, input, arrival), each when no
    open input can still deliver one that belongs before it: its watermark is later, or
    is that very timestamp and the input has no lower number. A record that is older
    than one that is out already leaves at once, and is counted late. Nothing is dropped.

    A record at t moves the watermark of its input to t - ``disorder_ns``, ``advance``
    to the time given, a heartbeat of one that is trusted to its time, the end to
    infinity; only ``reopen`` moves it back.

    Inputs are numbered from 0; one that was not given is an IndexError. What one input
    does never raises for another. A merge is for one thread at a time: while a loop runs
    without the GIL, all that changes the merge raises RuntimeError in another thread.

    Only records come out; the header of the file is the caller's. In pcapng they are
    enhanced packet blocks, and the caller describes their interfaces: see
    ``undescribed``.
    """

    def __new__(
        cls,
        inputs: int,
        *,
        disorder_ns: int = 50_000_000,
        pcapng: bool = False,
        nano: bool = False,
        per_interface: bool = False,
        max_packets: int = 0,
    ) -> Self:
        """``max_packets`` 0 is no limit; ``nano`` is the output's precision.

        ``per_interface`` is for pcapng of link type SLL2: the interface that a packet
        was captured on is one of the output as well.
        """

    def limit(self, i: int, max_bytes: int, *, live: bool) -> None:
        """Bound what input ``i`` may hold, records' bookkeeping included.

        Over the bound a live input forces the oldest records out, whosever they are; any
        other input only when it is itself the one that holds the merge back. Before it
        is told, the bound is 64 MiB and the input is not live.
        """

    def trust(self, i: int) -> None:
        """Take the statistics blocks of the capture that input ``i`` reads for heartbeats.

        Each of its first interface moves its watermark to the block's time, unless that
        is less than before, which is counted. Until the input is opened anew.
        """

    def shift(self, i: int, delta_ns: int) -> None:
        """Add ``delta_ns`` to all timestamps and heartbeats that input ``i`` brings now.

        Also in what it reads after ``reopen``. What would be before the epoch, or later
        than the output can hold, is a FormatError of the input when it comes.

        Raises:
            ValueError: it is more than 2**62 either way.

        """

    def suspend(self, i: int) -> None:
        """Do not wait for input ``i`` until ``resume``: it is as if it had ended.

        What it holds and brings goes out all the same, late ones at once. Idempotent.
        """

    def resume(self, i: int) -> None:
        """Wait for input ``i`` again. Idempotent.

        One that has ended is waited for when it is opened anew.
        """

    def reopen(self, i: int, *, since_ns: int, seam: Seam | None = None) -> None:
        """Begin input ``i`` anew, whether it has ended or not: a new capture follows.

        What it brought before stays; what of a record was incomplete is forgotten. Its
        watermark is ``since_ns``, by its own clock; it is waited for unless it is
        suspended. Records in ``seam``, which takes no more, are left out and counted
        joined. It is not trusted, and nothing of it is a refill, until that is said again.

        Raises:
            ValueError: the merge has not been started, or the seam was given before or
                its bytes were no capture; nothing has changed.

        """

    def refill(self, i: int, until_ns: int) -> None:
        """Count what input ``i`` brings of before ``until_ns``, its own time, as refilled.

        And what is late of it while it is suspended, or older than what is out when it is
        waited for again. Such records are never late, nor are others because of them:
        without them the output is in order but for the late ones. Until the input is
        opened anew.
        """

    def heartbeat(self, i: int) -> Heartbeat | None:
        """Return the last statistics block of the capture that input ``i`` reads now.

        They are read in any pcapng input, trusted or not, from the first interface of
        each section. One that cannot be is a FormatError, of whichever interface it is.
        """

    def progress(self, i: int) -> tuple[int, int, int]:
        """Return of the capture that input ``i`` reads now (offset, first, newest).

        ``offset`` counts the bytes of whole records or blocks that were read: the next
        one begins there. ``first`` is the offset of the first packet, or ``offset``
        when none has come; where pcapng describes something anew behind packets, it is
        that of the first one after. The bytes before it, followed by those from any
        record or block after it on, are a capture. ``newest`` is the greatest timestamp
        by the input's own clock, -1 before the first.
        """

    def watermark(self, i: int) -> int:
        """Return before which time nothing of input ``i`` is expected, shifted.

        Also while it is suspended. Once it has ended, it is greater than any timestamp.
        """

    @property
    def released_ns(self) -> int:
        """The greatest timestamp that was released, refilled ones aside.

        What is earlier is late now. Less than any before the first.
        """

    def undescribed(self) -> tuple[int, int] | None:
        """Return the input and interface index whose description has to go out now.

        In pcapng each packet names an interface that was described before it. When the
        next record to leave is of one that is not, ``data_to_send`` stops before it
        until ``describe`` was called. The index is 0 but for ``per_interface``, where
        it is the one in the SLL2 header that is written. Otherwise ``None``.
        """

    def describe(self, i: int, index: int, number: int) -> None:
        """Give the interface of input ``i`` its ``number`` in the output.

        At most 4,096 per input are distinct: what comes beyond is of index 0, too.

        Raises:
            ValueError: there are that many, and this is another one.
            MemoryError: nothing has changed.

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
        """Promise that input ``i`` holds nothing earlier any more; never moves back.

        The time is the output's: it is not shifted.
        """

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
        """Return the input that the merge waits for: of the least watermark, or -1."""

    def counters(self, i: int) -> Counters:
        """Return what became of the packets of input ``i``."""

    def received(self, i: int) -> tuple[int, int]:
        """Return how many packets of input ``i`` were taken, and the bytes of their data.

        Those that were joined are not among them; those that wait to be released are.
        """

    @property
    def done(self) -> bool:
        """Whether nothing will ever come out any more."""
