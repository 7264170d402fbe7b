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

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from ._octets cimport load16, load32, load64
from ._records cimport Chunk, Pool, Queue, Record, queue_push

cdef enum:
    SECOND = 1_000_000_000
    MAX_CAPLEN = 262_144  # MAXIMUM_SNAPLEN of libpcap and Wireshark
    # A packet block is a packet and a few options. Others (keys, names, custom) may be
    # as long as Wireshark takes them.
    MAX_READ_BLOCK = 1 << 20
    MAX_SKIPPED_BLOCK = 16 << 20
    MAX_INTERFACES = 1 << 16
    RECORD_HEADER = 16
    CARRY_STEP = 4096

    SECTION_HEADER = 0x0A0D0D0A  # the same in both byte orders
    INTERFACE_DESCRIPTION = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    ENHANCED_PACKET = 6
    BYTE_ORDER_MAGIC = 0x1A2B3C4D
    BLOCK_FRAME = 12  # type, length, and the length again at the end

    OPT_END = 0
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


# How the timestamps of one pcapng interface count.
cdef struct Interface:
    int64_t offset_s
    uint64_t multiplier  # nanoseconds in a unit, or 0: take the long way
    uint64_t most  # units that the multiplier can be used for
    uint32_t snaplen
    uint8_t resolution  # if_tsresol


