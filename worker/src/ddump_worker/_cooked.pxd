# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# A stored record as it leaves: LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2 each made of
# the other, cut, with its time in microseconds or nanoseconds.
#
#   SLL:  packet type 16, ARPHRD 16, address length 16, address 64, protocol 16
#   SLL2: protocol 16, reserved 16, interface index 32, ARPHRD 16, packet type 8,
#         address length 8, address 64
#
# All big-endian (https://www.tcpdump.org/linktypes.html). A packet that was cut within
# this header keeps what is known from the beginning of the other one.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ddump_worker._blocks cimport RECORD_HEADER, Stored

cdef enum:
    LINUX_SLL = 113
    LINUX_SLL2 = 276
    SLL_SIZE = 16
    SLL2_SIZE = 20
    MOST_GROWTH = SLL2_SIZE - SLL_SIZE


cdef struct Form:
    int link_type  # of what is stored
    int output_link_type
    uint32_t snaplen  # of what leaves
    bint nano


# Write the SLL header for `caplen` bytes of SLL2; return how much of it is known.
cdef inline uint32_t sll_of_sll2(
    uint8_t *out, const uint8_t *data, uint32_t caplen
) noexcept nogil:
    cdef uint8_t known[SLL2_SIZE]
    memset(known, 0, SLL2_SIZE)
    memcpy(known, data, min(caplen, <uint32_t>SLL2_SIZE))
    memset(out, 0, SLL_SIZE)
    out[1] = known[10]
    memcpy(out + 2, known + 8, 2)
    out[5] = known[11]
    memcpy(out + 6, known + 12, 8)
    memcpy(out + 14, known, 2)
    if caplen >= SLL2_SIZE:
        return SLL_SIZE
    if caplen >= 12:  # the address, as far as it goes
        return caplen - 6
    return 4 if caplen == 11 else 0  # it begins with the packet type


# Write the SLL2 header for `caplen` bytes of SLL; return how much of it is known. The
# interface is not; it is 0.
cdef inline uint32_t sll2_of_sll(
    uint8_t *out, const uint8_t *data, uint32_t caplen
) noexcept nogil:
    memset(out, 0, SLL2_SIZE)
    if caplen < SLL_SIZE:  # the protocol comes last there and first here
        out[0] = data[14] if caplen == SLL_SIZE - 1 else 0
        return 1 if caplen == SLL_SIZE - 1 else 0
    memcpy(out, data + 14, 2)
    memcpy(out + 8, data + 2, 2)
    out[10] = data[1] if data[0] == 0 else 0xFF  # 16 bits into 8
    out[11] = data[5] if data[4] == 0 else 0xFF
    memcpy(out + 12, data + 6, 8)
    return SLL2_SIZE


# Write the record as it leaves; return its bytes. `out` has room for the stored record
# and MOST_GROWTH.
cdef inline uint32_t store_record(
    const Form *form, const Stored *record, const uint8_t *data, uint8_t *out
) noexcept nogil:
    cdef uint8_t header[SLL2_SIZE]
    cdef uint32_t header_size = 0
    cdef uint32_t rest = record.caplen
    cdef uint32_t length = record.length
    cdef uint32_t skipped = 0
    cdef uint32_t[4] fields
    if form.link_type == LINUX_SLL2 and form.output_link_type == LINUX_SLL:
        header_size = sll_of_sll2(header, data, rest)
        skipped = SLL2_SIZE
        length -= MOST_GROWTH  # a stored packet was as long as its header, at least
    elif form.link_type == LINUX_SLL and form.output_link_type == LINUX_SLL2:
        header_size = sll2_of_sll(header, data, rest)
        skipped = SLL_SIZE
        length += MOST_GROWTH  # and 2**31 at most
    skipped = min(skipped, rest)
    header_size = min(header_size, form.snaplen)
    rest = min(rest - skipped, form.snaplen - header_size)
    fields[0] = record.seconds
    fields[1] = record.fraction
    if not form.nano:
        fields[1] //= 1000
    fields[2] = header_size + rest
    fields[3] = length
    memcpy(out, fields, RECORD_HEADER)
    memcpy(out + RECORD_HEADER, header, header_size)
    memcpy(out + RECORD_HEADER + header_size, data + skipped, rest)
    return RECORD_HEADER + header_size + rest
