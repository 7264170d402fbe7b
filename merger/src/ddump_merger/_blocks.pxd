# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The blocks of pcapng (draft-ietf-opsawg-pcapng).
#
# Packets, interfaces, their statistics and section headers are read whole, all others
# are skipped. Every length is checked against what is there before anything behind it
# is read. Nothing here needs the GIL.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport realloc

from ._cooked cimport fits
from ._octets cimport load16, load32, load64
from ._options cimport OPTION, OPTIONS_END, Options, Step, options_next, options_open
from ._reader cimport (
    BAD_BLOCK_LENGTH,
    BAD_BYTE_ORDER,
    BAD_OPTION,
    BAD_SECTION_VERSION,
    BAD_STATISTICS,
    BAD_STATISTICS_TIME,
    BAD_TIME,
    BAD_TRAILER,
    LONG_BLOCK,
    LONG_FOR_BLOCK,
    LONG_PACKET,
    MANY_INTERFACES,
    MAX_CAPLEN,
    MIXED_LINK_TYPES,
    NO_MEMORY,
    NO_SUCH_INTERFACE,
    SHORT_BLOCK,
    UNFIT_LINK_TYPE,
    UNKNOWN_INTERFACE,
    Interface,
    Reader,
    fail,
    keep,
)
from ._records cimport Chunk
from ._statistics cimport Statistics, load_time, statistics_read
from ._timestamps cimport MICROSECONDS, Units, units_open

cdef enum:
    # A packet block is a packet and a few options. Others (keys, names, custom) may be
    # as long as Wireshark takes them.
    MAX_READ_BLOCK = 1 << 20
    MAX_SKIPPED_BLOCK = 16 << 20
    MAX_INTERFACES = 1 << 16

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


# Read what is whole of the `size` bytes at `data`; return how many those are. When it
# is not all, then the rest is less than `need`.
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