cdef struct Reader:
    Queue queue
    Pool *pool
    Format format
    bint big_endian  # of the file, or of the section
    uint32_t fraction_ns  # nanoseconds in a unit of a pcap record's fraction
    int64_t most_ns  # the greatest timestamp that the output can hold
    int64_t newest_ns  # the greatest that has come; -1 before the first
    int64_t previous_ns  # of the record before; 0 before the first
    int64_t link_type  # -1 before it is known
    uint64_t offset  # bytes of the stream before the unit at hand
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
    reader.most_ns = most_ns
    reader.newest_ns = -1
    reader.link_type = -1


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
        part = read_units(reader, reader.carry, reader.carry.data, reader.carried)
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
        part = read_units(reader, chunk, data, size)
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
cdef inline size_t read_units(
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
    record.timestamp_ns = timestamp_ns
    record.data = data
    record.chunk = chunk
    record.caplen = caplen
    record.length = length
    if queue_push(&reader.queue, reader.pool, &record) < 0:
        fail(reader, NO_MEMORY, 0)
        return
    chunk.live += 1
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
        if timestamp_ns > reader.most_ns:
            fail(reader, BAD_TIME, 0)
            return at
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
        or kind == INTERFACE_DESCRIPTION or kind == SECTION_HEADER
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
    else:
        if size < 16:
            fail(reader, SHORT_BLOCK, kind)
            return
        if load16(body + 4, reader.big_endian) != 1:
            fail(reader, BAD_SECTION_VERSION, load16(body + 4, reader.big_endian))
            return
        reader.interface_count = 0


# The caller has seen that `size` >= 20.
cdef inline void read_packet(
    Reader *reader, Chunk *chunk, uint32_t number, const uint8_t *body, uint32_t size
) noexcept nogil:
    cdef uint64_t units
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
    units = (
        <uint64_t>load32(body + 4, reader.big_endian) << 32
        | load32(body + 8, reader.big_endian)
    )
    timestamp_ns = to_ns(&reader.interfaces[number], units, reader.most_ns)
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
    interface.resolution = 6
    interface.offset_s = 0
    if reader.link_type >= 0 and reader.link_type != link_type:
        fail(reader, MIXED_LINK_TYPES, link_type)
        return
    if not read_interface_options(reader, &interface, body + 8, size - 8):
        fail(reader, BAD_OPTION, 0)
        return
    interface.multiplier = 0
    interface.most = 0
    if interface.offset_s == 0 and interface.resolution <= 9:
        interface.multiplier = power_of_10(9 - interface.resolution)
        interface.most = <uint64_t>reader.most_ns // interface.multiplier
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


# Read the options that count of the `size` bytes at `options`, a multiple of 4; say
# whether they are sound.
cdef inline bint read_interface_options(
    Reader *reader, Interface *interface, const uint8_t *options, uint32_t size
) noexcept nogil:
    cdef uint32_t at = 0  # a multiple of 4, <= size: it moves by what is left
    cdef uint32_t code
    cdef uint32_t length
    while size - at >= 4:
        code = load16(options + at, reader.big_endian)
        length = load16(options + at + 2, reader.big_endian)
        if code == OPT_END:
            return length == 0
        at += 4
        if length > size - at:
            return False
        if code == IF_TSRESOL:
            if length != 1:
                return False
            interface.resolution = options[at]
        elif code == IF_TSOFFSET:
            if length != 8:
                return False
            interface.offset_s = <int64_t>load64(options + at, reader.big_endian)
        at += (length + 3) & ~<uint32_t>3  # <= size, as size - at is a multiple of 4
    return True


cdef inline uint64_t power_of_10(uint32_t exponent) noexcept nogil:
    cdef uint64_t power = 1
    while exponent:  # 19 at most, 10**19 < 2**64
        power *= 10
        exponent -= 1
    return power


# Return the nanoseconds that `units` of the interface are, fractions of one cut off;
# -1 when they are before the epoch or after `most_ns`.
cdef inline int64_t to_ns(
    const Interface *interface, uint64_t units, int64_t most_ns
) noexcept nogil:
    cdef uint64_t seconds = 0
    cdef uint64_t nanoseconds = 0
    cdef int64_t signed_seconds
    if interface.multiplier:
        if units > interface.most:
            return -1
        return <int64_t>(units * interface.multiplier)
    if interface.resolution & 0x80:
        split_binary(units, interface.resolution & 0x7F, &seconds, &nanoseconds)
    else:
        split_decimal(units, interface.resolution, &seconds, &nanoseconds)
    if seconds > <uint64_t>INT64_MAX:
        return -1
    signed_seconds = <int64_t>seconds
    if interface.offset_s > INT64_MAX - signed_seconds:
        return -1
    signed_seconds += interface.offset_s
    if signed_seconds < 0 or signed_seconds > (most_ns - <int64_t>nanoseconds) // SECOND:
        return -1
    return signed_seconds * SECOND + <int64_t>nanoseconds


# Units of 10**-exponent seconds; `seconds` is 0 before.
cdef inline void split_decimal(
    uint64_t units, uint32_t exponent, uint64_t *seconds, uint64_t *nanoseconds
) noexcept nogil:
    cdef uint64_t per_second
    if exponent <= 19:
        per_second = power_of_10(exponent)
        seconds[0] = units // per_second
        units %= per_second
    if exponent <= 9:
        nanoseconds[0] = units * power_of_10(9 - exponent)
    elif exponent <= 28:
        nanoseconds[0] = units // power_of_10(exponent - 9)
    else:  # 2**64 units are less than a nanosecond
        nanoseconds[0] = 0


# Units of 2**-exponent seconds, exponent <= 127; `seconds` is 0 before.
cdef inline void split_binary(
    uint64_t units, uint32_t exponent, uint64_t *seconds, uint64_t *nanoseconds
) noexcept nogil:
    cdef uint64_t high
    cdef uint64_t low
    if exponent < 64:
        seconds[0] = units >> exponent
        units &= (<uint64_t>1 << exponent) - 1
    # units * 10**9 needs 94 bits: `high` has those from the 32nd on, `low` the others.
    low = (units & 0xFFFFFFFFu) * <uint64_t>SECOND
    high = (units >> 32) * <uint64_t>SECOND + (low >> 32)
    low &= 0xFFFFFFFFu
    if exponent == 0:
        nanoseconds[0] = 0
    elif exponent < 32:  # the result is less than 10**9, so nothing is shifted out
        nanoseconds[0] = high << (32 - exponent) | low >> exponent
    elif exponent < 96:
        nanoseconds[0] = high >> (exponent - 32)
    else:
        nanoseconds[0] = 0
