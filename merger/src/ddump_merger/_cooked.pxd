# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2, each made of the other.
#
#   SLL:  packet type 16, ARPHRD 16, address length 16, address 64, protocol 16
#   SLL2: protocol 16, reserved 16, interface index 32, ARPHRD 16, packet type 8,
#         address length 8, address 64
#
# All big-endian (https://www.tcpdump.org/linktypes.html). A packet that was cut within
# this header has only those bytes of the other one that are really known.

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

cdef enum:
    LINUX_SLL = 113
    LINUX_SLL2 = 276
    SLL_SIZE = 16
    SLL2_SIZE = 20
    SLL2_INTERFACE = 4  # where the index begins
    SLL2_INTERFACE_END = 8


# Whether records of one link type can become those of the other; -1 is none yet.
cdef inline bint fits(int64_t link_type, int64_t output) noexcept nogil:
    if link_type < 0 or output < 0 or link_type == output:
        return True
    return (
        (link_type == LINUX_SLL or link_type == LINUX_SLL2)
        and (output == LINUX_SLL or output == LINUX_SLL2)
    )


# Write the SLL header for `caplen` bytes of SLL2 at `data`; return how much of it is
# known: SLL_SIZE when `caplen` >= SLL2_SIZE. `out` has room for SLL_SIZE.
cdef inline uint32_t sll_from_sll2(
    uint8_t *out, const uint8_t *data, uint32_t caplen
) noexcept nogil:
    cdef uint8_t whole[SLL2_SIZE]
    cdef uint32_t place
    if caplen < SLL2_SIZE:
        for place in range(<uint32_t>SLL2_SIZE):
            whole[place] = data[place] if place < caplen else 0
        data = whole
    out[0] = 0
    out[1] = data[10]
    out[2] = data[8]
    out[3] = data[9]
    out[4] = 0
    out[5] = data[11]
    memcpy(out + 6, data + 12, 8)
    out[14] = data[0]
    out[15] = data[1]
    if caplen >= SLL2_SIZE:
        return SLL_SIZE
    if caplen >= 12:  # the address, as far as it goes
        return caplen - 6
    return 4 if caplen == 11 else 0  # without the packet type nothing


# Write the SLL2 header for `caplen` bytes of SLL at `data`; return how much of it is
# known: SLL2_SIZE when `caplen` >= SLL_SIZE. `out` has room for SLL2_SIZE.
cdef inline uint32_t sll2_from_sll(
    uint8_t *out, const uint8_t *data, uint32_t caplen
) noexcept nogil:
    cdef uint32_t place
    if caplen < SLL_SIZE:  # the protocol comes last there and first here
        if caplen == SLL_SIZE - 1:
            out[0] = data[14]
            return 1
        return 0
    out[0] = data[14]
    out[1] = data[15]
    for place in range(2, 8):  # reserved, and the interface, which SLL does not know
        out[place] = 0
    out[8] = data[2]
    out[9] = data[3]
    out[10] = data[1] if data[0] == 0 else 0xFF  # 16 bits into 8
    out[11] = data[5] if data[4] == 0 else 0xFF
    memcpy(out + 12, data + 6, 8)
    return SLL2_SIZE
