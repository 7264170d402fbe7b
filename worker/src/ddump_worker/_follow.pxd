# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# What comes after a window: the records of one segment in order of arrival, from an
# offset on, as far as it is indexed. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint64_t

from ddump_worker._blocks cimport (
    MAX_BLOCK,
    RECORD_HEADER,
    Entry,
    Stored,
    read_at,
    read_record,
)
from ddump_worker._cooked cimport MOST_GROWTH, store_record
from ddump_worker._window cimport (
    FINE,
    NO_MEMORY,
    NO_RECORD,
    NOT_READ,
    OTHER_TIME,
    STEP,
    TOO_SHORT,
    Fault,
    Output,
    Window,
    matches,
    output_put,
    output_reserve,
)


# Pass on the records of the blocks, the first of which ends after `offset`, until the
# output has `target` bytes or enough was read; `offset` becomes that of the next one.
cdef inline Fault follow_blocks(
    Window *window,
    Output *output,
    int fd,
    const Entry *entries,
    size_t count,
    int64_t *offset,
    size_t target,
) noexcept nogil:
    cdef uint64_t enough = window.read_bytes + STEP
    cdef const Entry *entry
    cdef Fault fault
    cdef size_t i
    if window.data == NULL:
        window.data = <uint8_t *>PyMem_RawMalloc(MAX_BLOCK)
        if window.data == NULL:
            return NO_MEMORY
    for i in range(count):
        if output.finished or output.size >= target or window.read_bytes >= enough:
            break
        entry = &entries[i]
        if fd < 0:
            window.skipped += entry.packets
        elif (
            entry.greatest_ns >= window.since_ns
            and entry.least_ns < window.end.timestamp_ns
        ):
            fault = follow_block(window, output, fd, entry, offset, target)
            if fault:
                return fault
            continue
        offset[0] = entry.offset + entry.size
    return FINE


cdef inline Fault follow_block(
    Window *window,
    Output *output,
    int fd,
    const Entry *entry,
    int64_t *offset,
    size_t target,
) noexcept nogil:
    cdef size_t size = <size_t>(entry.offset + entry.size - offset[0])
    cdef size_t at = 0
    cdef uint8_t *data = window.data
    cdef int64_t count = read_at(fd, window.data, size, offset[0])
    cdef int64_t took
    cdef Stored record
    window.fault_place = <uint64_t>offset[0]
    if count < 0:
        window.error = <int>-count
        return NOT_READ
    window.read_bytes += <uint64_t>count
    if count < <int64_t>size:
        window.fault_place += <uint64_t>count
        return TOO_SHORT
    while at < size and output.size < target and not output.finished:
        window.fault_place = <uint64_t>offset[0]
        took = read_record(data + at, size - at, window.cooked, &record)
        if took <= 0:
            return NO_RECORD
        if not entry.least_ns <= record.timestamp_ns <= entry.greatest_ns:
            return OTHER_TIME
        if (
            window.since_ns <= record.timestamp_ns < window.end.timestamp_ns
            and matches(output, &record, data + at + RECORD_HEADER)
        ):
            if not output_reserve(output, <size_t>took + MOST_GROWTH):
                return NO_MEMORY
            output_put(output, store_record(
                &output.form, &record, data + at + RECORD_HEADER,
                output.data + output.size,
            ))
        at += <size_t>took
        offset[0] += took
    return FINE
