# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# The order in which the records of all inputs leave.
#
# Each open input has a watermark: nothing earlier is still expected from it. A record
# leaves when no input that is waited for can deliver one that belongs before it, in order
# of (timestamp, input, arrival); when it is older than one that has left already; or when
# an input is over its limit. Two rankings (`_ranking.pxd`) give the next record and the
# least watermark. Records that were asked for once more take no part in what is late, nor
# do those that come before their input has caught up with the others: without them the
# output is in order but for the late ones. Nothing here needs the GIL.

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t

from ._descriptions cimport (
    Description,
    Descriptions,
    descriptions_find,
    descriptions_full,
)
from ._ranking cimport (
    Entry,
    Ranking,
    ranking_remove,
    ranking_set,
    ranking_sink_first,
    ranks_before,
)
from ._reader cimport Reader, reader_close
from ._records cimport (
    Chunk,
    Pool,
    Record,
    queue_count,
    queue_first,
    queue_pop,
    record_refilled,
)
from ._writer cimport NO_ROOM, Writer, interface_index, writer_put

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *at) noexcept nogil


cdef struct Input:
    Reader reader
    bint ended
    bint suspended
    int64_t refilled_ns  # what is earlier, and older than what is out, is of a refill
    int64_t watermark
    bint live
    size_t max_bytes
    uint64_t packets
    uint64_t octets
    uint64_t late
    uint64_t cut
    uint64_t refilled
    Descriptions descriptions


cdef struct Order:
    Input *inputs
    uint32_t count
    uint32_t open_count  # inputs that have not ended
    int64_t disorder_ns
    bint per_interface
    uint64_t max_packets
    uint64_t released
    int64_t last_ns  # the greatest timestamp that counts for what is late, or INT64_MIN
    Writer writer
    Ranking heads  # inputs that hold records, by their first one
    Ranking watermarks  # inputs that are waited for: open and not suspended
    Pool pool
    Chunk *dead  # chunks that no record needs; they want the GIL to be given back


cdef inline size_t held(const Input *input) noexcept nogil:
    return input.reader.held + input.reader.queue.memory


# The sum of two times, or the nearest to it that 64 bits hold.
cdef inline int64_t plus(int64_t one, int64_t other) noexcept nogil:
    if other > 0 and one > INT64_MAX - other:
        return INT64_MAX
    if other < 0 and one < INT64_MIN - other:
        return INT64_MIN
    return one + other


# Move the watermark to where records and heartbeats have brought it.
cdef inline void order_move(Order *order, uint32_t number) noexcept nogil:
    cdef const Reader *reader = &order.inputs[number].reader
    if reader.newest_ns >= 0:
        order_advance(
            order, number, plus(reader.newest_ns, reader.shift_ns) - order.disorder_ns
        )
    if reader.trusted and reader.statistics.count:
        order_advance(
            order, number, plus(reader.statistics.promised_ns, reader.shift_ns)
        )


cdef inline void order_advance(
    Order *order, uint32_t number, int64_t timestamp_ns
) noexcept nogil:
    cdef Input *input = &order.inputs[number]
    if not input.ended and timestamp_ns > input.watermark:
        input.watermark = timestamp_ns
        if not input.suspended:
            ranking_set(&order.watermarks, number, timestamp_ns)


# Put the input where its first record belongs.
cdef inline void order_rank(Order *order, uint32_t number) noexcept nogil:
    cdef const Record *first = queue_first(&order.inputs[number].reader.queue)
    if first == NULL:
        ranking_remove(&order.heads, number)
    else:
        ranking_set(&order.heads, number, first.timestamp_ns)


# Let go all that the input holds, but for its place in the rankings.
cdef inline void order_forget(Order *order, uint32_t number) noexcept nogil:
    cdef Input *input = &order.inputs[number]
    cdef const Record *first
    cdef Chunk *chunk
    reader_close(&input.reader)
    while True:
        first = queue_first(&input.reader.queue)
        if first == NULL:
            return
        chunk = first.chunk
        queue_pop(&input.reader.queue, &order.pool)
        order_drop(order, input, chunk)


