# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The reader of one input: where it is in its capture, and where its records go.
#
# How bytes become records is `_intake.pxd`. A reader reads one capture after the other:
# `reader_reset` begins the next one, and the queue stays. The clock of the captures may
# be another than that of the merge: records are queued with `shift_ns` added, all else
# here is by their own clock. Nothing here needs the GIL.

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from ._fingerprints cimport Fingerprints, fingerprints_add, fingerprints_take
from ._records cimport Chunk, Pool, Queue, Record, queue_push
from ._statistics cimport Statistics
from ._timestamps cimport Units

cdef enum:
    MAX_CAPLEN = 262_144  # MAXIMUM_SNAPLEN of libpcap and Wireshark
    PCAP_HEADER = 24
    CARRY_STEP = 4096


cdef enum Format:
    UNKNOWN
    PCAP
    PCAPNG


cdef enum Fault:
    FINE
    NO_MEMORY
    LONG_PACKET
    BAD_TIME
    BAD_BLOCK_LENGTH
    LONG_BLOCK
    BAD_TRAILER
    SHORT_BLOCK
    BAD_BYTE_ORDER
    BAD_SECTION_VERSION
    BAD_OPTION
    UNKNOWN_INTERFACE
    MANY_INTERFACES
    MIXED_LINK_TYPES
    LONG_FOR_BLOCK
    NO_SUCH_INTERFACE
    BAD_STATISTICS
    BAD_STATISTICS_TIME
    UNFIT_LINK_TYPE  # has words of its own


cdef struct Interface:
    Units units
    uint32_t snaplen


cdef struct Reader:
    Queue queue
    Pool *pool
    int64_t output_link  # the output's link type, -1 before it is fixed
    int64_t output_most_ns  # the greatest timestamp that it can hold
    int64_t shift_ns  # between the clocks of the captures and of the output
    int64_t least_ns  # by the captures' clock: what the output can hold
    int64_t most_ns
    uint64_t octets  # of data in the records that were queued
    uint64_t joined  # records that were left out
    uint64_t backwards  # heartbeats that went back
    # Where records go when they are not to be queued, and those to be left out; or NULL.
    Fingerprints *collected
    Fingerprints *seam
    # Of the capture that is read now:
    Format format
    uint8_t header[PCAP_HEADER]  # what came before the format was known
    uint32_t header_size
    bint big_endian  # of the file, or of the section
    uint32_t fraction_ns  # nanoseconds in a unit of a pcap record's fraction
    bint trusted  # its statistics blocks are heartbeats
    int64_t refill_ns  # what is earlier was asked for once more
    int64_t newest_ns  # the greatest timestamp that has come; -1 before the first
    int64_t previous_ns  # of the record before; 0 before the first
    int64_t link_type  # -1 before it is known
    uint64_t packets
    uint64_t offset  # bytes of the capture before the unit at hand
    bint described  # a packet came after the last section header or interface
    uint64_t first  # where that packet begins
    Statistics statistics  # of the first interface
    Chunk *carry  # the beginning of a unit; NULL when there is none
    size_t carried  # bytes in it
    size_t capacity  # bytes that fit
    size_t need  # bytes of the unit to go on with
    uint32_t skipping  # bytes to skip still of a block without its last 4
    uint32_t skipped  # length of the block that is being skipped, or 0
    Interface *interfaces  # of the section
    uint32_t interface_count
    uint32_t interface_capacity
    size_t held  # bytes charged for chunks, carry and interfaces
    Fault fault
    uint64_t fault_value


cdef inline void reader_open(
    Reader *reader, Pool *pool, int64_t most_ns
) noexcept nogil:
    # The rest of it is zero already: it comes from calloc.
    reader.pool = pool
    reader.output_link = -1
    reader.output_most_ns = most_ns
    reader_shift(reader, 0)
    reader_reset(reader)


# Begin another capture. The reader is new or was closed.
cdef inline void reader_reset(Reader *reader) noexcept nogil:
    reader.seam = NULL
    reader.format = UNKNOWN
    reader.header_size = 0
    reader.trusted = False
    reader.refill_ns = INT64_MIN
    reader.newest_ns = -1
    reader.previous_ns = 0
    reader.link_type = -1
    reader.packets = 0
    reader.offset = 0
    reader.described = False
    memset(&reader.statistics, 0, sizeof(Statistics))
    reader.statistics.promised_ns = -1
    reader.skipping = 0
    reader.skipped = 0
    reader.fault = FINE


