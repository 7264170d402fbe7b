# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True, embedsignature=True, autotestdict=False
"""The worker's second kernel: records that are stored.

An ``Index`` says where the records of a segment are and which times they have, a
``Cutter`` takes those of a window out of several segments. What they do is in the
declaration files beside this one: ``_blocks`` (a segment, its blocks and records),
``_window`` (what is read, and when), ``_kept`` (the order), ``_cooked`` (how a record
leaves). Here are the objects around it: arguments, errors, who may call when.

Files are read by ``pread``, never mapped: one that somebody cuts would be a SIGBUS. All
reading, filtering and sorting is done without the GIL.
"""

import os

from ddump_common.errors import CaptureError, FilterError

cimport cython

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EINTR, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ddump_worker._blocks cimport (
    FILE_HEADER,
    MAX_CAPLEN,
    PIECE,
    Entry,
    Table,
    table_find,
    table_open,
    table_scan,
    table_take,
)
from ddump_worker._cooked cimport (
    LINUX_SLL,
    LINUX_SLL2,
    SLL2_SIZE,
    SLL_SIZE,
)
from ddump_worker._follow cimport follow_blocks
from ddump_worker._window cimport (
    FINE,
    GONE,
    MAX_PARTS,
    NO_MEMORY,
    NO_RECORD,
    NOT_OPEN,
    NOT_READ,
    OTHER_COUNT,
    OTHER_TIME,
    PLACE_BITS,
    TOO_SHORT,
    UNOPENED,
    Fault,
    Output,
    Window,
    window_add,
    window_advance,
    window_close,
)
from ddump_worker.libpcap cimport (
    FALLOC_FL_KEEP_SIZE,
    bpf_validate,
    fallocate,
    instruction,
)

HEADER_BYTES = FILE_HEADER

cdef enum:
    INSTRUCTION = 8  # sizeof(struct bpf_insn)
    BPF_JA = 0x05
    # Blocks of one call of `follow`: those that it need not read cost it nothing.
    MAX_FOLLOWED = 4096

# What libpcap runs; at anything else it aborts the process, though bpf_validate takes it.
cdef object _INSTRUCTIONS = frozenset([
    0x00, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80,  # ld
    0x01, 0x61, 0x81, 0xB1,  # ldx
    0x02, 0x03,  # st, stx
    0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74, 0x84, 0x94, 0xA4,  # with k
    0x0C, 0x1C, 0x2C, 0x3C, 0x4C, 0x5C, 0x6C, 0x7C, 0x9C, 0xAC,  # with x
    0x05, 0x15, 0x25, 0x35, 0x45, 0x1D, 0x2D, 0x3D, 0x4D,  # jumps
    0x06, 0x16,  # ret
    0x07, 0x87,  # tax, txa
])

cdef uint64_t NO_LIMIT = 0xFFFFFFFFFFFFFFFFULL
cdef int64_t MAX_SEGMENT = <int64_t>1 << PLACE_BITS

cdef dict _FAULTS = {
    TOO_SHORT: "the file ends there",
    NO_RECORD: "no whole record is there",
    OTHER_TIME: "a record of another time is there",
    OTHER_COUNT: "a block of another number of records begins there",
}


class UnreadableError(CaptureError):
    """A segment's file cannot be read, or is not what was indexed.

    ``part`` is the segment's number in the window, -1 of one that is followed.
    """

    def __init__(self, message: str, *, part: int) -> None:
        super().__init__(message)
        self.part = part


cdef uint32_t cooked_size(int link_type) except 0:
    if link_type == LINUX_SLL:
        return SLL_SIZE
    if link_type == LINUX_SLL2:
        return SLL2_SIZE
    raise ValueError(f"link type {link_type} is neither {LINUX_SLL} nor {LINUX_SLL2}")


cdef object os_error(int number, str where):
    return OSError(number, f"{os.strerror(number)}: {where}")


def preallocate(int fd, long size) -> None:
    """Take ``size`` bytes of the disk for a file whose size stays as it is.

    A file system that cannot do that is no error.

    Raises:
        OSError: the disk has not got them.

    """
    cdef int error = EINTR
    with nogil:
        while error == EINTR:
            error = errno if fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size) else 0
    if error not in (0, EOPNOTSUPP):
        raise os_error(error, f"{size} bytes ahead")


