# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# A stored record as it leaves: LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2 each made of
# the other, cut, with its time in microseconds or nanoseconds; as a record of pcap or
# an enhanced packet block of pcapng (draft-ietf-opsawg-pcapng, 4.3).
#
#   SLL:  packet type 16, ARPHRD 16, address length 16, address 64, protocol 16
#   SLL2: protocol 16, reserved 16, interface index 32, ARPHRD 16, packet type 8,
#         address length 8, address 64
#
# A VLAN tag is in SLL only: its 16 bits of type are where the protocol was, then come 16
# bits of tag control, and then the protocol.
#
# All big-endian (https://www.tcpdump.org/linktypes.html). A packet that was cut within
# this header keeps what is known from the beginning of the other one.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ddump_worker._blocks cimport RECORD_HEADER, Stored

cdef enum:
    LINUX_SLL = 113
    LINUX_SLL2 = 276
    SLL_SIZE = 16
    SLL2_SIZE = 20
    SLL_PROTOCOL = 14
    TAG_SIZE = 4
    TAGGED_SIZE = SLL_PROTOCOL + TAG_SIZE
    BLOCK_HEADER = 28
    ENHANCED_PACKET = 6
    # The other link type; a block's header, its length again, and what pads its data.
    MOST_GROWTH = SLL2_SIZE - SLL_SIZE + BLOCK_HEADER - RECORD_HEADER + 4 + 3


cdef struct Form:
    int link_type  # of what is stored
    int output_link_type
    uint32_t snaplen  # of what leaves
    bint nano
    bint pcapng  # then always nanoseconds


# Whether the packet, which is SLL, has a tag of those that the kernel takes off: 0x8100,
# 0x88A8. What has another one was captured with it, and is filtered as it is.
cdef inline bint is_tagged(const uint8_t *data, uint32_t caplen) noexcept nogil:
    if caplen < SLL_SIZE:
        return False
    if data[SLL_PROTOCOL] == 0x81:
        return data[SLL_PROTOCOL + 1] == 0x00
    return data[SLL_PROTOCOL] == 0x88 and data[SLL_PROTOCOL + 1] == 0xA8


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
    cdef uint32_t before
    if form.link_type == LINUX_SLL2 and form.output_link_type == LINUX_SLL:
        header_size = sll_of_sll2(header, data, rest)
        skipped = SLL2_SIZE
        length -= SLL2_SIZE - SLL_SIZE  # a stored packet was as long as its header, at least
    elif form.link_type == LINUX_SLL and form.output_link_type == LINUX_SLL2:
        header_size = sll2_of_sll(header, data, rest)
        skipped = SLL_SIZE
        length += SLL2_SIZE - SLL_SIZE  # and 2**31 at most
    skipped = min(skipped, rest)
    header_size = min(header_size, form.snaplen)
    rest = min(rest - skipped, form.snaplen - header_size)
    before = BLOCK_HEADER if form.pcapng else RECORD_HEADER
    memcpy(out + before, header, header_size)
    memcpy(out + before + header_size, data + skipped, rest)
    if form.pcapng:
        return close_block(record, length, header_size + rest, out)
    return close_record(form, record, length, header_size + rest, out)


# What is around the `caplen` bytes of data, which are in their place already. Each
# returns the bytes of the whole.
cdef inline uint32_t close_record(
    const Form *form, const Stored *record, uint32_t length, uint32_t caplen, uint8_t *out
) noexcept nogil:
    cdef uint32_t[4] fields
    fields[0] = record.seconds
    fields[1] = record.fraction
    if not form.nano:
        fields[1] //= 1000
    fields[2] = caplen
    fields[3] = length
    memcpy(out, fields, RECORD_HEADER)
    return RECORD_HEADER + caplen


cdef inline uint32_t close_block(
    const Stored *record, uint32_t length, uint32_t caplen, uint8_t *out
) noexcept nogil:
    cdef uint64_t timestamp_ns = <uint64_t>record.timestamp_ns
    cdef uint32_t padded = (caplen + 3) & ~<uint32_t>3
    cdef uint32_t size = BLOCK_HEADER + padded + 4
    cdef uint32_t[7] fields
    fields[0] = ENHANCED_PACKET
    fields[1] = size
    fields[2] = 0
    fields[3] = <uint32_t>(timestamp_ns >> 32)
    fields[4] = <uint32_t>timestamp_ns
    fields[5] = caplen
    fields[6] = length
    memcpy(out, fields, BLOCK_HEADER)
    memset(out + BLOCK_HEADER + caplen, 0, padded - caplen)
    memcpy(out + BLOCK_HEADER + padded, &size, 4)
    return size


# The bytes of data in what store_record wrote.
cdef inline uint32_t stored_caplen(const Form *form, const uint8_t *out) noexcept nogil:
    cdef uint32_t caplen
    memcpy(&caplen, out + (20 if form.pcapng else 8), 4)
    return caplen
