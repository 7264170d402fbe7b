# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# What the statistics blocks of a capture say: its heartbeats, and what was counted.
#
# Of the last block, but for the greatest time of any, before which nothing follows.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._octets cimport load32, load64
from ._options cimport OPTION, OPTIONS_END, Options, Step, options_next, options_open
from ._timestamps cimport Units, to_ns

cdef enum:
    OPT_COMMENT = 1
    ISB_STARTTIME = 2
    ISB_ENDTIME = 3
    ISB_IFRECV = 4
    ISB_IFDROP = 5
    ISB_OSDROP = 7
    ISB_USRDELIV = 8
    ISB_CODES = 9
    MAX_COMMENT = 256


cdef struct Statistics:
    int64_t promised_ns  # -1 before the first
    uint64_t count  # blocks that came
    uint64_t read  # packets before the last one
    uint32_t given  # a bit for each option that it has, 1 << its code
    uint64_t values[ISB_CODES]  # by code; times are nanoseconds
    uint32_t comment_size
    uint8_t comment[MAX_COMMENT]


# A time in a block: the upper and the lower half of the units.
cdef inline int64_t load_time(
    const uint8_t *at, const Units *units, bint big_endian
) noexcept nogil:
    cdef uint64_t count = <uint64_t>load32(at, big_endian) << 32 | load32(at + 4, big_endian)
    return to_ns(units, count)


# Read the `size` bytes of options at `data`; say whether they are sound.
cdef inline bint statistics_read(
    Statistics *statistics,
    const Units *units,
    const uint8_t *data,
    uint32_t size,
    bint big_endian,
) noexcept nogil:
    cdef Options options
    cdef Step step
    cdef int64_t time_ns
    statistics.given = 0
    statistics.comment_size = 0
    options_open(&options, data, size, big_endian)
    while True:
        step = options_next(&options)
        if step != OPTION:
            return step == OPTIONS_END
        if options.code == OPT_COMMENT:
            statistics.comment_size = min(options.length, <uint32_t>MAX_COMMENT)
            memcpy(statistics.comment, options.value, statistics.comment_size)
        elif (
            ISB_STARTTIME <= options.code <= ISB_IFDROP
            or options.code == ISB_OSDROP
            or options.code == ISB_USRDELIV
        ):
            if options.length != 8:
                return False
            if options.code <= ISB_ENDTIME:
                time_ns = load_time(options.value, units, big_endian)
                if time_ns < 0:
                    return False
                statistics.values[options.code] = <uint64_t>time_ns
            else:
                statistics.values[options.code] = load64(options.value, big_endian)
            statistics.given |= <uint32_t>1 << options.code
