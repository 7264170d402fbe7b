# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=True, autotestdict=False, auto_pickle=False, cdivision=True
"""The k-way merge of captures by timestamp, without any I/O.

``_merge.pyi`` is the contract. Packets are touched here and nowhere else: received
chunks are kept by reference, their records become descriptors (``_records.pxd``) as
they are read (``_intake.pxd``), and the data is copied once (``_writer.pxd``), when a
record leaves (``_order.pxd``).

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
    Descriptions,
    descriptions_close,
    descriptions_find,
    descriptions_full,
    descriptions_set,
)
from ._fingerprints cimport (
    Fingerprints,
    fingerprints_begin,
    fingerprints_close,
    fingerprints_open,
)
from ._intake cimport SECOND, reader_feed
from ._order cimport (
    Input,
    Order,
    held,
    order_advance,
    order_described,
    order_drop,
    order_exhausted,
    order_forget,
    order_index,
    order_may_release,
    order_move,
    order_rank,
    order_release,
    plus,
)
from ._ranking cimport ranking_close, ranking_open, ranking_remove, ranking_set
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
from ._records cimport Chunk, pool_clear, queue_count
from ._statistics cimport (
    ISB_ENDTIME,
    ISB_IFDROP,
    ISB_IFRECV,
    ISB_OSDROP,
    ISB_STARTTIME,
    ISB_USRDELIV,
    Statistics,
)
from ._writer cimport OUTPUT_SIZE

from os import urandom

from ddump_common.errors import TruncatedError
from ddump_common.pcap import PcapHeader, Precision

from .counters import Counters, Heartbeat
from .faults import bad_magic, corrupt, unfit

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

    @property
    def octets(self):
        return self.prints.octets

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

    def next_stream(self):
        if self.over or self.busy:
            raise ValueError("the seam takes no more")
        reader_close(&self.reader)
        reader_reset(&self.reader)
        fingerprints_begin(&self.prints)

    cdef Fingerprints *take(self) except NULL:
        """Hand over what was collected; it must live as long as that is used."""
        if self.over or self.busy:
            raise ValueError("the seam is in use, or its bytes were no capture")
        self.over = True
        reader_close(&self.reader)
        return &self.prints


@cython.final
cdef class Merge:
    cdef Order order
    cdef bint busy
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
        self.order.inputs = <Input *>calloc(<size_t>inputs, sizeof(Input))
        if self.order.inputs == NULL:
            raise MemoryError
        self.order.count = <uint32_t>inputs
        self.order.open_count = self.order.count
        if (
            ranking_open(&self.order.heads, self.order.count) < 0
            or ranking_open(&self.order.watermarks, self.order.count) < 0
        ):
            raise MemoryError
        self.order.disorder_ns = disorder_ns
        self.order.writer.pcapng = pcapng
        self.order.writer.nano = nano
        self.order.writer.link_type = -1
        self.order.per_interface = per_interface
        self.order.max_packets = max_packets
        self.order.last_ns = INT64_MIN
        self.seams = [None] * inputs
        for number in range(self.order.count):
            reader_open(
                &self.order.inputs[number].reader,
                &self.order.pool,
                INT64_MAX if pcapng else CLASSIC_MOST_NS,
            )
            self.order.inputs[number].max_bytes = DEFAULT_MAX_BYTES
            self.order.inputs[number].watermark = INT64_MIN
            self.order.inputs[number].refilled_ns = INT64_MIN
            ranking_set(&self.order.watermarks, number, INT64_MIN)

    def __dealloc__(self):
        cdef uint32_t number
        for number in range(self.order.count):
            order_forget(&self.order, number)
            descriptions_close(&self.order.inputs[number].descriptions)
        self.bury()
        pool_clear(&self.order.pool)
        ranking_close(&self.order.heads)
        ranking_close(&self.order.watermarks)
        free(self.order.inputs)

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
        order_move(&self.order, <uint32_t>i)
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
        ranking_remove(&self.order.watermarks, <uint32_t>i)
        self.busy = False

    def resume(self, Py_ssize_t i):
        cdef Input *input = self.at(i)
        self.enter()
        input.suspended = False
        if not input.ended:
            ranking_set(&self.order.watermarks, <uint32_t>i, input.watermark)
        if input.refilled_ns == INT64_MAX:
            input.refilled_ns = self.order.last_ns
        self.busy = False

    def reopen(self, Py_ssize_t i, *, int64_t since_ns, Seam seam=None):
        cdef Input *input = self.at(i)
        cdef Fingerprints *known = NULL
        if self.order.writer.link_type < 0:
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
            input.refilled_ns = INT64_MIN
            self.order.open_count += 1
            input.watermark = plus(since_ns, input.reader.shift_ns)
            if not input.suspended:
                ranking_set(&self.order.watermarks, <uint32_t>i, input.watermark)
        finally:
            self.busy = False

    def refill(self, Py_ssize_t i, int64_t until_ns):
        cdef Input *input = self.at(i)
        self.enter()
        input.reader.refill_ns = until_ns
        input.refilled_ns = INT64_MAX if input.suspended else self.order.last_ns
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
        return self.order.last_ns

    def undescribed(self):
        cdef uint32_t i
        cdef uint32_t number = 0
        self.enter()
        try:
            if not order_may_release(&self.order):
                return None
            i = self.order.heads.entries[0].number
            if order_described(&self.order, &self.order.inputs[i], &number):
                return None
            return i, order_index(&self.order, &self.order.inputs[i])
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
        order_forget(&self.order, <uint32_t>i)
        ranking_remove(&self.order.heads, <uint32_t>i)
        self.bury()
        self.busy = False

    def advance(self, Py_ssize_t i, int64_t timestamp_ns):
        self.at(i)
        self.enter()
        order_advance(&self.order, <uint32_t>i, timestamp_ns)
        self.busy = False

    def start(self, uint32_t link_type):
        cdef uint32_t number
        cdef const Input *input
        if self.order.writer.link_type >= 0:
            raise ValueError("the merge has been started")
        for number in range(self.order.count):
            input = &self.order.inputs[number]
            # What has ended with nothing left has nothing to be converted.
            if queue_count(&input.reader.queue) or not input.ended:
                if not fits(input.reader.link_type, link_type):
                    raise ValueError(
                        f"input {number} has link type {input.reader.link_type},"
                        f" which cannot become {link_type}"
                    )
        self.order.writer.link_type = link_type
        for number in range(self.order.count):
            self.order.inputs[number].reader.output_link = link_type

    def data_to_send(self):
        cdef PyObject *data
        self.enter()
        try:
            if not order_may_release(&self.order):
                return b""
            data = PyBytes_FromStringAndSize(NULL, OUTPUT_SIZE)
            self.order.writer.data = <uint8_t *>PyBytes_AS_STRING(data)
            self.order.writer.size = 0
            with nogil:
                order_release(&self.order)
            self.bury()
            _PyBytes_Resize(&data, <Py_ssize_t>self.order.writer.size)
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
        return self.order.watermarks.entries[0].number if self.order.watermarks.count else -1

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
        return input.packets + queue_count(&input.reader.queue), input.reader.octets

    @property
    def done(self):
        return order_exhausted(&self.order) or not (self.order.open_count or self.order.heads.count)

    # --- Taking in ---

    cdef Input *at(self, Py_ssize_t i) except NULL:
        if not 0 <= i < self.order.count:
            raise IndexError(f"there is no input {i}")
        return &self.order.inputs[i]

    cdef int enter(self) except -1:
        # Without the GIL in the loops two threads could meet in here.
        if self.busy:
            raise RuntimeError("a merge cannot be used by two threads at once")
        self.busy = True
        return 0

    cdef int feed(self, uint32_t number, bytes data, size_t start) except -1:
        """Read `data` from `start` on: what is whole of it is in the queue afterwards."""
        cdef Input *input = &self.order.inputs[number]
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
            order_drop(&self.order, input, chunk)
        self.bury()
        order_rank(&self.order, number)
        order_move(&self.order, number)
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

    cdef void end(self, uint32_t number) noexcept:
        cdef Input *input = &self.order.inputs[number]
        if not input.ended:
            self.order.open_count -= 1
        input.ended = True
        ranking_remove(&self.order.watermarks, number)
        reader_close(&input.reader)
        input.reader.seam = NULL
        self.seams[number] = None

    cdef void bury(self) noexcept:
        cdef Chunk *chunk
        while self.order.dead != NULL:
            chunk = self.order.dead
            self.order.dead = chunk.next
            if chunk.owner != NULL:
                Py_DECREF(<object>chunk.owner)
            else:
                free(chunk.data)
            free(chunk)


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
