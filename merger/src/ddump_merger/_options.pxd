# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The options at the end of a pcapng block, one after the other.
#
# Each is a code, a length, and that many bytes, padded to four. The list may end with
# opt_endofopt or with the block.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ._octets cimport load16

cdef enum:
    OPT_END = 0


cdef enum Step:
    OPTION
    OPTIONS_END
    OPTIONS_UNSOUND  # one overruns the block, or an end has a length


cdef struct Options:
    const uint8_t *data
    uint32_t size  # a multiple of 4
    uint32_t at  # of the next one: a multiple of 4, <= size
    bint big_endian
    # The one at hand, whose `length` bytes at `value` are there:
    uint16_t code
    uint16_t length
    const uint8_t *value


cdef inline void options_open(
    Options *options, const uint8_t *data, uint32_t size, bint big_endian
) noexcept nogil:
    options.data = data
    options.size = size
    options.at = 0
    options.big_endian = big_endian


cdef inline Step options_next(Options *options) noexcept nogil:
    cdef uint32_t left = options.size - options.at
    if left < 4:
        return OPTIONS_END
    options.code = load16(options.data + options.at, options.big_endian)
    options.length = load16(options.data + options.at + 2, options.big_endian)
    if options.code == OPT_END:
        return OPTIONS_UNSOUND if options.length else OPTIONS_END
    if options.length > left - 4:
        return OPTIONS_UNSOUND
    options.value = options.data + options.at + 4
    # <= size still, as left is a multiple of 4.
    options.at += 4 + ((<uint32_t>options.length + 3) & ~<uint32_t>3)
    return OPTION
