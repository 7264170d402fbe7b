# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The reader of one input: bytes in any split become records in its queue.
#
# Classic pcap (pcap-savefile(5)) and pcapng (draft-ietf-opsawg-pcapng). A unit is a
# record or a block. It is read whole, in place, where the received chunk holds all of
# it; what a chunk's end cuts is carried in a buffer of its own until it is whole, so
# each byte is copied once at most. Blocks of no interest are skipped, not carried.
#
# Every length is checked against what is there before anything behind it is read. The
# first thing that cannot be sets `fault` and is the end: the caller closes the input.
# Nothing here needs the GIL.
#
# A reader reads one capture after the other: `reader_reset` begins the next one, and
# the queue stays. The clock of the captures may be another than that of the merge:
# records are queued with `shift_ns` added, all else here is by their own clock.

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from ._cooked cimport fits
from ._fingerprints cimport Fingerprints, fingerprints_add, fingerprints_take
from ._octets cimport load16, load32, load64
from ._options cimport OPTION, OPTIONS_END, Options, Step, options_next, options_open
from ._records cimport Chunk, Pool, Queue, Record, queue_push
from ._statistics cimport Statistics, load_time, statistics_read
from ._timestamps cimport MICROSECONDS, Units, to_ns, units_open

cdef enum:
    SECOND = 1_000_000_000
    MAX_CAPLEN = 262_144  # MAXIMUM_SNAPLEN of libpcap and Wireshark
    # A packet block is a packet and a few options. Others (keys, names, custom) may be
    # as long as Wireshark takes them.
    MAX_READ_BLOCK = 1 << 20
    MAX_SKIPPED_BLOCK = 16 << 20
    MAX_INTERFACES = 1 << 16
    PCAP_HEADER = 24
    RECORD_HEADER = 16
    CARRY_STEP = 4096

    SECTION_HEADER = 0x0A0D0D0A  # the same in both byte orders
    INTERFACE_DESCRIPTION = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    INTERFACE_STATISTICS = 5
    ENHANCED_PACKET = 6
    BYTE_ORDER_MAGIC = 0x1A2B3C4D
    BLOCK_FRAME = 12  # type, length, and the length again at the end

    IF_TSRESOL = 9
    IF_TSOFFSET = 14


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
    UNFIT_LINK_TYPE
    NO_SUCH_INTERFACE
    BAD_STATISTICS
    BAD_STATISTICS_TIME


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


# Take the next `size` bytes of the stream, which lie in `chunk`; then look at `fault`.
cdef inline void reader_feed(
    Reader *reader, Chunk *chunk, const uint8_t *data, size_t size
) noexcept nogil:
    cdef size_t part
    while reader.carried and size:
        # need > carried: a reader that wants more says how much, and what is carried
        # was not enough. It is one unit at most, so it is used whole or not at all.
        part = reader.need - reader.carried
        if part > size:
            part = size
        if not carry_append(reader, data, part):
            return
        data += part
        size -= part
        if reader.carried < reader.need:
            return
        reader.carry.live = 1
        part = read_whole(reader, reader.carry, reader.carry.data, reader.carried)
        if reader.fault:
            return
        if part:
            if reader.carry.live > 1:
                reader.carry.live -= 1
                reader.carry = NULL  # it is the record's now, and still charged
                reader.carried = 0
                reader.capacity = 0
            else:
                carry_drop(reader)
    if size:
        part = read_whole(reader, chunk, data, size)
        if part < size and not reader.fault:
            carry_append(reader, data + part, size - part)


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


# Read what is whole of the `size` bytes at `data`; return how many those are. When it
# is not all, then the rest is less than `need`.
cdef inline size_t read_whole(
    Reader *reader, Chunk *chunk, const uint8_t *data, size_t size
) noexcept nogil:
    if reader.format == PCAP:
        return read_records(reader, chunk, data, size)
    return read_blocks(reader, chunk, data, size)


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
    if not reader.described:
        reader.described = True
        reader.first = reader.offset
    reader.packets += 1
    reader.previous_ns = timestamp_ns
    if timestamp_ns > reader.newest_ns:
        reader.newest_ns = timestamp_ns


cdef inline size_t read_records(
    Reader *reader, Chunk *chunk, const uint8_t *data, size_t size
) noexcept nogil:
    cdef size_t at = 0  # <= size always: it moves by what was seen to be left
    cdef size_t left
    cdef const uint8_t *header
    cdef uint32_t caplen
    cdef int64_t timestamp_ns
    while True:
        left = size - at
        if left < RECORD_HEADER:
            reader.need = RECORD_HEADER
            return at
        header = data + at
        caplen = load32(header + 8, reader.big_endian)
        if caplen > MAX_CAPLEN:
            fail(reader, LONG_PACKET, caplen)
            return at
        if left - RECORD_HEADER < caplen:
            reader.need = RECORD_HEADER + caplen
            return at
        # Below 2**32 * (10**9 + 1000) < 2**63. A fraction of a second or more carries.
        timestamp_ns = (
            <int64_t>load32(header, reader.big_endian) * SECOND
            + <int64_t>load32(header + 4, reader.big_endian) * reader.fraction_ns
        )
        keep(
            reader, chunk, timestamp_ns, header + RECORD_HEADER,
            caplen, load32(header + 12, reader.big_endian),
        )
        if reader.fault:
            return at
        at += RECORD_HEADER + caplen
        reader.offset += RECORD_HEADER + caplen


