# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# What a slice of a window keeps: records as they leave, and the order in which they do.
#
# A record's key is its time and its place, so no two are equal. Records come nearly in
# order: they are put behind each other, and what is out of order is mended once, by
# merging the runs that are there. Nothing here needs the GIL.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    MAX_KEPT = 4 << 20  # bytes of memory, and what one more block needs


cdef struct Key:
    int64_t timestamp_ns
    uint64_t place


cdef struct Item:
    Key key
    uint32_t at
    uint32_t size


cdef struct Kept:
    Item *items
    size_t count
    size_t capacity
    uint8_t *data
    size_t used
    size_t room
    bint ordered


cdef inline bint before(const Key *left, const Key *right) noexcept nogil:
    if left.timestamp_ns != right.timestamp_ns:
        return left.timestamp_ns < right.timestamp_ns
    return left.place < right.place


cdef inline void kept_clear(Kept *kept) noexcept nogil:
    kept.count = 0
    kept.used = 0
    kept.ordered = True


cdef inline void kept_close(Kept *kept) noexcept nogil:
    PyMem_RawFree(kept.items)
    PyMem_RawFree(kept.data)
    kept.items = NULL
    kept.data = NULL
    kept.capacity = 0
    kept.room = 0
    kept_clear(kept)


cdef inline bint kept_full(const Kept *kept) noexcept nogil:
    return kept.used + kept.count * sizeof(Item) > MAX_KEPT


# Make room for so many more records and bytes.
cdef inline bint kept_reserve(Kept *kept, size_t items, size_t size) noexcept nogil:
    cdef void *grown
    if items > kept.capacity - kept.count:
        items = max(kept.count + items, kept.capacity + kept.capacity // 2)
        grown = PyMem_RawRealloc(kept.items, items * sizeof(Item))
        if grown == NULL:
            return False
        kept.items = <Item *>grown
        kept.capacity = items
    if size > kept.room - kept.used:
        size = max(kept.used + size, kept.room + kept.room // 2)
        grown = PyMem_RawRealloc(kept.data, size)
        if grown == NULL:
            return False
        kept.data = <uint8_t *>grown
        kept.room = size
    return True


# The record is at `data + used` already; kept_reserve made the room.
cdef inline void kept_put(Kept *kept, Key key, uint32_t size) noexcept nogil:
    cdef Item *item = &kept.items[kept.count]
    item.key = key
    item.at = <uint32_t>kept.used
    item.size = size
    if kept.count and before(&item.key, &kept.items[kept.count - 1].key):
        kept.ordered = False
    kept.used += size
    kept.count += 1


# Put the items in order; False without memory, then they are as they were.
cdef inline bint kept_sort(Kept *kept) noexcept nogil:
    cdef Item *source = kept.items
    cdef Item *target
    if kept.ordered:
        return True
    target = <Item *>PyMem_RawMalloc(kept.capacity * sizeof(Item))
    if target == NULL:
        return False
    while merge_runs(source, kept.count, target) > 1:
        source, target = target, source
    kept.items = target
    PyMem_RawFree(source)
    kept.ordered = True
    return True


cdef inline size_t run_end(const Item *items, size_t begin, size_t count) noexcept nogil:
    begin += 1
    while begin < count and before(&items[begin - 1].key, &items[begin].key):
        begin += 1
    return min(begin, count)


# Merge each two runs that are side by side; return how many runs there are then.
cdef inline size_t merge_runs(
    const Item *source, size_t count, Item *target
) noexcept nogil:
    cdef size_t runs = 0
    cdef size_t at = 0
    cdef size_t left = 0
    cdef size_t left_end
    cdef size_t right
    cdef size_t right_end
    while left < count:
        left_end = run_end(source, left, count)
        right = left_end
        right_end = run_end(source, right, count) if right < count else right
        while left < left_end and right < right_end:
            if before(&source[right].key, &source[left].key):
                target[at] = source[right]
                right += 1
            else:
                target[at] = source[left]
                left += 1
            at += 1
        memcpy(target + at, source + left, (left_end - left) * sizeof(Item))
        at += left_end - left
        memcpy(target + at, source + right, (right_end - right) * sizeof(Item))
        at += right_end - right
        left = right_end
        runs += 1
    return runs


# Give up the greater half of the bytes; `upper` becomes the key of the first that was
# given up. What is full holds two records at least, so one is left and one goes. False
# without memory.
cdef inline bint kept_halve(Kept *kept, Key *upper) noexcept nogil:
    cdef size_t left = 0
    cdef size_t used = 0
    cdef Item *item
    cdef uint8_t *data
    if not kept_sort(kept):
        return False
    data = <uint8_t *>PyMem_RawMalloc(kept.room)
    if data == NULL:
        return False
    while left < kept.count - 1 and (left == 0 or used < kept.used // 2):
        item = &kept.items[left]
        memcpy(data + used, kept.data + item.at, item.size)
        item.at = <uint32_t>used
        used += item.size
        left += 1
    upper[0] = kept.items[left].key
    PyMem_RawFree(kept.data)
    kept.data = data
    kept.count = left
    kept.used = used
    return True
