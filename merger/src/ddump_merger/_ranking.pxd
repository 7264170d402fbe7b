# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# Inputs in order of (key, number): a binary heap that also knows where each input stands.
#
# The merge keeps two: the inputs that hold records by the timestamp of their first one,
# and the open inputs by their watermark. Every change is O(log n), the least is at hand.

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

cdef enum:
    ABSENT = 0x7FFFFFFF  # more than any place


cdef struct Entry:
    int64_t key
    uint32_t number


cdef struct Ranking:
    Entry *entries  # room for every input, so that no change can fail
    uint32_t *places  # of every input in entries, or ABSENT
    uint32_t count


cdef inline int ranking_open(Ranking *ranking, uint32_t inputs) noexcept nogil:
    cdef uint32_t number
    ranking.entries = <Entry *>calloc(inputs, sizeof(Entry))
    ranking.places = <uint32_t *>calloc(inputs, sizeof(uint32_t))
    if ranking.entries == NULL or ranking.places == NULL:
        return -1
    for number in range(inputs):
        ranking.places[number] = ABSENT
    return 0


cdef inline void ranking_close(Ranking *ranking) noexcept nogil:
    free(ranking.entries)
    free(ranking.places)


# Without branches: which of two it is cannot be predicted.
cdef inline bint ranks_before(const Entry *one, const Entry *other) noexcept nogil:
    return (one.key < other.key) | ((one.key == other.key) & (one.number < other.number))


cdef inline void ranking_put(Ranking *ranking, uint32_t place, Entry entry) noexcept nogil:
    ranking.entries[place] = entry
    ranking.places[entry.number] = place


# Put `entry` into the free place `place` < count, or below it where it belongs.
cdef inline void ranking_sink(Ranking *ranking, uint32_t place, Entry entry) noexcept nogil:
    cdef uint32_t near = 2 * place + 1
    while near < ranking.count:
        if near + 1 < ranking.count:
            near += <uint32_t>ranks_before(&ranking.entries[near + 1], &ranking.entries[near])
        if not ranks_before(&ranking.entries[near], &entry):
            break
        ranking_put(ranking, place, ranking.entries[near])
        place = near
        near = 2 * place + 1
    ranking_put(ranking, place, entry)


# The same, or above it.
cdef inline void ranking_settle(Ranking *ranking, uint32_t place, Entry entry) noexcept nogil:
    cdef uint32_t near
    while place:
        near = (place - 1) // 2
        if not ranks_before(&entry, &ranking.entries[near]):
            break
        ranking_put(ranking, place, ranking.entries[near])
        place = near
    ranking_sink(ranking, place, entry)


# Give the first input another key, not less than the one it has; there is one.
cdef inline void ranking_sink_first(Ranking *ranking, int64_t key) noexcept nogil:
    cdef Entry entry = ranking.entries[0]
    entry.key = key
    ranking_sink(ranking, 0, entry)


# Give input `number` the key, whether it is in already or not.
cdef inline void ranking_set(Ranking *ranking, uint32_t number, int64_t key) noexcept nogil:
    cdef Entry entry
    cdef uint32_t place = ranking.places[number]
    entry.key = key
    entry.number = number
    if place == ABSENT:
        place = ranking.count
        ranking.count += 1
    ranking_settle(ranking, place, entry)


cdef inline void ranking_remove(Ranking *ranking, uint32_t number) noexcept nogil:
    cdef uint32_t place = ranking.places[number]
    if place == ABSENT:
        return
    ranking.places[number] = ABSENT
    ranking.count -= 1
    if place != ranking.count:
        ranking_settle(ranking, place, ranking.entries[ranking.count])