cdef inline size_t read_blocks(
    Reader *reader, Chunk *chunk, const uint8_t *data, size_t size
) noexcept nogil:
    cdef size_t at = 0  # <= size always: it moves by what was seen to be left
    cdef size_t left
    cdef uint32_t kind
    cdef uint32_t total
    while True:
        left = size - at
        if reader.skipped:
            if reader.skipping > left:
                reader.skipping -= <uint32_t>left
                return size
            at += reader.skipping
            left -= reader.skipping
            reader.skipping = 0
            if left < 4:
                reader.need = 4
                return at
            if load32(data + at, reader.big_endian) != reader.skipped:
                fail(reader, BAD_TRAILER, reader.skipped)
                return at
            at += 4
            left -= 4
            reader.offset += reader.skipped
            reader.skipped = 0
        if left < 8:
            reader.need = 8
            return at
        kind = load32(data + at, reader.big_endian)
        if kind == SECTION_HEADER:
            if left < 12:
                reader.need = 12
                return at
            read_byte_order(reader, data + at + 8)
            if reader.fault:
                return at
        total = load32(data + at + 4, reader.big_endian)
        if total < BLOCK_FRAME or total % 4:
            fail(reader, BAD_BLOCK_LENGTH, total)
            return at
        if not is_read(kind):
            if total > MAX_SKIPPED_BLOCK:
                fail(reader, LONG_BLOCK, total)
                return at
            at += 8
            reader.skipping = total - BLOCK_FRAME
            reader.skipped = total
            continue
        if total > MAX_READ_BLOCK:
            fail(reader, LONG_BLOCK, total)
            return at
        if left < total:
            reader.need = total
            return at
        if load32(data + at + total - 4, reader.big_endian) != total:
            fail(reader, BAD_TRAILER, total)
            return at
        read_block(reader, chunk, kind, data + at + 8, total - BLOCK_FRAME)
        if reader.fault:
            return at
        at += total
        reader.offset += total


cdef inline bint is_read(uint32_t kind) noexcept nogil:
    return (
        kind == ENHANCED_PACKET or kind == SIMPLE_PACKET or kind == OBSOLETE_PACKET
        or kind == INTERFACE_STATISTICS or kind == INTERFACE_DESCRIPTION
        or kind == SECTION_HEADER
    )


# A section says itself in which order its bytes are; the 4 at `magic` are there.
cdef inline void read_byte_order(Reader *reader, const uint8_t *magic) noexcept nogil:
    if load32(magic, False) == BYTE_ORDER_MAGIC:
        reader.big_endian = False
    elif load32(magic, True) == BYTE_ORDER_MAGIC:
        reader.big_endian = True
    else:
        fail(reader, BAD_BYTE_ORDER, load32(magic, True))


# Read the `size` bytes between a block's two lengths; `size` is a multiple of 4.
cdef inline void read_block(
    Reader *reader, Chunk *chunk, uint32_t kind, const uint8_t *body, uint32_t size
) noexcept nogil:
    if kind == ENHANCED_PACKET:
        if size < 20:
            fail(reader, SHORT_BLOCK, kind)
            return
        read_packet(
            reader, chunk, load32(body, reader.big_endian), body, size
        )
    elif kind == OBSOLETE_PACKET:  # as above, but for a counter of drops
        if size < 20:
            fail(reader, SHORT_BLOCK, kind)
            return
        read_packet(
            reader, chunk, load16(body, reader.big_endian), body, size
        )
    elif kind == SIMPLE_PACKET:
        if size < 4:
            fail(reader, SHORT_BLOCK, kind)
            return
        read_simple_packet(reader, chunk, body, size)
    elif kind == INTERFACE_DESCRIPTION:
        if size < 8:
            fail(reader, SHORT_BLOCK, kind)
            return
        read_interface(reader, body, size)
    elif kind == INTERFACE_STATISTICS:
        if size < 12:
            fail(reader, SHORT_BLOCK, kind)
            return
        read_statistics(reader, body, size)
    else:
        if size < 16:
            fail(reader, SHORT_BLOCK, kind)
            return
        if load16(body + 4, reader.big_endian) != 1:
            fail(reader, BAD_SECTION_VERSION, load16(body + 4, reader.big_endian))
            return
        reader.interface_count = 0
        reader.described = False


