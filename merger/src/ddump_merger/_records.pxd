# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The records that one input holds, in order of (timestamp, arrival).
#
# A record is a descriptor that points into a chunk of received bytes; its data is not
# copied before it leaves. Records that come in order, nearly all, stand in a chain of
# blocks. One that is earlier than the newest of the chain goes to a binary heap beside
# it, so that the worst disorder costs O(log n) per record. The first record of the
# input is the earlier of the two heads. Nothing here needs the GIL.

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

cdef enum:
    BLOCK_RECORDS = 256
    MAX_SPARE_BLOCKS = 256
    MIN_STRAYS = 64


cdef struct Chunk:
    PyObject *owner  # the bytes object that holds the data; NULL: `data` is the chunk's own
    uint8_t *data
    size_t cost  # what its input is charged for it
    size_t live  # the records that point here, and one more while it is being read
    int64_t link_type  # of the capture that its records are from
    Chunk *next  # in the list of the dead


cdef struct Record:
    int64_t timestamp_ns
    uint64_t sequence  # 2 more for each that comes; odd when it was asked for once more
    const uint8_t *data
    Chunk *chunk
    uint32_t caplen
    uint32_t length


cdef struct Block:
    Block *next
    Record records[BLOCK_RECORDS]


# Blocks that are free, shared by all inputs of a merge.
cdef struct Pool:
    Block *spare
    size_t count


cdef struct Queue:
    Block *first
    Block *last
    size_t start  # of the first record in the first block
    size_t end  # behind the last record in the last block
    size_t in_order  # the number of records in the blocks
    Record *strays  # the heap
    size_t stray_count
    size_t stray_capacity
    uint64_t sequence
    size_t memory  # bytes of blocks and heap


cdef inline void pool_clear(Pool *pool) noexcept nogil:
    cdef Block *block
    while pool.spare != NULL:
        block = pool.spare
        pool.spare = block.next
        free(block)
    pool.count = 0


cdef inline Block *pool_take(Pool *pool) noexcept nogil:
    cdef Block *block = pool.spare
    if block == NULL:
        return <Block *>malloc(sizeof(Block))
    pool.spare = block.next
    pool.count -= 1
    return block


cdef inline void pool_give(Pool *pool, Block *block) noexcept nogil:
    if pool.count >= MAX_SPARE_BLOCKS:
        free(block)
        return
    block.next = pool.spare
    pool.spare = block
    pool.count += 1


cdef inline size_t queue_count(const Queue *queue) noexcept nogil:
    return queue.in_order + queue.stray_count


cdef inline bint earlier(const Record *one, const Record *other) noexcept nogil:
    if one.timestamp_ns != other.timestamp_ns:
        return one.timestamp_ns < other.timestamp_ns
    return one.sequence < other.sequence


# There is no stray without a chain: each is earlier than one in it, which leaves later.
cdef inline bint stray_is_first(const Queue *queue) noexcept nogil:
    return queue.stray_count != 0 and earlier(
        &queue.strays[0], &queue.first.records[queue.start]
    )


# Return the earliest record, valid until the queue changes; NULL when there is none.
cdef inline const Record *queue_first(const Queue *queue) noexcept nogil:
    if not queue.in_order:
        return NULL
    if stray_is_first(queue):
        return &queue.strays[0]
    return &queue.first.records[queue.start]


cdef inline bint record_refilled(const Record *record) noexcept nogil:
    return record.sequence & 1


# Add a record and number it; -1: no memory, and nothing has changed.
cdef inline int queue_push(
    Queue *queue, Pool *pool, Record *record, bint refilled
) noexcept nogil:
    cdef Block *block
    record.sequence = queue.sequence | <uint64_t>refilled
    # Where in_order is not 0, end is not 0 either: end is 0 in no block that is linked.
    if queue.in_order and (
        record.timestamp_ns < queue.last.records[queue.end - 1].timestamp_ns
    ):
        if strays_push(queue, record) < 0:
            return -1
        queue.sequence += 2
        return 0
    if queue.last == NULL or queue.end == BLOCK_RECORDS:
        block = pool_take(pool)
        if block == NULL:
            return -1
        block.next = NULL
        if queue.last == NULL:
            queue.first = block
            queue.start = 0
        else:
            queue.last.next = block
        queue.last = block
        queue.end = 0
        queue.memory += sizeof(Block)
    queue.last.records[queue.end] = record[0]
    queue.end += 1
    queue.in_order += 1
    queue.sequence += 2
    return 0


# Remove the record that queue_first() names; the queue is not empty.
cdef inline void queue_pop(Queue *queue, Pool *pool) noexcept nogil:
    cdef Block *block
    if stray_is_first(queue):
        strays_pop(queue)
        return
    queue.start += 1
    queue.in_order -= 1
    if queue.in_order == 0 or queue.start == BLOCK_RECORDS:
        block = queue.first
        queue.first = block.next
        queue.start = 0
        if queue.first == NULL:
            queue.last = NULL
            queue.end = 0
        pool_give(pool, block)
        queue.memory -= sizeof(Block)


cdef inline int strays_resize(Queue *queue, size_t capacity) noexcept nogil:
    cdef Record *strays = <Record *>realloc(queue.strays, capacity * sizeof(Record))
    if strays == NULL:
        return -1
    queue.memory += capacity * sizeof(Record)
    queue.memory -= queue.stray_capacity * sizeof(Record)
    queue.strays = strays
    queue.stray_capacity = capacity
    return 0


cdef inline int strays_push(Queue *queue, const Record *record) noexcept nogil:
    cdef size_t place = queue.stray_count
    cdef size_t parent
    if place == queue.stray_capacity and (
        strays_resize(queue, 2 * place if place else <size_t>MIN_STRAYS) < 0
    ):
        return -1
    queue.stray_count += 1
    while place:
        parent = (place - 1) // 2
        if not earlier(record, &queue.strays[parent]):
            break
        queue.strays[place] = queue.strays[parent]
        place = parent
    queue.strays[place] = record[0]
    return 0


cdef inline void strays_pop(Queue *queue) noexcept nogil:
    cdef size_t place = 0
    cdef size_t child
    cdef Record moved
    queue.stray_count -= 1
    if queue.stray_count == 0:
        queue.memory -= queue.stray_capacity * sizeof(Record)
        free(queue.strays)
        queue.strays = NULL
        queue.stray_capacity = 0
        return
    moved = queue.strays[queue.stray_count]
    child = 1
    while child < queue.stray_count:
        if child + 1 < queue.stray_count and earlier(
            &queue.strays[child + 1], &queue.strays[child]
        ):
            child += 1
        if not earlier(&queue.strays[child], &moved):
            break
        queue.strays[place] = queue.strays[child]
        place = child
        child = 2 * place + 1
    queue.strays[place] = moved
    if queue.stray_capacity > MIN_STRAYS and queue.stray_count <= queue.stray_capacity // 4:
        # When it cannot shrink, it stays as it is, and is charged as it is.
        strays_resize(queue, queue.stray_capacity // 2)
