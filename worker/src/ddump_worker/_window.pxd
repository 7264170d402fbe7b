# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# A window: blocks of several segments, whose records leave in order of time.
#
# It goes in slices. The blocks are sorted by the least key that their records can have.
# A slice takes the next of them, about SLICE bytes; those that are not taken begin
# later than its upper key. It reads what it took, keeps what matches and lies below the
# upper key, sorts that, gives it, and goes on with the blocks that reach over it, which
# are read again. So each record leaves once, in order, whatever the timestamps are.
#
# What is kept is bounded: past it the greater half is given up and the upper key is
# lowered to what was given up. Each step leaves the window whole: after a fault the
# same step can be made again. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from ddump_worker._blocks cimport (
    MAX_BLOCK,
    RECORD_HEADER,
    Entry,
    Stored,
    Table,
    read_at,
    read_record,
)
from ddump_worker._cooked cimport (
    LINUX_SLL,
    MOST_GROWTH,
    TAG_SIZE,
    TAGGED_SIZE,
    Form,
    is_tagged,
    store_record,
    stored_caplen,
)
from ddump_worker._kept cimport (
    Item,
    Kept,
    Key,
    before,
    kept_clear,
    kept_close,
    kept_full,
    kept_halve,
    kept_put,
    kept_reserve,
    kept_sort,
)
from ddump_worker.libpcap cimport packet_header, pcap_offline_filter, program

cdef enum:
    PLACE_BITS = 40  # of an offset; a part's number is above
    MAX_PARTS = 1 << 23
    # In place of a descriptor: the part's bytes are gone, its file is not open yet.
    GONE = -1
    UNOPENED = -2
    SLICE = 1 << 20
    # Bytes that are read in one step, so that pulls take turns and a client that goes is
    # noticed.
    STEP = 16 << 20


cdef enum Fault:
    FINE
    NO_MEMORY
    NOT_OPEN  # the part's file, which is needed now; no fault in it
    NOT_READ  # error is errno
    TOO_SHORT
    NO_RECORD
    OTHER_TIME
    OTHER_COUNT


cdef enum Phase:
    BETWEEN
    READING
    GIVING


# One that was gone has no bytes, and its greatest timestamp is INT64_MIN.
cdef struct Block:
    int64_t least_ns
    int64_t greatest_ns
    uint64_t place
    uint32_t size
    uint32_t packets
    bint partial  # the segment had grown when it was taken: packets is an upper bound


# What leaves, and what has left.
cdef struct Output:
    Form form
    program filter
    uint8_t *data
    size_t size
    size_t room
    uint64_t packets
    uint64_t octets
    uint64_t packet_limit
    uint64_t octet_limit
    bint finished


cdef struct Window:
    uint32_t cooked
    int64_t since_ns
    Block *blocks  # after window_begin in order of (least_ns, place)
    size_t count
    size_t capacity
    size_t opened  # blocks that a slice has taken
    uint32_t *active  # those of them that may have records still
    size_t active_count
    size_t cursor  # the next one to read
    uint32_t *waiting  # of each part, how many blocks may have records still
    size_t parts
    Phase phase
    Key lower  # what is before it has left, or does not belong to the window
    Key upper  # of the slice
    Key end  # of the window
    Kept kept
    size_t given  # of what is kept
    uint8_t *data  # one block
    int64_t position_ns
    uint64_t read_bytes
    uint64_t skipped
    bint begun
    bint exhausted
    int error
    uint64_t fault_place


cdef inline uint64_t place_of(uint64_t part, int64_t offset) noexcept nogil:
    return (part << PLACE_BITS) | <uint64_t>offset


# Whether the filter takes the record, which is as it was when this returns.
cdef inline bint matches(
    const Output *output, const Stored *record, uint8_t *data
) noexcept nogil:
    cdef packet_header header
    if output.filter.bf_len == 0:
        return True
    header.caplen = record.caplen
    header.len = record.length
    if output.form.link_type == LINUX_SLL and is_tagged(data, record.caplen):
        return matches_untagged(&output.filter, &header, data)
    return pcap_offline_filter(&output.filter, &header, data) != 0


# The kernel takes a packet's first VLAN tag off, and filters of live captures do not see
# it. libpcap puts it back into SLL, in front of the protocol, and so it is stored. Here
# the header steps over it while the filter runs, which sees what it would have seen live.
cdef inline bint matches_untagged(
    const program *filter, packet_header *header, uint8_t *data
) noexcept nogil:
    cdef uint8_t[TAGGED_SIZE] saved
    cdef uint32_t size = min(header.caplen, <uint32_t>TAGGED_SIZE)
    cdef bint taken
    memcpy(saved, data, size)
    memcpy(data + TAG_SIZE, saved, size - TAG_SIZE)
    header.caplen -= TAG_SIZE
    header.len -= TAG_SIZE
    taken = pcap_offline_filter(filter, header, data + TAG_SIZE) != 0
    memcpy(data, saved, size)
    return taken


