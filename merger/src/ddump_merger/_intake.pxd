# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The intake of a reader: bytes in any split become units, and those become records.
#
# A unit is a record of classic pcap (pcap-savefile(5)) or a block of pcapng. It is read
# whole, in place, where the received chunk holds all of it; what a chunk's end cuts is
# carried in a buffer of its own until it is whole, so each byte is copied once at most.
# Blocks of no interest are skipped, not carried.
#
# Every length is checked against what is there before anything behind it is read. The
# first thing that cannot be sets `fault` and is the end: the caller closes the input.
# Nothing here needs the GIL.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from ._blocks cimport read_blocks
from ._octets cimport load32
from ._reader cimport (
    LONG_PACKET,
    MAX_CAPLEN,
    PCAP,
    Reader,
    carry_append,
    carry_drop,
    fail,
    keep,
)
from ._records cimport Chunk

cdef enum:
    SECOND = 1_000_000_000
    RECORD_HEADER = 16


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


# Read what is whole of the `size` bytes at `data`; return how many those are. When it
# is not all, then the rest is less than `need`.
cdef inline size_t read_whole(
    Reader *reader, Chunk *chunk, const uint8_t *data, size_t size
) noexcept nogil:
    if reader.format == PCAP:
        return read_records(reader, chunk, data, size)
    return read_blocks(reader, chunk, data, size)


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