# The caller has seen that `shift_ns` is not near to what 64 bits hold.
cdef inline void reader_shift(Reader *reader, int64_t shift_ns) noexcept nogil:
    reader.shift_ns = shift_ns
    reader.least_ns = -shift_ns if shift_ns < 0 else 0
    # Where this is less than the least, nothing can be held.
    if shift_ns < 0 and reader.output_most_ns > INT64_MAX + shift_ns:
        reader.most_ns = INT64_MAX
    else:
        reader.most_ns = reader.output_most_ns - shift_ns


# Give back all but the records.
cdef inline void reader_close(Reader *reader) noexcept nogil:
    carry_drop(reader)
    reader.held -= reader.interface_capacity * sizeof(Interface)
    free(reader.interfaces)
    reader.interfaces = NULL
    reader.interface_count = 0
    reader.interface_capacity = 0


# Whether the stream may end here.
cdef inline bint reader_between(const Reader *reader) noexcept nogil:
    return reader.carried == 0 and reader.skipped == 0


cdef inline void fail(Reader *reader, Fault fault, uint64_t value) noexcept nogil:
    reader.fault = fault
    reader.fault_value = value


cdef inline bint carry_append(
    Reader *reader, const uint8_t *data, size_t size
) noexcept nogil:
    cdef size_t capacity = reader.capacity
    cdef uint8_t *grown
    if reader.carry == NULL:
        reader.carry = <Chunk *>malloc(sizeof(Chunk))
        if reader.carry == NULL:
            fail(reader, NO_MEMORY, 0)
            return False
        reader.carry.owner = NULL
        reader.carry.data = NULL
        reader.carry.cost = sizeof(Chunk)
        reader.carry.live = 0
        reader.held += reader.carry.cost
    if size > capacity - reader.carried:
        # By doubling, so that what a header only claims is not allocated.
        capacity = 2 * capacity if capacity else <size_t>CARRY_STEP
        if capacity > reader.need:
            capacity = reader.need
        if capacity < reader.carried + size:
            capacity = reader.carried + size
        grown = <uint8_t *>realloc(reader.carry.data, capacity)
        if grown == NULL:
            fail(reader, NO_MEMORY, 0)
            return False
        reader.carry.data = grown
        reader.carry.cost += capacity - reader.capacity
        reader.held += capacity - reader.capacity
        reader.capacity = capacity
    memcpy(reader.carry.data + reader.carried, data, size)
    reader.carried += size
    return True


cdef inline void carry_drop(Reader *reader) noexcept nogil:
    if reader.carry != NULL:
        reader.held -= reader.carry.cost
        free(reader.carry.data)
        free(reader.carry)
    reader.carry = NULL
    reader.carried = 0
    reader.capacity = 0


# Queue one packet whose `caplen` bytes at `data` were checked to be there.
cdef inline void keep(
    Reader *reader,
    Chunk *chunk,
    int64_t timestamp_ns,
    const uint8_t *data,
    uint32_t caplen,
    uint32_t length,
) noexcept nogil:
    cdef Record record
    if timestamp_ns < reader.least_ns or timestamp_ns > reader.most_ns:
        fail(reader, BAD_TIME, 0)
        return
    if reader.seam != NULL and fingerprints_take(
        reader.seam, timestamp_ns, data, caplen, length
    ):
        reader.joined += 1
    elif reader.collected != NULL:
        if fingerprints_add(reader.collected, timestamp_ns, data, caplen, length) < 0:
            fail(reader, NO_MEMORY, 0)
            return
    else:
        record.timestamp_ns = timestamp_ns + reader.shift_ns
        record.data = data
        record.chunk = chunk
        record.caplen = caplen
        record.length = length
        if queue_push(
            &reader.queue, reader.pool, &record, timestamp_ns < reader.refill_ns
        ) < 0:
            fail(reader, NO_MEMORY, 0)
            return
        chunk.live += 1
        chunk.link_type = reader.link_type
        reader.octets += caplen
    if not reader.described:
        reader.described = True
        reader.first = reader.offset
    reader.packets += 1
    reader.previous_ns = timestamp_ns
    if timestamp_ns > reader.newest_ns:
        reader.newest_ns = timestamp_ns
