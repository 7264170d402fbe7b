# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=True, autotestdict=False, auto_pickle=False, cdivision=True
"""The k-way merge of captures by timestamp, without any I/O.

``_merge.pyi`` is the contract. Packets are touched here and nowhere else: received
chunks are kept by reference, their records become descriptors (``_records.pxd``) as
they are read (``_reader.pxd``), and the data is copied once, when a record leaves
(``_writer.pxd``).

Each open input has a watermark: nothing earlier is still expected from it. A record
leaves when no input that is waited for can deliver one that belongs before it, in order
of (timestamp, input, arrival); when it is older than one that has left already; or when
an input is over its limit. Two rankings (``_ranking.pxd``) give the next record and
the least watermark. Records that were asked for once more take no part in what is late:
without them the output is in order but for the late ones.

The long loops run without the GIL. A merge is for one thread at a time, and says so
when it is used by two.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ._cooked cimport fits
from ._descriptions cimport (
    MAX_DESCRIPTIONS,
    Description,
    Descriptions,
    descriptions_close,
    descriptions_find,
    descriptions_full,
    descriptions_set,
)
from ._fingerprints cimport Fingerprints, fingerprints_close, fingerprints_open
from ._intake cimport SECOND, reader_feed
from ._ranking cimport (
    Entry,
    Ranking,
    ranking_close,
    ranking_open,
    ranking_remove,
    ranking_set,
    ranking_sink_first,
    ranks_before,
)
from ._reader cimport (
    NO_MEMORY,
    PCAP,
    PCAP_HEADER,
    PCAPNG,
    UNFIT_LINK_TYPE,
    UNKNOWN,
    Reader,
    carry_append,
    reader_between,
    reader_close,
    reader_open,
    reader_reset,
    reader_shift,
)
from ._records cimport (
    Chunk,
    Pool,
    Record,
    pool_clear,
    queue_count,
    queue_first,
    queue_pop,
    record_refilled,
)
from ._statistics cimport (
    ISB_ENDTIME,
    ISB_IFDROP,
    ISB_IFRECV,
    ISB_OSDROP,
    ISB_STARTTIME,
    ISB_USRDELIV,
    Statistics,
)
from ._writer cimport NO_ROOM, OUTPUT_SIZE, Writer, interface_index, writer_put

from os import urandom

from ddump_common.errors import TruncatedError
from ddump_common.pcap import PcapHeader, Precision

from .counters import Counters, Heartbeat
from .faults import bad_magic, corrupt, unfit

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *at) noexcept nogil

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t size) except NULL
    char *PyBytes_AS_STRING(PyObject *data)
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1

__all__ = ["Merge", "Seam"]

cdef enum:
    MAX_INPUTS = 1 << 16
    PAGE_OF_BYTES = 64  # what a bytes object costs beside its data, about

cdef int64_t CLASSIC_MOST_NS = (<int64_t>1 << 32) * SECOND - 1  # seconds have 32 bits there
cdef int64_t MAX_DISORDER_NS = <int64_t>1 << 62
cdef int64_t MAX_SHIFT_NS = <int64_t>1 << 62

DEFAULT_MAX_BYTES = 64 << 20

_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_PCAP_MAGICS = frozenset(
    precision.magic.to_bytes(4, order) for precision in Precision for order in ("little", "big")
)


cdef Description NOT_NEEDED  # classic pcap has no interfaces


cdef struct Input:
    Reader reader
    bint ended
    bint suspended
    int64_t watermark
    bint live
    size_t max_bytes
    uint64_t packets
    uint64_t octets
    uint64_t late
    uint64_t cut
    uint64_t refilled
    Descriptions descriptions


@cython.final
cdef class Seam:
    cdef Reader reader
    cdef Fingerprints prints
    cdef bint busy
    cdef bint over  # it is part of a merge, or its bytes were no capture

    def __cinit__(self, int64_t since_ns):
        cdef bytes key = urandom(16)
        fingerprints_open(&self.prints, <const uint8_t *><const char *>key, since_ns)
        reader_open(&self.reader, NULL, INT64_MAX)
        self.reader.collected = &self.prints

    def __dealloc__(self):
        reader_close(&self.reader)
        fingerprints_close(&self.prints)

    def __len__(self):
        return <Py_ssize_t>self.prints.left

    def receive_data(self, bytes data not None):
        cdef Py_ssize_t used = 0
        cdef const uint8_t *octets = <const uint8_t *><const char *>data
        cdef size_t size
        cdef Chunk chunk
        if self.over:
            raise ValueError("the seam takes no more")
        if self.busy:
            raise RuntimeError("a seam cannot be used by two threads at once")
        self.busy = True
        try:
            if self.reader.format == UNKNOWN:
                used = begin(&self.reader, data)
            size = <size_t>(len(data) - used)
            with nogil:
                reader_feed(&self.reader, &chunk, octets + used, size)
            check(&self.reader)
        except:
            self.over = True
            raise
        finally:
            self.busy = False

    cdef Fingerprints *take(self) except NULL:
        """Hand over what was collected; it must live as long as that is used."""
        if self.over or self.busy:
            raise ValueError("the seam is in use, or its bytes were no capture")
        self.over = True
        reader_close(&self.reader)
        return &self.prints


@cython.final
cdef class Merge:
    cdef Input *inputs
    cdef uint32_t count
    cdef uint32_t open_count  # inputs that have not ended
    cdef int64_t disorder_ns
    cdef bint per_interface
    cdef uint64_t max_packets
    cdef uint64_t released
    cdef int64_t last_ns  # the greatest timestamp that counts for what is late, or INT64_MIN
    cdef Writer writer
    cdef bint busy
    cdef Ranking heads  # inputs that hold records, by their first one
    cdef Ranking watermarks  # inputs that are waited for: open and not suspended
    cdef Pool pool
    cdef Chunk *dead  # chunks that no record needs; they want the GIL to be given back
    cdef list seams  # that the readers of the inputs use, or None

    def __cinit__(
        self,
        Py_ssize_t inputs,
        *,
        int64_t disorder_ns=50_000_000,
        bint pcapng=False,
        bint nano=False,
        bint per_interface=False,
        uint64_t max_packets=0,
    ):
        cdef uint32_t number
        if not 1 <= inputs <= MAX_INPUTS:
            raise ValueError(f"{inputs} inputs")
        if not 0 <= disorder_ns <= MAX_DISORDER_NS:
            raise ValueError(f"a disorder of {disorder_ns} ns")
        self.inputs = <Input *>calloc(<size_t>inputs, sizeof(Input))
        if self.inputs == NULL:
            raise MemoryError
        self.count = <uint32_t>inputs
        self.open_count = self.count
        if (
            ranking_open(&self.heads, self.count) < 0
            or ranking_open(&self.watermarks, self.count) < 0
        ):
            raise MemoryError
        self.disorder_ns = disorder_ns
        self.writer.pcapng = pcapng
        self.writer.nano = nano
        self.writer.link_type = -1
        self.per_interface = per_interface
        self.max_packets = max_packets
        self.last_ns = INT64_MIN
        self.seams = [None] * inputs
        for number in range(self.count):
            reader_open(
                &self.inputs[number].reader,
                &self.pool,
                INT64_MAX if pcapng else CLASSIC_MOST_NS,
            )
            self.inputs[number].max_bytes = DEFAULT_MAX_BYTES
            self.inputs[number].watermark = INT64_MIN
            ranking_set(&self.watermarks, number, INT64_MIN)

    def __dealloc__(self):
        cdef uint32_t number
        for number in range(self.count):
            self.forget(number)
            descriptions_close(&self.inputs[number].descriptions)
        self.bury()
        pool_clear(&self.pool)
        ranking_close(&self.heads)
        ranking_close(&self.watermarks)
        free(self.inputs)

    def limit(self, Py_ssize_t i, Py_ssize_t max_bytes, *, bint live):
        cdef Input *input = self.at(i)
        if max_bytes < 0:
            raise ValueError(f"a limit of {max_bytes} bytes")
        input.max_bytes = <size_t>max_bytes
        input.live = live

    def trust(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        self.enter()
        input.reader.trusted = True
        self.move(<uint32_t>i)
        self.busy = False

    def shift(self, Py_ssize_t i, int64_t delta_ns):
        cdef Input *input = self.at(i)
        if not -MAX_SHIFT_NS <= delta_ns <= MAX_SHIFT_NS:
            raise ValueError(f"a shift of {delta_ns} ns")
        self.enter()
        reader_shift(&input.reader, delta_ns)
        self.busy = False

    def suspend(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        self.enter()
        input.suspended = True
        ranking_remove(&self.watermarks, <uint32_t>i)
        self.busy = False

    def resume(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        self.enter()
        input.suspended = False
        if not input.ended:
            ranking_set(&self.watermarks, <uint32_t>i, input.watermark)
        self.busy = False

    def reopen(self, Py_ssize_t i, *, int64_t since_ns, Seam seam=None):
        cdef Input *input = self.at(i)
        cdef Fingerprints *known = NULL
        if self.writer.link_type < 0:
            raise ValueError("the merge has not been started")
        self.enter()
        try:
            if seam is not None:
                known = seam.take()
            self.end(<uint32_t>i)
            reader_reset(&input.reader)
            input.reader.seam = known
            self.seams[i] = seam
            input.ended = False
            self.open_count += 1
            input.watermark = plus(since_ns, input.reader.shift_ns)
            if not input.suspended:
                ranking_set(&self.watermarks, <uint32_t>i, input.watermark)
        finally:
            self.busy = False

    def refill(self, Py_ssize_t i, int64_t until_ns):
        cdef Input *input = self.at(i)
        self.enter()
        input.reader.refill_ns = until_ns
        self.busy = False

    def heartbeat(self, Py_ssize_t i):
        cdef const Statistics *last = &self.at(i).reader.statistics
        if not last.count:
            return None
        return Heartbeat(
            last.promised_ns,
            last.count,
            last.read,
            given(last, ISB_STARTTIME),
            given(last, ISB_ENDTIME),
            given(last, ISB_IFRECV),
            given(last, ISB_IFDROP),
            given(last, ISB_OSDROP),
            given(last, ISB_USRDELIV),
            <bytes>last.comment[: last.comment_size],
        )

    def progress(self, Py_ssize_t i):
        cdef const Reader *reader = &self.at(i).reader
        first = reader.first if reader.described else reader.offset
        return reader.offset, first, reader.newest_ns

    def watermark(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        return INT64_MAX if input.ended else input.watermark

    @property
    def released_ns(self):
        return self.last_ns

    def undescribed(self):
        cdef uint32_t number
        self.enter()
        try:
            if not self.may_release() or self.description_of_first() != NULL:
                return None
            number = self.heads.entries[0].number
            return number, self.index_of_first(number)
        finally:
            self.busy = False

    def describe(self, Py_ssize_t i, uint32_t index, uint32_t number):
        cdef Descriptions *descriptions = &self.at(i).descriptions
        self.enter()
        try:
            if (
                index
                and descriptions_find(descriptions, index) == NULL
                and descriptions_full(descriptions)
            ):
                raise ValueError(f"more than {MAX_DESCRIPTIONS} interfaces of input {i}")
            if descriptions_set(descriptions, index, number) < 0:
                raise MemoryError
        finally:
            self.busy = False

    def receive_data(self, Py_ssize_t i, bytes data not None):
        cdef Input *input = self.at(i)
        cdef Py_ssize_t used = 0
        if input.ended:
            raise ValueError(f"input {i} has ended")
        self.enter()
        try:
            if input.reader.format == UNKNOWN:
                try:
                    used = begin(&input.reader, data)
                except:
                    self.end(<uint32_t>i)
                    raise
            if used < len(data):
                self.feed(<uint32_t>i, data, <size_t>used)
        finally:
            self.busy = False

    def receive_eof(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        if input.ended:
            return
        self.enter()
        cdef bint whole = input.reader.format != UNKNOWN and reader_between(&input.reader)
        cdef bint at_header = input.reader.format == UNKNOWN
        cdef uint64_t offset = input.reader.offset
        cdef bint empty = at_header and not input.reader.header_size
        self.end(<uint32_t>i)
        self.busy = False
        if whole:
            return
        if empty:
            raise TruncatedError("the capture is empty, it has not even a header", offset=0)
        if at_header:
            raise TruncatedError("the capture ends in its file header", offset=0)
        unit = "record" if input.reader.format == PCAP else "block"
        raise TruncatedError(f"the capture ends in the middle of a {unit}", offset=offset)

    def refuse(self, Py_ssize_t i):
        self.at(i)
        self.enter()
        self.end(<uint32_t>i)
        self.forget(<uint32_t>i)
        ranking_remove(&self.heads, <uint32_t>i)
        self.bury()
        self.busy = False

    def advance(self, Py_ssize_t i, int64_t timestamp_ns):
        self.at(i)
        self.enter()
        self.raise_watermark(<uint32_t>i, timestamp_ns)
        self.busy = False

    def start(self, uint32_t link_type):
        cdef uint32_t number
        if self.writer.link_type >= 0:
            raise ValueError("the merge has been started")
        for number in range(self.count):
            # What has ended with nothing left has nothing to be converted.
            if queue_count(&self.inputs[number].reader.queue) or not self.inputs[number].ended:
                if not fits(self.inputs[number].reader.link_type, link_type):
                    raise ValueError(
                        f"input {number} has link type {self.inputs[number].reader.link_type},"
                        f" which cannot become {link_type}"
                    )
        self.writer.link_type = link_type
        for number in range(self.count):
            self.inputs[number].reader.output_link = link_type

    def data_to_send(self):
        cdef PyObject *data
        self.enter()
        try:
            if not self.may_release() or self.description_of_first() == NULL:
                return b""
            data = PyBytes_FromStringAndSize(NULL, OUTPUT_SIZE)
            self.writer.data = <uint8_t *>PyBytes_AS_STRING(data)
            self.writer.size = 0
            with nogil:
                self.release()
            self.bury()
            _PyBytes_Resize(&data, <Py_ssize_t>self.writer.size)
            result = <bytes>data
            Py_DECREF(result)  # the reference that `data` was
            return result
        finally:
            self.busy = False

    def link_type(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        return input.reader.link_type if input.reader.link_type >= 0 else None

    def buffered(self, Py_ssize_t i):
        return held(self.at(i))

    def lagging(self):
        return self.watermarks.entries[0].number if self.watermarks.count else -1

    def counters(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        return Counters(
            input.packets,
            input.octets,
            input.late,
            input.cut,
            input.refilled,
            input.reader.joined,
            input.reader.backwards,
        )

    def received(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        return input.packets + queue_count(&input.reader.queue)

    @property
    def done(self):
        return self.exhausted() or not (self.open_count or self.heads.count)

    # --- Taking in ---

    cdef Input *at(self, Py_ssize_t i) except NULL:
        if not 0 <= i < self.count:
            raise IndexError(f"there is no input {i}")
        return &self.inputs[i]

    cdef int enter(self) except -1:
        # Without the GIL in the loops two threads could meet in here.
        if self.busy:
            raise RuntimeError("a merge cannot be used by two threads at once")
        self.busy = True
        return 0

    cdef int feed(self, uint32_t number, bytes data, size_t start) except -1:
        """Read `data` from `start` on: what is whole of it is in the queue afterwards."""
        cdef Input *input = &self.inputs[number]
        cdef Reader *reader = &input.reader
        cdef const uint8_t *octets = <const uint8_t *><const char *>data
        cdef size_t size = <size_t>len(data) - start
        cdef Chunk *chunk = <Chunk *>malloc(sizeof(Chunk))
        if chunk == NULL:
            self.end(number)
            raise MemoryError
        chunk.owner = <PyObject *>data
        Py_INCREF(data)
        chunk.data = NULL
        chunk.cost = sizeof(Chunk) + PAGE_OF_BYTES + <size_t>len(data)
        chunk.live = 1  # ours
        reader.held += chunk.cost
        with nogil:
            reader_feed(reader, chunk, octets + start, size)
            self.drop(input, chunk)
        self.bury()
        self.rank(number)
        self.move(number)
        if reader.fault:
            self.end(number)
        elif reader.seam != NULL and (
            reader.seam.left == 0
            or (reader.trusted and reader.statistics.promised_ns > reader.seam.newest_ns)
        ):
            reader.seam = NULL  # nothing of it comes any more
            self.seams[number] = None
        check(reader)
        return 0

    cdef void move(self, uint32_t number) noexcept nogil:
        """Move the watermark to where records and heartbeats have brought it."""
        cdef const Reader *reader = &self.inputs[number].reader
        if reader.newest_ns >= 0:
            self.raise_watermark(
                number, plus(reader.newest_ns, reader.shift_ns) - self.disorder_ns
            )
        if reader.trusted and reader.statistics.count:
            self.raise_watermark(
                number, plus(reader.statistics.promised_ns, reader.shift_ns)
            )

    cdef void raise_watermark(self, uint32_t number, int64_t timestamp_ns) noexcept nogil:
        cdef Input *input = &self.inputs[number]
        if not input.ended and timestamp_ns > input.watermark:
            input.watermark = timestamp_ns
            if not input.suspended:
                ranking_set(&self.watermarks, number, timestamp_ns)

    cdef void rank(self, uint32_t number) noexcept nogil:
        """Put the input where its first record belongs."""
        cdef const Record *first = queue_first(&self.inputs[number].reader.queue)
        if first == NULL:
            ranking_remove(&self.heads, number)
        else:
            ranking_set(&self.heads, number, first.timestamp_ns)

    cdef void end(self, uint32_t number) noexcept:
        cdef Input *input = &self.inputs[number]
        if not input.ended:
            self.open_count -= 1
        input.ended = True
        ranking_remove(&self.watermarks, number)
        reader_close(&input.reader)
        input.reader.seam = NULL
        self.seams[number] = None

    cdef void forget(self, uint32_t number) noexcept:
        """Let go all that the input holds, but for its place in the rankings."""
        cdef Input *input = &self.inputs[number]
        cdef const Record *first
        cdef Chunk *chunk
        reader_close(&input.reader)
        while True:
            first = queue_first(&input.reader.queue)
            if first == NULL:
                return
            chunk = first.chunk
            queue_pop(&input.reader.queue, &self.pool)
            self.drop(input, chunk)

    cdef void drop(self, Input *input, Chunk *chunk) noexcept nogil:
        """Let go one hold on a chunk; after the last it is dead."""
        chunk.live -= 1
        if chunk.live == 0:
            input.reader.held -= chunk.cost
            chunk.next = self.dead
            self.dead = chunk

    cdef void bury(self) noexcept:
        cdef Chunk *chunk
        while self.dead != NULL:
            chunk = self.dead
            self.dead = chunk.next
            if chunk.owner != NULL:
                Py_DECREF(<object>chunk.owner)
            else:
                free(chunk.data)
            free(chunk)

    # --- Letting out ---

    cdef bint exhausted(self) noexcept nogil:
        return self.max_packets != 0 and self.released >= self.max_packets

    cdef bint in_turn(self, const Entry *head) noexcept nogil:
        """Whether nothing that still comes belongs before this first record."""
        if self.watermarks.count == 0 or head.key < self.last_ns:
            return True
        # An input can still deliver a record at its watermark itself. That one belongs
        # before the head when its input has the lower number, so that is what decides.
        return not ranks_before(&self.watermarks.entries[0], head)

    cdef int64_t crowded(self) noexcept nogil:
        """Return an input that is over its limit and forces the merge on, or -1."""
        cdef uint32_t number
        cdef Input *input
        for number in range(self.count):
            input = &self.inputs[number]
            if (
                held(input) > input.max_bytes
                and not input.ended
                and queue_count(&input.reader.queue)
                and (
                    input.live
                    or (
                        not input.suspended
                        and input.watermark == self.watermarks.entries[0].key
                    )
                )
            ):
                return number
        return -1

    cdef bint may_release(self) noexcept nogil:
        if self.writer.link_type < 0 or self.heads.count == 0 or self.exhausted():
            return False
        return self.in_turn(&self.heads.entries[0]) or self.crowded() >= 0

    cdef uint32_t index_of_first(self, uint32_t number) noexcept nogil:
        """Return which interface of the input its first record, which is there, is of."""
        cdef Input *input = &self.inputs[number]
        cdef uint32_t index
        if not self.per_interface:
            return 0
        index = interface_index(&self.writer, queue_first(&input.reader.queue))
        if descriptions_full(&input.descriptions) and (
            descriptions_find(&input.descriptions, index) == NULL
        ):
            return 0
        return index

    cdef const Description *description_of_first(self) noexcept nogil:
        """Return what the first record, which is there, is described by, or NULL."""
        cdef uint32_t number = self.heads.entries[0].number
        if not self.writer.pcapng:
            return &NOT_NEEDED
        return descriptions_find(
            &self.inputs[number].descriptions, self.index_of_first(number)
        )

    cdef void release(self) noexcept nogil:
        """Write records until the output is full or nothing may leave."""
        cdef int64_t forcing = -1
        cdef uint32_t number
        cdef Input *input
        cdef const Record *record
        cdef const Description *description
        cdef int64_t written
        cdef bint cut = False
        cdef Chunk *chunk
        while self.heads.count and not self.exhausted():
            if not self.in_turn(&self.heads.entries[0]):
                if forcing < 0 or not (
                    held(&self.inputs[forcing]) > self.inputs[forcing].max_bytes
                    and queue_count(&self.inputs[forcing].reader.queue)
                ):
                    forcing = self.crowded()
                    if forcing < 0:
                        return
            number = self.heads.entries[0].number
            input = &self.inputs[number]
            record = queue_first(&input.reader.queue)
            description = self.description_of_first()
            if description == NULL:
                return
            written = writer_put(&self.writer, record, description.number, &cut)
            if written == NO_ROOM:
                return
            input.packets += 1
            input.octets += <uint64_t>written
            input.cut += <uint64_t>cut
            self.released += 1
            if record_refilled(record):
                input.refilled += 1
            elif record.timestamp_ns < self.last_ns:
                input.late += 1
            else:
                self.last_ns = record.timestamp_ns
            chunk = record.chunk
            queue_pop(&input.reader.queue, &self.pool)
            self.drop(input, chunk)
            record = queue_first(&input.reader.queue)
            if record == NULL:
                ranking_remove(&self.heads, number)
            else:
                # By the time its turn comes, it is here: with many inputs each record
                # is where the processor does not expect it. A hint, never a fault.
                prefetch(record.data)
                prefetch(record.data + 64)
                prefetch(record + 1)
                ranking_sink_first(&self.heads, record.timestamp_ns)


cdef inline size_t held(const Input *input) noexcept nogil:
    return input.reader.held + input.reader.queue.memory


cdef inline int64_t plus(int64_t one, int64_t other) noexcept nogil:
    """The sum of two times, or the nearest to it that 64 bits hold."""
    if other > 0 and one > INT64_MAX - other:
        return INT64_MAX
    if other < 0 and one < INT64_MIN - other:
        return INT64_MIN
    return one + other


cdef given(const Statistics *statistics, uint32_t code):
    """Return what the option says, or None."""
    return statistics.values[code] if statistics.given >> code & 1 else None


cdef Py_ssize_t begin(Reader *reader, bytes data) except -1:
    """Find out the format of a capture; return how many bytes of `data` that took."""
    cdef bytes known = <bytes>reader.header[: reader.header_size]
    cdef bytes beginning = known + data[: max(0, 4 - len(known))]
    if len(beginning) >= 4 and beginning[:4] not in _PCAP_MAGICS:
        if beginning != _PCAPNG_MAGIC:
            raise bad_magic(known + data[:64])
        reader.format = PCAPNG
        reader.need = 8
        if not carry_append(reader, <const uint8_t *><const char *>beginning, 4):
            raise MemoryError
        return 4 - len(known)
    beginning = known + data[: PCAP_HEADER - len(known)]
    if len(beginning) < PCAP_HEADER:
        memcpy(reader.header, <const char *>beginning, <size_t>len(beginning))
        reader.header_size = <uint32_t>len(beginning)
        return len(data)
    header = PcapHeader.parse(beginning)
    reader.format = PCAP
    reader.big_endian = header.byte_order == ">"
    reader.fraction_ns = 1 if header.precision is Precision.NANO else 1000
    reader.link_type = header.link_type
    reader.offset = PCAP_HEADER
    if not fits(reader.link_type, reader.output_link):
        raise unfit(reader.link_type, reader.output_link)
    return PCAP_HEADER - len(known)


cdef int check(const Reader *reader) except -1:
    """Raise what was wrong with the bytes."""
    if not reader.fault:
        return 0
    if reader.fault == NO_MEMORY:
        raise MemoryError
    if reader.fault == UNFIT_LINK_TYPE:
        raise unfit(reader.link_type, reader.output_link)
    raise corrupt(reader.fault, reader.fault_value, offset=reader.offset)