@cython.auto_pickle(False)
@cython.final
cdef class Index:
    """Where the records of one segment are, and which times they have.

    An entry per block of about 64 KiB of whole records: offset, bytes, packets, least and
    greatest timestamp. Methods are atomic under the GIL, so that one thread may append
    while others read; ``scan`` alone releases it.

    Args:
        link_type: of the segment, 113 or 276.

    """

    cdef Table _table
    cdef readonly int link_type
    cdef bint _scanning

    def __cinit__(self, *, int link_type):
        table_open(&self._table, cooked_size(link_type))
        self.link_type = link_type

    def __dealloc__(self):
        PyMem_RawFree(self._table.entries)

    cdef int _check(self, int64_t end) except -1:
        if self._scanning:
            raise RuntimeError("the index is being made by another thread")
        if end > MAX_SEGMENT:
            raise ValueError(f"a segment of {end} bytes, of at most {MAX_SEGMENT}")
        return 0

    def append(self, bytes data not None) -> int:
        """Index the records at the beginning of ``data``, which follows what is indexed.

        Returns:
            How many bytes the whole and valid ones are.

        """
        cdef int64_t taken
        self._check(self._table.committed + len(data))
        taken = table_take(
            &self._table, <const uint8_t *><const char *>data, <size_t>len(data)
        )
        if taken < 0:
            raise MemoryError
        return taken

    def scan(self, int fd, int64_t size) -> None:
        """Index the file from ``committed`` to ``size``, without the GIL.

        It stops at the first record that is not whole or not valid. Until it returns,
        the properties are as before, and another thread that appends gets RuntimeError.

        Raises:
            OSError: of a read. What came before it is indexed.

        """
        cdef Table table
        cdef uint8_t *piece
        cdef int64_t status
        self._check(size)
        piece = <uint8_t *>PyMem_RawMalloc(PIECE)
        table = self._table
        table.entries = <Entry *>PyMem_RawMalloc(table.capacity * sizeof(Entry))
        if piece == NULL or table.entries == NULL:
            PyMem_RawFree(piece)
            PyMem_RawFree(table.entries)
            raise MemoryError
        if table.count:
            memcpy(table.entries, self._table.entries, table.count * sizeof(Entry))
        self._scanning = True
        with nogil:
            status = table_scan(&table, fd, size, piece)
        self._scanning = False
        PyMem_RawFree(piece)
        PyMem_RawFree(self._table.entries)
        self._table = table
        if status > 0:
            raise MemoryError
        if status < 0:
            raise os_error(<int>-status, f"a segment at byte {table.committed}")

    def overlaps(self, int64_t since_ns, int64_t until_ns) -> bool:
        """Return whether a block may have a record in [``since_ns``, ``until_ns``)."""
        cdef size_t i
        cdef const Entry *entry
        for i in range(self._table.count):
            entry = &self._table.entries[i]
            if entry.greatest_ns >= since_ns and entry.least_ns < until_ns:
                return True
        return False

    @property
    def committed(self) -> int:
        """Offset of the end of what is indexed, HEADER_BYTES at first."""
        return self._table.committed

    @property
    def corrupt(self) -> bool:
        """Whether what follows ``committed`` was seen and is no valid record.

        One that is only torn is not corrupt.
        """
        return self._table.corrupt

    @property
    def packets(self) -> int:
        """How many records are indexed."""
        return self._table.packets

    @property
    def least_ns(self) -> int | None:
        """The least timestamp, None without records."""
        return self._table.least_ns if self._table.count else None

    @property
    def greatest_ns(self) -> int | None:
        """The greatest timestamp, None without records."""
        return self._table.greatest_ns if self._table.count else None

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the index takes."""
        return sizeof(Table) + self._table.capacity * sizeof(Entry)


@cython.auto_pickle(False)
@cython.final
cdef class Cutter:
    """Takes the records of one window out of segments: filters, orders, converts, cuts.

    One pull's. ``add`` the segments first, then ``cut`` until ``exhausted`` or
    ``finished``; ``follow`` is apart from that, in order of arrival. One thread at a
    time, another one gets RuntimeError; the properties may be read by any. It holds
    about 12 MiB at most, whatever the timestamps are, and 44 bytes for each block.

    Args:
        program: 8-byte BPF instructions as compiled for a capture file of ``link_type``,
            run by libpcap on each record as it is stored; empty: all match.
        link_type: of what is stored, 113 or 276.
        output_link_type: of what leaves, 113 or 276.
        snaplen: bytes of a packet that leave, after the conversion.
        nano: what leaves has times in nanoseconds, else microseconds.
        pcapng: enhanced packet blocks of interface 0 leave, with nanoseconds in any case.
        since_ns: the window's begin.
        until_ns: its end; a record of this time is outside.
        packet_limit: give no more than this many packets.
        byte_limit: give no packet after that which reaches this sum of data.

    Raises:
        FilterError: libpcap cannot run the program, or it has a loop.

    """

    cdef Window _window
    cdef Output _output
    cdef int64_t _position_ns  # of what was returned, not of what was only read
    cdef bint _busy

    def __cinit__(
        self,
        *,
        bytes program not None = b"",
        int link_type,
        int output_link_type,
        snaplen = MAX_CAPLEN,
        bint nano = False,
        bint pcapng = False,
        int64_t since_ns = 0,
        int64_t until_ns = INT64_MAX,
        packet_limit = None,
        byte_limit = None,
    ):
        memset(&self._window, 0, sizeof(self._window))
        memset(&self._output, 0, sizeof(self._output))
        self._window.cooked = cooked_size(link_type)
        cooked_size(output_link_type)
        if not 1 <= snaplen <= MAX_CAPLEN:
            raise ValueError(f"a snaplen of {snaplen}")
        self._output.form.link_type = link_type
        self._output.form.output_link_type = output_link_type
        self._output.form.snaplen = snaplen
        self._output.form.nano = nano
        self._output.form.pcapng = pcapng
        self._output.packet_limit = NO_LIMIT if packet_limit is None else packet_limit
        self._output.octet_limit = NO_LIMIT if byte_limit is None else byte_limit
        # No stored time is less than 0.
        self._window.since_ns = max(since_ns, 0)
        self._window.lower.timestamp_ns = self._window.since_ns
        self._window.end.timestamp_ns = max(until_ns, self._window.since_ns)
        self._window.position_ns = self._window.since_ns
        self._position_ns = self._window.since_ns
        if program:
            self._load(program)

    cdef int _load(self, bytes code) except -1:
        cdef size_t count = <size_t>len(code) // INSTRUCTION
        cdef instruction *instructions
        cdef size_t i
        # Zeroed, as an instruction more than there are is never looked at but in vain.
        instructions = <instruction *>PyMem_RawCalloc(count + 1, INSTRUCTION)
        if instructions == NULL:
            raise MemoryError
        self._output.filter.bf_insns = instructions
        memcpy(instructions, <const char *>code, count * INSTRUCTION)
        if len(code) % INSTRUCTION or not bpf_validate(instructions, <int>count):
            raise FilterError(f"libpcap cannot run the filter of {len(code)} bytes")
        for i in range(count):
            if instructions[i].code not in _INSTRUCTIONS:
                raise FilterError(
                    f"libpcap does not know instruction {instructions[i].code:#x}"
                )
            # libpcap itself allows jumps backward: they could go on for ever.
            if instructions[i].code == BPF_JA and instructions[i].k >= count - i:
                raise FilterError("the filter has a loop, as with protochain")
        self._output.filter.bf_len = <unsigned int>count
        return 0

    def __dealloc__(self):
        window_close(&self._window)
        PyMem_RawFree(self._output.filter.bf_insns)
        PyMem_RawFree(self._output.data)

    cdef int _check(self) except -1:
        if self._busy:
            raise RuntimeError("another thread is using the cutter")
        return 0

    def add(self, Index index not None, int64_t committed) -> int:
        """Take the blocks of a segment, up to offset ``committed``, into the window.

        Segments are added in order of arrival, before the first ``cut``. The index is
        not kept.

        Returns:
            The number of this part: 0, 1, …

        """
        self._check()
        if self._window.begun:
            raise ValueError("the window is being cut already")
        if index.link_type != self._output.form.link_type:
            raise ValueError(f"a segment of link type {index.link_type}")
        if committed > index._table.committed:
            raise ValueError(f"{index._table.committed} of {committed} bytes are indexed")
        if self._window.parts >= MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} segments")
        if not window_add(&self._window, &index._table, committed):
            raise MemoryError
        return self._window.parts - 1

    def cut(self, descriptor_of, size_t max_bytes) -> bytes:
        """Return the next records of the window in order of (timestamp, arrival).

        They are about ``max_bytes`` at most, one record more. Without the GIL it reads
        about 16 MiB at most: the result may be empty before the window is
        ``exhausted``, when little matches.

        Args:
            descriptor_of: returns the open file of a part, -1 when its bytes are gone:
                its remaining packets are counted as ``skipped``. It is called once for
                each part that this call reads, in this thread; the files have to stay
                open until the return.
            max_bytes: 1 at least.

        Raises:
            UnreadableError: a file fails, or is not what was indexed; it has the part.
            what ``descriptor_of`` raises.

        After an error nothing is lost: the same call can be made again, with -1 for the
        part at fault.
        """
        cdef Fault fault
        cdef size_t i
        cdef uint64_t part
        cdef int *files
        self._check()
        if max_bytes == 0:
            raise ValueError("0 bytes at most")
        files = <int *>PyMem_RawMalloc(self._window.parts * sizeof(int) + 1)
        if files == NULL:
            raise MemoryError
        self._busy = True
        try:
            for i in range(self._window.parts):
                files[i] = UNOPENED
            while True:
                with nogil:
                    fault = window_advance(
                        &self._window, &self._output, files, max_bytes
                    )
                part = self._window.fault_place >> PLACE_BITS
                if fault != NOT_OPEN:
                    break
                files[part] = max(<int>descriptor_of(part), GONE)
            data = self._taken(fault, <int64_t>part)
            self._position_ns = self._window.position_ns
            return data
        finally:
            self._busy = False
            PyMem_RawFree(files)

    def follow(
        self,
        int fd,
        Index index not None,
        int64_t offset,
        size_t max_bytes,
        *,
        int64_t end = INT64_MAX,
    ) -> tuple[bytes, int]:
        """Return the records from ``offset`` on that match, in order of arrival.

        They go up to what is indexed, about ``max_bytes`` or 16 MiB of reading at most.
        The window's times apply.

        Args:
            fd: the segment's file; -1 when its bytes are gone: the packets of all blocks
                from ``offset`` on are counted as ``skipped``, also of one that was
                followed in part.
            index: the segment's.
            offset: HEADER_BYTES, or what this returned.
            max_bytes: 1 at least.
            end: what this returned or ``committed`` was; no record from there on.

        Returns:
            The records, and the offset after what was looked at.

        Raises:
            UnreadableError: the file fails, or is not what was indexed.

        """
        cdef Fault fault
        cdef size_t first
        cdef size_t count
        cdef Entry *entries
        cdef Entry *last
        self._check()
        if index.link_type != self._output.form.link_type:
            raise ValueError(f"a segment of link type {index.link_type}")
        if not FILE_HEADER <= offset <= min(index._table.committed, end):
            raise ValueError(f"{offset} is not in {index._table.committed} bytes")
        if max_bytes == 0:
            raise ValueError("0 bytes at most")
        first = table_find(&index._table, offset)
        count = min(index._table.count - first, <size_t>MAX_FOLLOWED)
        if count == 0 or self._output.finished:
            return b"", offset
        # A copy, as the recorder goes on appending.
        entries = <Entry *>PyMem_RawMalloc(count * sizeof(Entry))
        if entries == NULL:
            raise MemoryError
        memcpy(entries, index._table.entries + first, count * sizeof(Entry))
        while count and entries[count - 1].offset >= end:
            count -= 1
        if count:
            last = &entries[count - 1]
            last.size = <uint32_t>min(<int64_t>last.size, end - last.offset)
        self._busy = True
        try:
            with nogil:
                fault = follow_blocks(
                    &self._window, &self._output, fd, entries, count, &offset, max_bytes
                )
            return self._taken(fault, -1), offset
        finally:
            self._busy = False
            PyMem_RawFree(entries)

    cdef object _taken(self, Fault fault, int64_t part):
        """Return what the output has; raise only when it has nothing."""
        cdef bytes data
        cdef uint64_t offset = self._window.fault_place & <uint64_t>(MAX_SEGMENT - 1)
        if self._output.size or fault == FINE:
            data = PyBytes_FromStringAndSize(
                <const char *>self._output.data, <Py_ssize_t>self._output.size
            )
            self._output.size = 0
            return data
        if fault == NO_MEMORY:
            raise MemoryError
        if fault == NOT_READ:
            words = os.strerror(self._window.error)
            raise UnreadableError(f"{words}, at byte {offset}", part=part)
        raise UnreadableError(
            f"not what was indexed, at byte {offset}: {_FAULTS[<int>fault]}", part=part
        )

    def needs(self, size_t part) -> bool:
        """Return whether the part's file may still be read by ``cut``."""
        if part >= self._window.parts:
            raise ValueError(f"part {part} of {self._window.parts}")
        return not self._output.finished and self._window.waiting[part] > 0

    @property
    def exhausted(self) -> bool:
        """Whether all of the window was returned."""
        return self._window.exhausted and self._output.size == 0

    @property
    def position_ns(self) -> int:
        """No record of the window with an earlier timestamp comes any more.

        ``until_ns`` when the window is ``exhausted``.
        """
        return self._position_ns

    @property
    def finished(self) -> bool:
        """Whether a limit is reached: nothing will be given any more."""
        return self._output.finished and self._output.size == 0

    @property
    def packets(self) -> int:
        """How many packets were given."""
        return self._output.packets

    @property
    def data_bytes(self) -> int:
        """How many bytes of packet data were given."""
        return self._output.octets

    @property
    def read_bytes(self) -> int:
        """How many bytes of segments were read."""
        return self._window.read_bytes

    @property
    def skipped(self) -> int:
        """Packets in blocks whose bytes were gone, before the filter.

        Whole blocks are counted, also the part of them outside the window.
        """
        return self._window.skipped
