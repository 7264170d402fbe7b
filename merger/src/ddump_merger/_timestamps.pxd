# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The timestamps of one pcapng interface: units of a resolution, from an offset on.
#
# if_tsresol is an exponent of 10 or, with its high bit set, of 2; if_tsoffset is in
# seconds (draft-ietf-opsawg-pcapng). Nanoseconds since the epoch have 63 bits here.

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    NS_PER_SECOND = 1_000_000_000
    MICROSECONDS = 6  # the resolution of an interface that names none


cdef struct Units:
    int64_t offset_s
    uint64_t multiplier  # nanoseconds in a unit, or 0: take the long way
    uint64_t most  # units that the multiplier can be used for
    uint8_t resolution  # if_tsresol


cdef inline void units_open(Units *units, uint8_t resolution, int64_t offset_s) noexcept nogil:
    units.offset_s = offset_s
    units.resolution = resolution
    units.multiplier = 0
    units.most = 0
    if offset_s == 0 and resolution <= 9:
        units.multiplier = power_of_10(9 - resolution)
        units.most = <uint64_t>INT64_MAX // units.multiplier


# Return the nanoseconds that `count` units are, fractions of one cut off; -1 when they
# are before the epoch or have more than 63 bits.
cdef inline int64_t to_ns(const Units *units, uint64_t count) noexcept nogil:
    if not units.multiplier:
        return to_ns_by_seconds(units, count)
    if count > units.most:
        return -1
    return <int64_t>(count * units.multiplier)


# The long way.
cdef inline int64_t to_ns_by_seconds(const Units *units, uint64_t count) noexcept nogil:
    cdef uint64_t seconds = 0
    cdef uint64_t nanoseconds = 0
    cdef int64_t signed_seconds
    if units.resolution & 0x80:
        split_binary(count, units.resolution & 0x7F, &seconds, &nanoseconds)
    else:
        split_decimal(count, units.resolution, &seconds, &nanoseconds)
    if seconds > <uint64_t>INT64_MAX:
        return -1
    signed_seconds = <int64_t>seconds
    if units.offset_s > INT64_MAX - signed_seconds:
        return -1
    signed_seconds += units.offset_s
    if signed_seconds < 0 or (
        signed_seconds > (INT64_MAX - <int64_t>nanoseconds) // NS_PER_SECOND
    ):
        return -1
    return signed_seconds * NS_PER_SECOND + <int64_t>nanoseconds


cdef inline uint64_t power_of_10(uint32_t exponent) noexcept nogil:
    cdef uint64_t power = 1
    while exponent:  # 19 at most, 10**19 < 2**64
        power *= 10
        exponent -= 1
    return power


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
    low = (units & 0xFFFFFFFFu) * <uint64_t>NS_PER_SECOND
    high = (units >> 32) * <uint64_t>NS_PER_SECOND + (low >> 32)
    low &= 0xFFFFFFFFu
    if exponent == 0:
        nanoseconds[0] = 0
    elif exponent < 32:  # the result is less than 10**9, so nothing is shifted out
        nanoseconds[0] = high << (32 - exponent) | low >> exponent
    elif exponent < 96:
        nanoseconds[0] = high >> (exponent - 32)
    else:
        nanoseconds[0] = 0
