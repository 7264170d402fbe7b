# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
#
# Packets by a hash of 64 bits: how often each has come.
#
# Streams that are asked for once more bring again what earlier ones had brought. So of
# several streams each packet counts as often as it came in the one that had it most.
#
# The hash is SipHash-1-3 with a random key, so that nobody can send packets that meet in
# one place: adding and taking are O(1) whatever comes. A table of open addressing, at
# most three quarters full: 22 to 43 bytes for each packet that differs, which had 16 at
# least. Nothing here needs the GIL.

from libc.stdint cimport INT64_MIN, UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ._octets cimport load64

cdef enum:
    MIN_SLOTS = 256


cdef struct Slot:
    uint64_t hash  # 0: nothing was ever here
    uint32_t times  # that it has come and was not taken
    uint32_t now  # that it has come in the stream at hand


cdef struct Fingerprints:
    uint64_t key[2]
    int64_t since_ns  # earlier ones are not kept
    int64_t newest_ns  # of those that are, INT64_MIN before the first
    Slot *slots
    size_t capacity  # 0, or a power of two
    size_t used  # slots, those taken included
    size_t left  # packets
    uint64_t octets  # of data in those that were added


cdef inline void fingerprints_open(
    Fingerprints *prints, const uint8_t *key, int64_t since_ns
) noexcept nogil:
    # The rest of it is zero already.
    prints.key[0] = load64(key, False)
    prints.key[1] = load64(key + 8, False)
    prints.since_ns = since_ns
    prints.newest_ns = INT64_MIN


cdef inline void fingerprints_close(Fingerprints *prints) noexcept nogil:
    free(prints.slots)
    prints.slots = NULL
    prints.capacity = 0
    prints.used = 0
    prints.left = 0


cdef inline uint64_t rotated(uint64_t word, uint32_t bits) noexcept nogil:
    return word << bits | word >> (64 - bits)


cdef inline void sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotated(v[1], 13) ^ v[0]
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] = rotated(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotated(v[1], 17) ^ v[2]
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] = rotated(v[2], 32)


cdef inline void sip_take(uint64_t *v, uint64_t word) noexcept nogil:
    v[3] ^= word
    sip_round(v)
    v[0] ^= word


# The hash of a packet, never 0; its `caplen` bytes are at `data`.
cdef inline uint64_t fingerprint(
    const Fingerprints *prints,
    int64_t timestamp_ns,
    const uint8_t *data,
    uint32_t caplen,
    uint32_t length,
) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t last = <uint64_t>caplen << 56
    cdef uint32_t left = caplen
    cdef uint32_t place
    v[0] = prints.key[0] ^ <uint64_t>0x736F6D6570736575
    v[1] = prints.key[1] ^ <uint64_t>0x646F72616E646F6D
    v[2] = prints.key[0] ^ <uint64_t>0x6C7967656E657261
    v[3] = prints.key[1] ^ <uint64_t>0x7465646279746573
    sip_take(v, <uint64_t>timestamp_ns)
    sip_take(v, <uint64_t>length << 32 | caplen)
    while left >= 8:
        sip_take(v, load64(data, False))
        data += 8
        left -= 8
    for place in range(left):
        last |= <uint64_t>data[place] << (8 * place)
    sip_take(v, last)
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    last = v[0] ^ v[1] ^ v[2] ^ v[3]
    return last if last else 1


# Return the slot of this hash, or the one that is free for it; there is one.
cdef inline Slot *slot_of(Slot *slots, size_t capacity, uint64_t hash) noexcept nogil:
    cdef size_t place = <size_t>hash & (capacity - 1)
    while slots[place].hash and slots[place].hash != hash:
        place = (place + 1) & (capacity - 1)
    return &slots[place]


cdef inline int fingerprints_grow(Fingerprints *prints) noexcept nogil:
    cdef size_t capacity = 2 * prints.capacity if prints.capacity else <size_t>MIN_SLOTS
    cdef Slot *slots = <Slot *>calloc(capacity, sizeof(Slot))
    cdef size_t place
    if slots == NULL:
        return -1
    for place in range(prints.capacity):
        if prints.slots[place].hash:
            slot_of(slots, capacity, prints.slots[place].hash)[0] = prints.slots[place]
    free(prints.slots)
    prints.slots = slots
    prints.capacity = capacity
    return 0


# Begin another stream, in which those of the ones before may come again.
cdef inline void fingerprints_begin(Fingerprints *prints) noexcept nogil:
    cdef size_t place
    for place in range(prints.capacity):
        prints.slots[place].now = 0


# Keep a packet; -1: no memory, and nothing has changed.
cdef inline int fingerprints_add(
    Fingerprints *prints,
    int64_t timestamp_ns,
    const uint8_t *data,
    uint32_t caplen,
    uint32_t length,
) noexcept nogil:
    cdef Slot *slot
    if timestamp_ns < prints.since_ns:
        return 0
    if prints.used >= prints.capacity // 4 * 3 and fingerprints_grow(prints) < 0:
        return -1
    cdef uint64_t hash = fingerprint(prints, timestamp_ns, data, caplen, length)
    slot = slot_of(prints.slots, prints.capacity, hash)
    if slot.now == UINT32_MAX:
        return -1
    prints.used += slot.hash == 0
    slot.hash = hash
    slot.now += 1
    if slot.now <= slot.times:
        return 0
    slot.times = slot.now
    prints.left += 1
    prints.octets += caplen
    if timestamp_ns > prints.newest_ns:
        prints.newest_ns = timestamp_ns
    return 0


# Take a packet away, and say whether it was there.
cdef inline bint fingerprints_take(
    Fingerprints *prints,
    int64_t timestamp_ns,
    const uint8_t *data,
    uint32_t caplen,
    uint32_t length,
) noexcept nogil:
    cdef Slot *slot
    if timestamp_ns > prints.newest_ns or timestamp_ns < prints.since_ns or not prints.left:
        return False
    slot = slot_of(
        prints.slots,
        prints.capacity,
        fingerprint(prints, timestamp_ns, data, caplen, length),
    )
    if slot.times == 0:
        return False
    slot.times -= 1
    prints.left -= 1
    return True
