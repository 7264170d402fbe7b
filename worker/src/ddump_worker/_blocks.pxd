# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# Where the records of one segment are: its file, read by pread, and an entry for each
# block of about 64 KiB of whole records.
#
# What is read may be anything: a record is checked against what is there before
# anything behind its header is looked at. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawRealloc
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    FILE_HEADER = 24
    RECORD_HEADER = 16
    MAX_CAPLEN = 262_144
    MAX_RECORD = RECORD_HEADER + MAX_CAPLEN
    BLOCK = 65_536
    # The largest read of a block: it may be one record that is larger than BLOCK.
    MAX_BLOCK = MAX_RECORD
    PIECE = 1 << 20  # a scan's read; more than the largest record
    MAX_FRACTION = 999_999_999
    SECOND = 1_000_000_000
    AHEAD = 512  # bytes to have in the cache when they are looked at

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *data, size_t size, int64_t offset)

cdef extern from * nogil:
    void prefetch "__builtin_prefetch"(const void *)


# A record's header as it is in the file, and its time.
cdef struct Stored:
    int64_t timestamp_ns
    uint32_t seconds
    uint32_t fraction
    uint32_t caplen
    uint32_t length


# Packets and times of the records in [offset, offset + size).
cdef struct Entry:
    int64_t offset
    uint32_t size
    uint32_t packets
    int64_t least_ns
    int64_t greatest_ns


cdef struct Table:
    Entry *entries
    size_t count
    size_t capacity
    int64_t committed  # where what is indexed ends
    uint64_t packets
    int64_t least_ns  # INT64_MAX without records
    int64_t greatest_ns
    uint32_t cooked  # bytes of the link type's header
    bint corrupt


# Read the header at `data`, of which `left` bytes are there. Return the record's size,
# 0 where it is not all there, -1 where it is no record. A packet has a cooked header on
# the wire, of which the snaplen may have cut a part: so bytes of zero are no record.
cdef inline int64_t read_record(
    const uint8_t *data, size_t left, uint32_t cooked, Stored *record
) noexcept nogil:
    if left < RECORD_HEADER:
        return 0
    memcpy(&record.seconds, data, RECORD_HEADER)  # records are not aligned
    if (
        record.fraction > MAX_FRACTION
        or record.caplen - 1 >= <uint32_t>MAX_CAPLEN  # 0 wraps
        or record.caplen > record.length
        or record.length < cooked
        or record.length > 0x80000000u  # more than any packet; 4 may be added to it
    ):
        return -1
    if left - RECORD_HEADER < record.caplen:
        return 0
    record.timestamp_ns = <int64_t>record.seconds * SECOND + record.fraction
    return <int64_t>RECORD_HEADER + record.caplen


# Read `size` bytes, fewer only where the file ends before; return how many, or -errno.
cdef inline int64_t read_at(
    int fd, uint8_t *data, size_t size, int64_t offset
) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t count
    while done < size:
        count = pread(fd, data + done, size - done, offset + <int64_t>done)
        if count == 0:
            break
        if count > 0:
            done += <size_t>count
        elif errno != EINTR:
            return -errno
    return <int64_t>done


cdef inline void table_open(Table *table, uint32_t cooked) noexcept nogil:
    table.entries = NULL
    table.count = 0
    table.capacity = 0
    table.committed = FILE_HEADER
    table.packets = 0
    table.least_ns = INT64_MAX
    table.greatest_ns = INT64_MIN
    table.cooked = cooked
    table.corrupt = False


cdef inline bint table_reserve(Table *table, size_t more) noexcept nogil:
    cdef size_t capacity = table.count + more
    cdef Entry *grown
    if capacity <= table.capacity:
        return True
    if capacity < 2 * table.capacity:
        capacity = 2 * table.capacity
    grown = <Entry *>PyMem_RawRealloc(table.entries, capacity * sizeof(Entry))
    if grown == NULL:
        return False
    table.entries = grown
    table.capacity = capacity
    return True


# Index the whole records at the beginning of `data`, which follows what is indexed.
# Return how many bytes those are, -1 without memory.
cdef inline int64_t table_take(
    Table *table, const uint8_t *data, size_t size
) noexcept nogil:
    cdef Stored record
    cdef Entry block
    cdef size_t at = 0
    cdef int64_t took
    # Of two blocks side by side the records are more than BLOCK.
    if not table_reserve(table, 2 * size // BLOCK + 2):
        return -1
    if table.count:
        table.count -= 1
        block = table.entries[table.count]
    else:
        block.offset = table.committed
        block.size = 0
        block.packets = 0
        block.least_ns = INT64_MAX
        block.greatest_ns = INT64_MIN
    while True:
        took = read_record(data + at, size - at, table.cooked, &record)
        if took <= 0:
            break
        prefetch(data + at + AHEAD)  # a hint, never a fault
        if block.packets and block.size + took > BLOCK:
            table_put(table, &block)
            block.offset += block.size
            block.size = 0
            block.packets = 0
            block.least_ns = INT64_MAX
            block.greatest_ns = INT64_MIN
        block.size += <uint32_t>took
        block.packets += 1
        block.least_ns = min(block.least_ns, record.timestamp_ns)
        block.greatest_ns = max(block.greatest_ns, record.timestamp_ns)
        table.packets += 1
        at += <size_t>took
    if block.packets:
        table_put(table, &block)
    table.committed += <int64_t>at
    table.corrupt = took < 0
    return <int64_t>at


# There is room: table_take made it.
cdef inline void table_put(Table *table, const Entry *block) noexcept nogil:
    table.entries[table.count] = block[0]
    table.count += 1
    table.least_ns = min(table.least_ns, block.least_ns)
    table.greatest_ns = max(table.greatest_ns, block.greatest_ns)


# Index the file up to `size`, or the first thing that is no whole record. `piece` has
# room for PIECE bytes. Return 0, -errno of the read that failed, 1 without memory.
cdef inline int64_t table_scan(
    Table *table, int fd, int64_t size, uint8_t *piece
) noexcept nogil:
    cdef int64_t count
    cdef int64_t took
    while table.committed < size:
        count = read_at(
            fd, piece, <size_t>min(<int64_t>PIECE, size - table.committed), table.committed
        )
        if count < 0:
            return count
        took = table_take(table, piece, <size_t>count)
        if took < 0:
            return 1
        if took == 0 or table.corrupt:
            return 0
    return 0


# Return the number of the first block that ends after `offset`.
cdef inline size_t table_find(const Table *table, int64_t offset) noexcept nogil:
    cdef size_t low = 0
    cdef size_t high = table.count
    cdef size_t middle
    while low < high:
        middle = (low + high) // 2
        if table.entries[middle].offset + table.entries[middle].size > offset:
            high = middle
        else:
            low = middle + 1
    return low
