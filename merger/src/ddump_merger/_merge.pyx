# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=True, autotestdict=False, auto_pickle=False, cdivision=True
"""The k-way merge of captures by timestamp, without any I/O.

``_merge.pyi`` is the contract. Packets are touched here and nowhere else: received
chunks are kept by reference, their records become descriptors (``_records.pxd``) as
they are read (``_reader.pxd``), and the data is copied once, when a record leaves.

Each open input has a watermark: nothing earlier is still expected from it. A record
leaves when no open input can deliver one that belongs before it, in order of
(timestamp, input, arrival); when it is older than one that has left already; or when
an input is over its limit. Two rankings (``_ranking.pxd``) give the next record and
the least watermark.

The long loops run without the GIL. A merge is for one thread at a time, and says so
when it is used by two.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ._cooked cimport LINUX_SLL, LINUX_SLL2, SLL2_SIZE, SLL_SIZE, sll2_from_sll, sll_from_sll2
from ._octets cimport store32
from ._ranking cimport (
    ABSENT,
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
    MAX_CAPLEN,
    NO_MEMORY,
    PCAP,
    PCAPNG,
    RECORD_HEADER,
    SECOND,
    UNKNOWN,
    Reader,
    reader_between,
    reader_close,
    reader_feed,
    reader_open,
)
from ._records cimport Chunk, Pool, Record, pool_clear, queue_count, queue_first, queue_pop

from ddump_common.errors import BadMagicError, CorruptError, FormatError, TruncatedError
from ddump_common.pcap import PcapHeader, Precision

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *at) noexcept nogil

cdef extern from "Python.h":
    PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t size) except NULL
    char *PyBytes_AS_STRING(PyObject *data)
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1

__all__ = ["Merge"]

cdef enum:
    MAX_INPUTS = 1 << 16
    # What one call returns at most. It has room for the largest record of any format,
    # so an empty buffer always takes one.
    OUTPUT_SIZE = MAX_CAPLEN + 64
    EPB_HEADER = 28
    EPB_FRAME = 32  # with the length at the end
    ENHANCED_PACKET = 6
    PAGE_OF_BYTES = 64  # what a bytes object costs beside its data, about

cdef int64_t CLASSIC_MOST_NS = (<int64_t>1 << 32) * SECOND - 1  # seconds have 32 bits there
cdef int64_t MAX_DISORDER_NS = <int64_t>1 << 62

DEFAULT_MAX_BYTES = 64 << 20

_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_PCAP_MAGICS = frozenset(
    precision.magic.to_bytes(4, order) for precision in Precision for order in ("little", "big")
)
_LOOKS_LIKE = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zX", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
)

# By the number of the fault, from NO_MEMORY on.
_FAULTS = (
    "no fault",
    "no memory",
    "a packet claims {0} captured bytes, the most is 262144",
    "a packet's timestamp does not fit the output",
    "a block claims {0} bytes, which cannot be",
    "a block claims {0} bytes, more than anybody writes",
    "a block of {0} bytes does not end with its length",
    "a block of type {0} is too short for what it must hold",
    "a section header has the byte-order magic {0:#010x}",
    "pcapng version {0} is not known",
    "the options of an interface overrun, or have a length that cannot be",
    "a packet belongs to interface {0}, which was not described",
    "more than {0} interfaces",
    "an interface has link type {0}, those before it have another",
    "a packet claims {0} captured bytes, more than its block has",
)


cdef enum Conversion:
    AS_IT_IS
    TO_SLL
    TO_SLL2


cdef struct Input:
    Reader reader
    bint ended
    int64_t watermark
    bint live
    size_t max_bytes
    Conversion conversion
    uint64_t packets
    uint64_t octets
    uint64_t late
    uint64_t cut


cdef struct Output:
    uint8_t *data
    size_t size  # <= OUTPUT_SIZE, which is what `data` has room for


@cython.final
cdef class Merge:
    cdef Input *inputs
    cdef uint32_t count
    cdef int64_t disorder_ns
    cdef bint pcapng
    cdef bint nano
    cdef uint64_t max_packets
    cdef uint64_t released
    cdef int64_t last_ns  # the greatest timestamp that was released, or INT64_MIN
    cdef int64_t second_ns  # a whole second near the last record written
    cdef uint32_t second
    cdef int64_t link  # of the output, or -1
    cdef bint busy
    cdef Ranking heads  # inputs that hold records, by their first one
    cdef Ranking watermarks  # inputs that are open
    cdef Pool pool
    cdef Chunk *dead  # chunks that no record needs; they want the GIL to be given back
    cdef list beginnings  # of each input: what came before its format was known

    def __cinit__(
        self,
        Py_ssize_t inputs,
        *,
        int64_t disorder_ns=50_000_000,
        bint pcapng=False,
        bint nano=False,
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
        if (
            ranking_open(&self.heads, self.count) < 0
            or ranking_open(&self.watermarks, self.count) < 0
        ):
            raise MemoryError
        self.disorder_ns = disorder_ns
        self.pcapng = pcapng
        self.nano = nano
        self.max_packets = max_packets
        self.last_ns = INT64_MIN
        self.link = -1
        self.beginnings = [b""] * inputs
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

    def receive_data(self, Py_ssize_t i, bytes data not None):
        cdef Input *input = self.at(i)
        cdef Py_ssize_t used = 0
        if input.ended:
            raise ValueError(f"input {i} has ended")
        self.enter()
        try:
            if input.reader.format == UNKNOWN:
                used = self.begin(<uint32_t>i, data)
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
        cdef bint empty = at_header and not self.beginnings[i]
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
        if self.link >= 0:
            raise ValueError("the merge has been started")
        for number in range(self.count):
            # What has ended with nothing left has nothing to be converted.
            if queue_count(&self.inputs[number].reader.queue) or not self.inputs[number].ended:
                if not fits(self.inputs[number].reader.link_type, link_type):
                    raise ValueError(
                        f"input {number} has link type {self.inputs[number].reader.link_type},"
                        f" which cannot become {link_type}"
                    )
        self.link = link_type
        for number in range(self.count):
            self.choose_conversion(number)

    def data_to_send(self):
        cdef PyObject *data
        cdef Output output
        self.enter()
        try:
            if self.link < 0 or not self.may_release():
                return b""
            data = PyBytes_FromStringAndSize(NULL, OUTPUT_SIZE)
            output.data = <uint8_t *>PyBytes_AS_STRING(data)
            output.size = 0
            with nogil:
                self.release(&output)
            self.bury()
            _PyBytes_Resize(&data, <Py_ssize_t>output.size)
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
        return input.packets, input.octets, input.late, input.cut

    @property
    def done(self):
        return self.exhausted() or not (self.watermarks.count or self.heads.count)

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

    cdef Py_ssize_t begin(self, uint32_t number, bytes data) except -1:
        """Find out the format; return how many bytes of `data` that took."""
        cdef Reader *reader = &self.inputs[number].reader
        cdef bytes known = self.beginnings[number]
        cdef bytes beginning = known + data[: max(0, 4 - len(known))]
        if len(beginning) >= 4 and beginning[:4] not in _PCAP_MAGICS:
            if beginning != _PCAPNG_MAGIC:
                self.end(number)
                raise _bad_magic(known + data[:64])
            reader.format = PCAPNG
            self.beginnings[number] = b""
            self.feed(number, beginning, 0)
            return len(beginning) - len(known)
        beginning = known + data[: PcapHeader.SIZE - len(known)]
        if len(beginning) < PcapHeader.SIZE:
            self.beginnings[number] = beginning
            return len(data)
        try:
            header = PcapHeader.parse(beginning)
        except FormatError:
            self.end(number)
            raise
        reader.format = PCAP
        reader.big_endian = header.byte_order == ">"
        reader.fraction_ns = 1 if header.precision is Precision.NANO else 1000
        reader.link_type = header.link_type
        reader.offset = PcapHeader.SIZE
        self.beginnings[number] = b""
        self.check_link_type(number)
        return len(beginning) - len(known)

    cdef int feed(self, uint32_t number, bytes data, size_t start) except -1:
        """Read `data` from `start` on: what is whole of it is in the queue afterwards."""
        cdef Input *input = &self.inputs[number]
        cdef Reader *reader = &input.reader
        cdef const uint8_t *octets = <const uint8_t *><const char *>data
        cdef size_t size = <size_t>len(data) - start
        cdef int64_t link_type = reader.link_type
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
        if reader.link_type != link_type:  # before all else: what came with it is queued
            self.check_link_type(number)
        self.rank(number)
        if reader.newest_ns >= 0:
            self.raise_watermark(number, reader.newest_ns - self.disorder_ns)
        if reader.fault:
            self.end(number)
            if reader.fault == NO_MEMORY:
                raise MemoryError
            raise CorruptError(
                _FAULTS[<int>reader.fault].format(reader.fault_value), offset=reader.offset
            )
        return 0

    cdef int check_link_type(self, uint32_t number) except -1:
        """End an input that the output, when it is fixed already, cannot take."""
        cdef int64_t link_type = self.inputs[number].reader.link_type
        if self.link < 0:
            return 0
        if not fits(link_type, self.link):
            self.end(number)
            self.forget(number)
            ranking_remove(&self.heads, number)
            self.bury()
            raise FormatError(
                f"link type {link_type} cannot become the output's {self.link}", offset=0
            )
        self.choose_conversion(number)
        return 0

    cdef void choose_conversion(self, uint32_t number) noexcept:
        cdef Input *input = &self.inputs[number]
        input.conversion = AS_IT_IS
        if self.link == LINUX_SLL and input.reader.link_type == LINUX_SLL2:
            input.conversion = TO_SLL
        if self.link == LINUX_SLL2 and input.reader.link_type == LINUX_SLL:
            input.conversion = TO_SLL2

    cdef void raise_watermark(self, uint32_t number, int64_t timestamp_ns) noexcept nogil:
        cdef Input *input = &self.inputs[number]
        if not input.ended and timestamp_ns > input.watermark:
            input.watermark = timestamp_ns
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
        input.ended = True
        ranking_remove(&self.watermarks, number)
        reader_close(&input.reader)
        self.beginnings[number] = b""

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
                and (input.live or input.watermark == self.watermarks.entries[0].key)
            ):
                return number
        return -1

    cdef bint may_release(self) noexcept nogil:
        if self.heads.count == 0 or self.exhausted():
            return False
        return self.in_turn(&self.heads.entries[0]) or self.crowded() >= 0

    cdef void release(self, Output *output) noexcept nogil:
        """Write records until the output is full or nothing may leave."""
        cdef int64_t forcing = -1
        cdef uint32_t number
        cdef Input *input
        cdef const Record *record
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
            if not self.write(output, number, record):
                return
            input.packets += 1
            self.released += 1
            if record.timestamp_ns < self.last_ns:
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

    cdef bint write(
        self, Output *output, uint32_t number, const Record *record
    ) noexcept nogil:
        """Append the record as the output has it; say whether there was room."""
        cdef Input *input = &self.inputs[number]
        cdef uint8_t header[SLL2_SIZE]
        cdef uint32_t header_size = 0
        cdef const uint8_t *data = record.data
        cdef uint32_t rest = record.caplen
        cdef uint32_t length = record.length
        cdef bint cut = False
        if input.conversion == TO_SLL:
            header_size = sll_from_sll2(header, data, rest)
            length = <uint32_t>(length - 4 if length > 4 else 0)
            data += SLL2_SIZE if rest > SLL2_SIZE else rest
            rest = rest - SLL2_SIZE if rest > SLL2_SIZE else <uint32_t>0
        elif input.conversion == TO_SLL2:
            header_size = sll2_from_sll(header, data, rest)
            length = <uint32_t>(length + 4 if length < 0xFFFFFFFCu else 0xFFFFFFFFu)
            data += SLL_SIZE if rest > SLL_SIZE else rest
            rest = rest - SLL_SIZE if rest > SLL_SIZE else <uint32_t>0
            if rest > MAX_CAPLEN - SLL2_SIZE:
                rest = MAX_CAPLEN - SLL2_SIZE
                cut = True
        # header_size + rest <= MAX_CAPLEN; with frame and padding that is OUTPUT_SIZE
        # at most, so what does not fit now fits an empty buffer.
        cdef uint32_t caplen = header_size + rest
        cdef uint32_t padding = <uint32_t>((4 - caplen % 4) % 4 if self.pcapng else 0)
        cdef uint32_t total = caplen + padding + (
            <uint32_t>EPB_FRAME if self.pcapng else <uint32_t>RECORD_HEADER
        )
        if total > OUTPUT_SIZE - output.size:
            return False
        cdef uint8_t *out = output.data + output.size
        output.size += total
        if self.pcapng:
            store_block_header(out, number, record.timestamp_ns, self.nano, caplen, length, total)
            out += EPB_HEADER
        else:
            self.store_record_header(out, record.timestamp_ns, caplen, length)
            out += RECORD_HEADER
        if header_size:
            memcpy(out, header, header_size)
        memcpy(out + header_size, data, rest)
        if self.pcapng:
            memset(out + caplen, 0, padding)
            store32(out + caplen + padding, total)
        input.octets += caplen
        if cut:
            input.cut += 1
        return True

    cdef void store_record_header(
        self, uint8_t *out, int64_t timestamp_ns, uint32_t caplen, uint32_t length
    ) noexcept nogil:
        # Most records are of the second of the one before: that saves a division.
        if not 0 <= timestamp_ns - self.second_ns < SECOND:
            self.second = <uint32_t>(timestamp_ns // SECOND)  # the reader saw that it fits
            self.second_ns = <int64_t>self.second * SECOND
        cdef uint32_t fraction = <uint32_t>(timestamp_ns - self.second_ns)
        store32(out, self.second)
        store32(out + 4, fraction if self.nano else <uint32_t>(fraction // 1000))
        store32(out + 8, caplen)
        store32(out + 12, length)


cdef inline size_t held(const Input *input) noexcept nogil:
    return input.reader.held + input.reader.queue.memory


cdef bint fits(int64_t link_type, int64_t output) noexcept:
    """Whether records of this link type, -1 is none yet, can become those of the other."""
    if link_type < 0 or link_type == output:
        return True
    return (
        (link_type == LINUX_SLL or link_type == LINUX_SLL2)
        and (output == LINUX_SLL or output == LINUX_SLL2)
    )


cdef void store_block_header(
    uint8_t *out,
    uint32_t number,
    int64_t timestamp_ns,
    bint nano,
    uint32_t caplen,
    uint32_t length,
    uint32_t total,
) noexcept nogil:
    cdef uint64_t units = <uint64_t>timestamp_ns if nano else <uint64_t>timestamp_ns // 1000
    store32(out, ENHANCED_PACKET)
    store32(out + 4, total)
    store32(out + 8, number)
    store32(out + 12, <uint32_t>(units >> 32))
    store32(out + 16, <uint32_t>(units & 0xFFFFFFFFu))
    store32(out + 20, caplen)
    store32(out + 24, length)


def _bad_magic(bytes beginning):
    shown = beginning[:4].hex()
    for magic, name in _LOOKS_LIKE:
        if beginning.startswith(magic):
            return BadMagicError(
                f"not a capture file but {name}", offset=0, hint="decompress it first"
            )
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return BadMagicError("not a capture file but HTML or XML", offset=0)
    return BadMagicError(f"not a capture file (begins {shown})", offset=0)
