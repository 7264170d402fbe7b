# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The interfaces of one input that were described in the output, and their numbers there.
#
# In order of index; the one found last is at hand, for packets of one come together.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef enum:
    MAX_DESCRIPTIONS = 4096  # what comes beyond is of index 0
    MIN_DESCRIPTIONS = 4


cdef struct Description:
    uint32_t index
    uint32_t number


cdef struct Descriptions:
    Description *entries
    uint32_t count
    uint32_t capacity
    uint32_t recent  # < count, or both are 0


cdef inline void descriptions_close(Descriptions *descriptions) noexcept nogil:
    free(descriptions.entries)


# Return the place of the first one that is not before `index`.
cdef inline uint32_t descriptions_place(
    const Descriptions *descriptions, uint32_t index
) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = descriptions.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if descriptions.entries[middle].index < index:
            low = middle + 1
        else:
            high = middle
    return low


# Return the one of `index`, valid until one is added; NULL when there is none.
cdef inline const Description *descriptions_find(
    Descriptions *descriptions, uint32_t index
) noexcept nogil:
    cdef uint32_t place = descriptions.recent
    if place < descriptions.count and descriptions.entries[place].index == index:
        return &descriptions.entries[place]
    place = descriptions_place(descriptions, index)
    if place == descriptions.count or descriptions.entries[place].index != index:
        return NULL
    descriptions.recent = place
    return &descriptions.entries[place]


# Whether no other index can be added but 0, whose place is kept free.
cdef inline bint descriptions_full(const Descriptions *descriptions) noexcept nogil:
    cdef uint32_t others = descriptions.count
    if others and descriptions.entries[0].index == 0:
        others -= 1
    return others >= MAX_DESCRIPTIONS - 1


# Give `index` its number, which may be another one than before; -1: no memory, and
# nothing has changed. The caller has seen that there is room.
cdef inline int descriptions_set(
    Descriptions *descriptions, uint32_t index, uint32_t number
) noexcept nogil:
    cdef Description *grown
    cdef uint32_t capacity = descriptions.capacity
    cdef uint32_t place = descriptions_place(descriptions, index)
    if place < descriptions.count and descriptions.entries[place].index == index:
        descriptions.entries[place].number = number
        return 0
    if descriptions.count == capacity:
        capacity = <uint32_t>(2 * capacity if capacity else MIN_DESCRIPTIONS)
        grown = <Description *>realloc(descriptions.entries, capacity * sizeof(Description))
        if grown == NULL:
            return -1
        descriptions.entries = grown
        descriptions.capacity = capacity
    memmove(
        &descriptions.entries[place + 1],
        &descriptions.entries[place],
        (descriptions.count - place) * sizeof(Description),
    )
    descriptions.entries[place].index = index
    descriptions.entries[place].number = number
    descriptions.count += 1
    descriptions.recent = place
    return 0
