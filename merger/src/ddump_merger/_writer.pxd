# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The writer: records become those of the output, in a buffer of a fixed size.
#
# They are of classic pcap or enhanced packet blocks of pcapng, little-endian. Those of
# the other cooked link type are converted. Nothing here needs the GIL.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._blocks cimport ENHANCED_PACKET
from ._cooked cimport (
    LINUX_SLL,
    LINUX_SLL2,
    SLL2_INTERFACE,
    SLL2_INTERFACE_END,
    SLL2_SIZE,
    SLL_SIZE,
    sll2_from_sll,
    sll_from_sll2,
)
from ._intake cimport RECORD_HEADER, SECOND
from ._octets cimport load32, store32
from ._reader cimport MAX_CAPLEN
from ._records cimport Record

cdef enum:
    # It has room for the largest record of any format, so an empty buffer always takes
    # one.
    OUTPUT_SIZE = MAX_CAPLEN + 64
    EPB_HEADER = 28
    EPB_FRAME = 32  # with the length at the end
    NO_ROOM = -1


cdef struct Writer:
    bint pcapng
    bint nano
    int64_t link_type  # of the output, or -1
    int64_t second_ns  # a whole second near the last record written
    uint32_t second
    uint8_t *data
    size_t size  # <= OUTPUT_SIZE, which is what `data` has room for


# The index that the record, as it is written, has of its interface, or 0.
cdef inline uint32_t interface_index(const Writer *writer, const Record *record) noexcept nogil:
    if (
        writer.link_type != LINUX_SLL2
        or record.chunk.link_type != LINUX_SLL2
        or record.caplen < SLL2_INTERFACE_END
    ):
        return 0
    return load32(record.data + SLL2_INTERFACE, True)


# Append the record, in pcapng as one of interface `number`; return how many bytes of
# data it then has, or NO_ROOM. `cut` is set when those are less than there were.
cdef inline int64_t writer_put(
    Writer *writer, const Record *record, uint32_t number, bint *cut
) noexcept nogil:
    cdef uint8_t header[SLL2_SIZE]
    cdef uint32_t header_size = 0
    cdef const uint8_t *data = record.data
    cdef uint32_t rest = record.caplen
    cdef uint32_t length = record.length
    cut[0] = False
    # What does not fit the output was refused: if it differs, both are cooked.
    if record.chunk.link_type != writer.link_type:
        if writer.link_type == LINUX_SLL:
            header_size = sll_from_sll2(header, data, rest)
            length = <uint32_t>(length - 4 if length > 4 else 0)
            data += SLL2_SIZE if rest > SLL2_SIZE else rest
            rest = rest - SLL2_SIZE if rest > SLL2_SIZE else <uint32_t>0
        else:
            header_size = sll2_from_sll(header, data, rest)
            length = <uint32_t>(length + 4 if length < 0xFFFFFFFCu else 0xFFFFFFFFu)
            data += SLL_SIZE if rest > SLL_SIZE else rest
            rest = rest - SLL_SIZE if rest > SLL_SIZE else <uint32_t>0
            if rest > MAX_CAPLEN - SLL2_SIZE:
                rest = MAX_CAPLEN - SLL2_SIZE
                cut[0] = True
    # header_size + rest <= MAX_CAPLEN; with frame and padding that is OUTPUT_SIZE
    # at most, so what does not fit now fits an empty buffer.
    cdef uint32_t caplen = header_size + rest
    cdef uint32_t padding = <uint32_t>((4 - caplen % 4) % 4 if writer.pcapng else 0)
    cdef uint32_t total = caplen + padding + (
        <uint32_t>EPB_FRAME if writer.pcapng else <uint32_t>RECORD_HEADER
    )
    if total > OUTPUT_SIZE - writer.size:
        return NO_ROOM
    cdef uint8_t *out = writer.data + writer.size
    writer.size += total
    if writer.pcapng:
        store_block_header(
            out, number, record.timestamp_ns, writer.nano, caplen, length, total
        )
        out += EPB_HEADER
    else:
        store_record_header(writer, out, record.timestamp_ns, caplen, length)
        out += RECORD_HEADER
    if header_size:
        memcpy(out, header, header_size)
    memcpy(out + header_size, data, rest)
    if writer.pcapng:
        memset(out + caplen, 0, padding)
        store32(out + caplen + padding, total)
    return caplen


cdef inline void store_record_header(
    Writer *writer, uint8_t *out, int64_t timestamp_ns, uint32_t caplen, uint32_t length
) noexcept nogil:
    # Most records are of the second of the one before: that saves a division.
    if not 0 <= timestamp_ns - writer.second_ns < SECOND:
        writer.second = <uint32_t>(timestamp_ns // SECOND)  # the reader saw that it fits
        writer.second_ns = <int64_t>writer.second * SECOND
    cdef uint32_t fraction = <uint32_t>(timestamp_ns - writer.second_ns)
    store32(out, writer.second)
    store32(out + 4, fraction if writer.nano else <uint32_t>(fraction // 1000))
    store32(out + 8, caplen)
    store32(out + 12, length)


cdef inline void store_block_header(
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