# Let go one hold on a chunk; after the last it is dead.
cdef inline void order_drop(Order *order, Input *input, Chunk *chunk) noexcept nogil:
    chunk.live -= 1
    if chunk.live == 0:
        input.reader.held -= chunk.cost
        chunk.next = order.dead
        order.dead = chunk


cdef inline bint order_exhausted(const Order *order) noexcept nogil:
    return order.max_packets != 0 and order.released >= order.max_packets


# Whether nothing that still comes belongs before this first record.
cdef inline bint order_in_turn(const Order *order, const Entry *head) noexcept nogil:
    if order.watermarks.count == 0 or head.key < order.last_ns:
        return True
    # An input can still deliver a record at its watermark itself. That one belongs
    # before the head when its input has the lower number, so that is what decides.
    return not ranks_before(&order.watermarks.entries[0], head)


# Return an input that is over its limit and forces the merge on, or -1. Somebody is
# waited for, or the first record would be in turn.
cdef inline int64_t order_crowded(const Order *order) noexcept nogil:
    cdef uint32_t number
    cdef const Input *input
    for number in range(order.count):
        input = &order.inputs[number]
        if (
            held(input) > input.max_bytes
            and not input.ended
            and queue_count(&input.reader.queue)
            and (
                input.live
                or (
                    not input.suspended
                    and input.watermark == order.watermarks.entries[0].key
                )
            )
        ):
            return number
    return -1


cdef inline bint order_may_release(const Order *order) noexcept nogil:
    if order.writer.link_type < 0 or order.heads.count == 0 or order_exhausted(order):
        return False
    return order_in_turn(order, &order.heads.entries[0]) or order_crowded(order) >= 0


# Return which interface of the input its first record, which is there, is of.
cdef inline uint32_t order_index(const Order *order, Input *input) noexcept nogil:
    cdef uint32_t index
    if not order.per_interface:
        return 0
    index = interface_index(&order.writer, queue_first(&input.reader.queue))
    if descriptions_full(&input.descriptions) and (
        descriptions_find(&input.descriptions, index) == NULL
    ):
        return 0
    return index


# Find the number of that interface in the output; say whether it was described, or need
# not be.
cdef inline bint order_described(
    const Order *order, Input *input, uint32_t *number
) noexcept nogil:
    cdef const Description *description
    number[0] = 0
    if not order.writer.pcapng:
        return True
    description = descriptions_find(&input.descriptions, order_index(order, input))
    if description == NULL:
        return False
    number[0] = description.number
    return True


# Write records until the output is full or nothing may leave.
cdef inline void order_release(Order *order) noexcept nogil:
    cdef int64_t forcing = -1
    cdef uint32_t number
    cdef Input *input
    cdef const Record *record
    cdef uint32_t interface = 0
    cdef int64_t written
    cdef bint cut = False
    cdef Chunk *chunk
    while order.heads.count and not order_exhausted(order):
        if not order_in_turn(order, &order.heads.entries[0]):
            if forcing < 0 or not (
                held(&order.inputs[forcing]) > order.inputs[forcing].max_bytes
                and queue_count(&order.inputs[forcing].reader.queue)
            ):
                forcing = order_crowded(order)
                if forcing < 0:
                    return
        number = order.heads.entries[0].number
        input = &order.inputs[number]
        if not order_described(order, input, &interface):
            return
        record = queue_first(&input.reader.queue)
        written = writer_put(&order.writer, record, interface, &cut)
        if written == NO_ROOM:
            return
        input.packets += 1
        input.octets += <uint64_t>written
        input.cut += <uint64_t>cut
        order.released += 1
        if record_refilled(record):
            input.refilled += 1
        elif record.timestamp_ns < order.last_ns:
            if record.timestamp_ns < input.refilled_ns:
                input.refilled += 1
            else:
                input.late += 1
        else:
            order.last_ns = record.timestamp_ns
        chunk = record.chunk
        queue_pop(&input.reader.queue, &order.pool)
        order_drop(order, input, chunk)
        record = queue_first(&input.reader.queue)
        if record == NULL:
            ranking_remove(&order.heads, number)
        else:
            # By the time its turn comes, it is here: with many inputs each record
            # is where the processor does not expect it. A hint, never a fault.
            prefetch(record.data)
            prefetch(record.data + 64)
            prefetch(record + 1)
            ranking_sink_first(&order.heads, record.timestamp_ns)
