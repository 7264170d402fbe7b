# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# Integers in bytes, by hand: portable, free of alignment, and gcc makes one load of each.
#
# The caller proves that the bytes are there; every call site says how.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline uint16_t load16(const uint8_t *at, bint big_endian) noexcept nogil:
    if big_endian:
        return <uint16_t>(at[0] << 8 | at[1])
    return <uint16_t>(at[1] << 8 | at[0])


cdef inline uint32_t load32(const uint8_t *at, bint big_endian) noexcept nogil:
    if big_endian:
        return (
            <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16
            | <uint32_t>at[2] << 8 | <uint32_t>at[3]
        )
    return (
        <uint32_t>at[3] << 24 | <uint32_t>at[2] << 16
        | <uint32_t>at[1] << 8 | <uint32_t>at[0]
    )


cdef inline uint64_t load64(const uint8_t *at, bint big_endian) noexcept nogil:
    cdef uint64_t first = load32(at, big_endian)
    cdef uint64_t second = load32(at + 4, big_endian)
    return first << 32 | second if big_endian else second << 32 | first


# What the merge writes is little-endian on every machine. Byte by byte, as above, gcc 12
# does badly.
cdef extern from *:
    """
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define little_endian(value) __builtin_bswap32(value)
    #else
    #define little_endian(value) (value)
    #endif
    """
    uint32_t little_endian(uint32_t value) noexcept nogil


cdef inline void store32(uint8_t *at, uint32_t value) noexcept nogil:
    value = little_endian(value)
    memcpy(at, &value, 4)