# The caller has seen that `size` >= 20.
cdef inline void read_packet(
    Reader *reader, Chunk *chunk, uint32_t number, const uint8_t *body, uint32_t size
) noexcept nogil:
    cdef uint32_t caplen = load32(body + 12, reader.big_endian)
    cdef int64_t timestamp_ns
    if number >= reader.interface_count:
        fail(reader, UNKNOWN_INTERFACE, number)
        return
    if caplen > MAX_CAPLEN:
        fail(reader, LONG_PACKET, caplen)
        return
    if caplen > size - 20:
        fail(reader, LONG_FOR_BLOCK, caplen)
        return
    timestamp_ns = load_time(
        body + 4, &reader.interfaces[number].units, reader.big_endian
    )
    if timestamp_ns < 0:
        fail(reader, BAD_TIME, 0)
        return
    keep(
        reader, chunk, timestamp_ns, body + 20,
        caplen, load32(body + 16, reader.big_endian),
    )


# The caller has seen that `size` >= 4. The block has no timestamp: it takes that of the
# record before it, so that it stays where it was captured.
cdef inline void read_simple_packet(
    Reader *reader, Chunk *chunk, const uint8_t *body, uint32_t size
) noexcept nogil:
    cdef uint32_t length = load32(body, reader.big_endian)
    cdef uint32_t caplen = length
    if reader.interface_count == 0:
        fail(reader, UNKNOWN_INTERFACE, 0)
        return
    if reader.interfaces[0].snaplen and caplen > reader.interfaces[0].snaplen:
        caplen = reader.interfaces[0].snaplen
    if caplen > MAX_CAPLEN:
        fail(reader, LONG_PACKET, caplen)
        return
    if caplen > size - 4:
        fail(reader, LONG_FOR_BLOCK, caplen)
        return
    keep(reader, chunk, reader.previous_ns, body + 4, caplen, length)


# The caller has seen that `size` >= 8.
cdef inline void read_interface(
    Reader *reader, const uint8_t *body, uint32_t size
) noexcept nogil:
    cdef Interface interface
    cdef Interface *grown
    cdef uint32_t capacity = reader.interface_capacity
    cdef uint16_t link_type = load16(body, reader.big_endian)
    interface.snaplen = load32(body + 4, reader.big_endian)
    if reader.link_type >= 0 and reader.link_type != link_type:
        fail(reader, MIXED_LINK_TYPES, link_type)
        return
    if not read_units(reader, &interface.units, body + 8, size - 8):
        fail(reader, BAD_OPTION, 0)
        return
    if not fits(link_type, reader.output_link):
        reader.link_type = link_type
        fail(reader, UNFIT_LINK_TYPE, link_type)
        return
    if reader.interface_count == MAX_INTERFACES:
        fail(reader, MANY_INTERFACES, MAX_INTERFACES)
        return
    if reader.interface_count == capacity:
        capacity = <uint32_t>(2 * capacity if capacity else 4)
        grown = <Interface *>realloc(
            reader.interfaces, capacity * sizeof(Interface)
        )
        if grown == NULL:
            fail(reader, NO_MEMORY, 0)
            return
        reader.held += (capacity - reader.interface_capacity) * sizeof(Interface)
        reader.interfaces = grown
        reader.interface_capacity = capacity
    reader.interfaces[reader.interface_count] = interface
    reader.interface_count += 1
    reader.link_type = link_type
    reader.described = False


# Read what the `size` bytes of options at `data` say of timestamps; say whether they are
# sound.
cdef inline bint read_units(
    const Reader *reader, Units *units, const uint8_t *data, uint32_t size
) noexcept nogil:
    cdef Options options
    cdef Step step
    cdef uint8_t resolution = MICROSECONDS
    cdef int64_t offset_s = 0
    options_open(&options, data, size, reader.big_endian)
    step = options_next(&options)
    while step == OPTION:
        if options.code == IF_TSRESOL:
            if options.length != 1:
                return False
            resolution = options.value[0]
        elif options.code == IF_TSOFFSET:
            if options.length != 8:
                return False
            offset_s = <int64_t>load64(options.value, reader.big_endian)
        step = options_next(&options)
    units_open(units, resolution, offset_s)
    return step == OPTIONS_END


# The caller has seen that `size` >= 12. All are checked, those of the first interface
# are kept.
cdef inline void read_statistics(
    Reader *reader, const uint8_t *body, uint32_t size
) noexcept nogil:
    cdef Statistics statistics
    cdef uint32_t number = load32(body, reader.big_endian)
    cdef const Units *units
    cdef int64_t time_ns
    if number >= reader.interface_count:
        fail(reader, NO_SUCH_INTERFACE, number)
        return
    units = &reader.interfaces[number].units
    time_ns = load_time(body + 4, units, reader.big_endian)
    # A promise has to be one that the output can hold, what only informs has not.
    if time_ns < 0 or (
        reader.trusted and (time_ns < reader.least_ns or time_ns > reader.most_ns)
    ):
        fail(reader, BAD_STATISTICS_TIME, 0)
        return
    if not statistics_read(&statistics, units, body + 12, size - 12, reader.big_endian):
        fail(reader, BAD_STATISTICS, 0)
        return
    if number:
        return
    statistics.promised_ns = time_ns
    if time_ns < reader.statistics.promised_ns:
        statistics.promised_ns = reader.statistics.promised_ns
        if reader.trusted:
            reader.backwards += 1
    statistics.count = reader.statistics.count + 1
    statistics.read = reader.packets
    reader.statistics = statistics