# Make room for one more record of `size` bytes.
cdef inline bint output_reserve(Output *output, size_t size) noexcept nogil:
    cdef uint8_t *grown
    if size > output.room - output.size:
        size = max(output.size + size, output.room + output.room // 2)
        grown = <uint8_t *>PyMem_RawRealloc(output.data, size)
        if grown == NULL:
            return False
        output.data = grown
        output.room = size
    return True


# The record is at `data + size` already.
cdef inline void output_put(Output *output, uint32_t size) noexcept nogil:
    output.octets += stored_caplen(&output.form, output.data + output.size)
    output.size += size
    output.packets += 1
    output.finished = (
        output.packets >= output.packet_limit or output.octets >= output.octet_limit
    )


cdef inline void window_close(Window *window) noexcept nogil:
    PyMem_RawFree(window.blocks)
    PyMem_RawFree(window.active)
    PyMem_RawFree(window.waiting)
    PyMem_RawFree(window.data)
    kept_close(&window.kept)


# Take the blocks of the next part up to `committed`; False without memory.
cdef inline bint window_add(
    Window *window, const Table *table, int64_t committed
) noexcept nogil:
    cdef size_t i
    cdef const Entry *entry
    cdef Block *block
    cdef size_t capacity = window.count + table.count
    cdef void *grown = PyMem_RawRealloc(
        window.waiting, (window.parts + 1) * sizeof(uint32_t)
    )
    if grown == NULL:
        return False
    window.waiting = <uint32_t *>grown
    window.waiting[window.parts] = 0
    if capacity > window.capacity:
        capacity = max(capacity, 2 * window.capacity)
        grown = PyMem_RawRealloc(window.blocks, capacity * sizeof(Block))
        if grown == NULL:
            return False
        window.blocks = <Block *>grown
        window.capacity = capacity
    for i in range(table.count):
        entry = &table.entries[i]
        if entry.offset >= committed:
            break
        if (
            entry.greatest_ns < window.lower.timestamp_ns
            or entry.least_ns >= window.end.timestamp_ns
        ):
            continue
        block = &window.blocks[window.count]
        block.least_ns = entry.least_ns
        block.greatest_ns = entry.greatest_ns
        block.place = place_of(window.parts, entry.offset)
        block.size = <uint32_t>min(<int64_t>entry.size, committed - entry.offset)
        block.packets = entry.packets
        block.partial = block.size < entry.size
        window.count += 1
        window.waiting[window.parts] += 1
    window.parts += 1
    return True


cdef inline Key first_key(const Block *block) noexcept nogil:
    cdef Key key
    key.timestamp_ns = block.least_ns
    key.place = block.place
    return key


# Whether the block may have a record with this key or a greater one.
cdef inline bint reaches(const Block *block, const Key *key) noexcept nogil:
    if block.greatest_ns != key.timestamp_ns:
        return block.greatest_ns > key.timestamp_ns
    return block.place + block.size > key.place


cdef inline int compare_blocks(const void *left, const void *right) noexcept nogil:
    cdef Key left_key = first_key(<const Block *>left)
    cdef Key right_key = first_key(<const Block *>right)
    return -1 if before(&left_key, &right_key) else 1  # places are never equal


cdef inline Fault window_begin(Window *window) noexcept nogil:
    if window.active == NULL:
        window.active = <uint32_t *>PyMem_RawMalloc(window.count * sizeof(uint32_t) + 1)
    if window.data == NULL:
        window.data = <uint8_t *>PyMem_RawMalloc(MAX_BLOCK)
    if window.active == NULL or window.data == NULL:
        return NO_MEMORY
    if window.count:
        qsort(window.blocks, window.count, sizeof(Block), compare_blocks)
    window.begun = True
    window.upper = window.lower
    end_slice(window)
    return FINE


cdef inline void begin_slice(Window *window) noexcept nogil:
    cdef size_t carried = 0
    cdef size_t taken = 0
    cdef size_t i
    for i in range(window.active_count):
        carried += window.blocks[window.active[i]].size
    while window.opened < window.count:
        window.upper = first_key(&window.blocks[window.opened])
        # Much more than what is read again, or that would be most of the work.
        if (
            taken
            and carried + taken >= SLICE
            and taken >= 3 * carried
            and before(&window.lower, &window.upper)
        ):
            break
        taken += window.blocks[window.opened].size
        window.active[window.active_count] = <uint32_t>window.opened
        window.active_count += 1
        window.opened += 1
    if window.opened == window.count:
        window.upper = window.end
    window.cursor = 0
    window.phase = READING


cdef inline void end_slice(Window *window) noexcept nogil:
    cdef size_t left = 0
    cdef size_t i
    cdef const Block *block
    window.lower = window.upper
    for i in range(window.active_count):
        block = &window.blocks[window.active[i]]
        if reaches(block, &window.lower):
            window.active[left] = window.active[i]
            left += 1
        else:
            window.waiting[block.place >> PLACE_BITS] -= 1
    window.active_count = left
    window.exhausted = left == 0 and window.opened == window.count
    if not window.exhausted and not before(&window.lower, &window.end):
        window.exhausted = True
        for i in range(window.parts):
            window.waiting[i] = 0
    window.position_ns = window.lower.timestamp_ns
    if window.exhausted:
        window.position_ns = window.end.timestamp_ns
    kept_clear(&window.kept)
    window.given = 0
    window.phase = BETWEEN


# Read a block and keep what of it belongs to the slice.
cdef inline Fault read_block(
    Window *window, const Output *output, int fd, const Block *block
) noexcept nogil:
    cdef Kept *kept = &window.kept
    cdef size_t count = kept.count
    cdef size_t used = kept.used
    cdef bint ordered = kept.ordered
    cdef size_t most = block.size // (RECORD_HEADER + 1)  # a record has a byte
    cdef Fault fault
    if not kept_reserve(kept, most, block.size + most * MOST_GROWTH):
        return NO_MEMORY
    fault = read_records(window, output, fd, block)
    if fault:
        kept.count = count
        kept.used = used
        kept.ordered = ordered
    return fault


cdef inline Fault read_records(
    Window *window, const Output *output, int fd, const Block *block
) noexcept nogil:
    cdef Kept *kept = &window.kept
    cdef int64_t offset = <int64_t>(block.place & ((<uint64_t>1 << PLACE_BITS) - 1))
    cdef int64_t count = read_at(fd, window.data, block.size, offset)
    cdef size_t at = 0
    cdef uint32_t packets = 0
    cdef int64_t took
    cdef Stored record
    cdef Key key
    window.fault_place = block.place
    if count < 0:
        window.error = <int>-count
        return NOT_READ
    window.read_bytes += <uint64_t>count
    if count < block.size:
        window.fault_place += <uint64_t>count
        return TOO_SHORT
    while at < block.size:
        key.place = block.place + at
        took = read_record(window.data + at, block.size - at, window.cooked, &record)
        if took <= 0:
            window.fault_place = key.place
            return NO_RECORD
        key.timestamp_ns = record.timestamp_ns
        if not block.least_ns <= key.timestamp_ns <= block.greatest_ns:
            window.fault_place = key.place
            return OTHER_TIME
        if (
            not before(&key, &window.lower)
            and before(&key, &window.upper)
            and matches(output, &record, window.data + at + RECORD_HEADER)
        ):
            kept_put(kept, key, store_record(
                &output.form, &record, window.data + at + RECORD_HEADER,
                kept.data + kept.used,
            ))
        at += <size_t>took
        packets += 1
    if packets > block.packets or (packets < block.packets and not block.partial):
        return OTHER_COUNT
    return FINE


# Give what is kept until the output is full; False without memory.
cdef inline bint give(Window *window, Output *output, size_t target) noexcept nogil:
    cdef const Item *item
    while window.given < window.kept.count and output.size < target:
        item = &window.kept.items[window.given]
        if not output_reserve(output, item.size):
            return False
        memcpy(output.data + output.size, window.kept.data + item.at, item.size)
        output_put(output, item.size)
        window.given += 1
        if output.finished:
            return True
    if window.given == window.kept.count:
        end_slice(window)
    else:
        window.position_ns = window.kept.items[window.given].key.timestamp_ns
    return True


# Read one more of the slice's blocks, or see that all were.
cdef inline Fault read_next(
    Window *window, const Output *output, const int *descriptors
) noexcept nogil:
    cdef Fault fault
    cdef Block *block
    cdef Key first
    cdef int fd
    if window.cursor == window.active_count:
        if not kept_sort(&window.kept):
            return NO_MEMORY
        window.phase = GIVING
        return FINE
    block = &window.blocks[window.active[window.cursor]]
    fd = descriptors[block.place >> PLACE_BITS]
    first = first_key(block)
    if fd == GONE:
        window.skipped += block.packets
        block.size = 0
        block.greatest_ns = INT64_MIN
    elif before(&first, &window.upper):
        if fd == UNOPENED:
            window.fault_place = block.place
            return NOT_OPEN
        if kept_full(&window.kept):  # the block is looked at again with the new key
            return FINE if kept_halve(&window.kept, &window.upper) else NO_MEMORY
        fault = read_block(window, output, fd, block)
        if fault:
            return fault
    window.cursor += 1
    return FINE


# Go on until the output has `target` bytes, all has left, or enough was read.
cdef inline Fault window_advance(
    Window *window, Output *output, const int *descriptors, size_t target
) noexcept nogil:
    cdef uint64_t enough = window.read_bytes + STEP
    cdef Fault fault
    if not window.begun:
        fault = window_begin(window)
        if fault:
            return fault
    while not window.exhausted and not output.finished and output.size < target:
        if window.phase == BETWEEN:
            begin_slice(window)
        elif window.phase == GIVING:
            if not give(window, output, target):
                return NO_MEMORY
        elif window.read_bytes >= enough:
            break
        else:
            fault = read_next(window, output, descriptors)
            if fault:
                return fault
    return FINE
