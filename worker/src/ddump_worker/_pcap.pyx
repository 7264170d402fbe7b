# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=True, autotestdict=False
"""The worker's kernel: live capture and filter compilation by libpcap.

A ``Capture`` reads the kernel's ring without the GIL. A C callback appends ready
records (of pcap, or enhanced packet blocks of pcapng) to a buffer that the object
owns, until the ring is empty, the batch is full or a limit is reached; then one copy of the batch is
made into a fresh ``bytes`` object, which the caller may keep and nobody writes again.

Why ``set_program`` does not use ``pcap_setfilter``: that function also filters the
first blocks of the ring in user space, with the program as it was compiled. Loads of
the kernel's own data (``ifindex``) fail there, so the first packets would be lost in
silence; and a program that the kernel refuses would be run in user space for good,
in silence too. Here the program that the kernel shall run is attached directly, what
was queued before is told apart by count and time, and a refusal is an error.
"""

import warnings

from ddump_common.errors import CaptureError, FilterError, PrivilegeError

cimport cython

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror

from pylibpcap.pcap cimport (
    bpf_u_int32,
    pcap_create,
    pcap_datalink,
    pcap_geterr,
    pcap_lib_version,
    pcap_open_dead,
    pcap_set_datalink,
    pcap_set_snaplen,
    pcap_set_timeout,
    pcap_setnonblock,
    pcap_stat,
    pcap_stats,
    pcap_t,
    u_char,
)

from ddump_worker.libpcap cimport (
    CLOCK_REALTIME,
    MEMBARRIER_CMD_GLOBAL,
    PCAP_ERRBUF_SIZE,
    PCAP_ERROR_BREAK,
    PCAP_ERROR_PERM_DENIED,
    PCAP_ERROR_PROMISC_PERM_DENIED,
    PCAP_NETMASK_UNKNOWN,
    PCAP_TSTAMP_PRECISION_NANO,
    SO_ATTACH_FILTER,
    SO_GET_FILTER,
    SOL_SOCKET,
    SYS_membarrier,
    clock_gettime,
    getsockopt,
    instruction,
    packet_header,
    packet_handler,
    pcap_activate,
    pcap_breakloop,
    pcap_close,
    pcap_compile,
    pcap_dispatch,
    pcap_freecode,
    pcap_get_selectable_fd,
    pcap_set_buffer_size,
    pcap_set_tstamp_precision,
    pcap_statustostr,
    program,
    setsockopt,
    sock_filter,
    sock_fprog,
    socklen_t,
    syscall,
    timespec,
    usleep,
)

from ddump_common.errors import CaptureError, FilterError, PrivilegeError

cdef enum:
    RECORD_HEADER = 16
    BLOCK_HEADER = 28  # of an enhanced packet block, before its data
    # The most that a record takes beside its data: of a block the header, the length
    # again, and what pads the data.
    MOST_AROUND = BLOCK_HEADER + 4 + 3
    ENHANCED_PACKET = 6
    INSTRUCTION = 8  # sizeof(struct bpf_insn)
    MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
    MAX_SNAPLEN = 262144
    ADDRESS_BYTES = 8
    # The most packets per crossing, whatever their size: a ring that is filled as
    # fast as it is emptied must not keep the caller from its other work.
    MAX_DISPATCH = 16384

# Link type -> where the link-layer address is in its cooked header; the byte before it
# is (the lower one of) the address's length (pcap/sll.h).
cdef dict ADDRESSES = {113: 6, 276: 12}

cdef unsigned long long NO_LIMIT = 0xFFFFFFFFFFFFFFFFULL
cdef long long BILLION = 1000000000LL


cdef struct Sink:
    # Where the callback puts records. Room for one whole record beyond the target is
    # always there, so that the check against the target may come after the copy.
    pcap_t *handle
    char *data
    size_t length
    size_t target
    bpf_u_int32 snaplen
    bint nano
    bint pcapng
    unsigned long long packets
    unsigned long long octets
    unsigned long long packet_limit
    unsigned long long octet_limit
    unsigned long long stale
    long long since_ns
    unsigned long long seen
    unsigned long long left
    bint stopped
    size_t address
    bint finished


cdef void clear_padding(char *data, size_t caplen, size_t address) noexcept nogil:
    # The kernel writes as many bytes of the link-layer address as there are; behind
    # them a ring that has wrapped holds what was there before.
    cdef size_t at
    cdef size_t end = min(caplen, address + ADDRESS_BYTES)
    if 0 < address < end:
        at = address + <u_char>data[address - 1]
        if at < end:
            memset(data + at, 0, end - at)


# Each returns the bytes of what it wrote; memcpy, as records of pcap are not aligned.
cdef size_t put_record(
    char *out, const packet_header *header, const u_char *data, bpf_u_int32 caplen,
    bint nano,
) noexcept nogil:
    cdef bpf_u_int32[4] fields
    fields[0] = <bpf_u_int32>header.ts.tv_sec
    fields[1] = <bpf_u_int32>(header.ts.tv_usec if nano else header.ts.tv_usec // 1000)
    fields[2] = caplen
    fields[3] = header.len
    memcpy(out, fields, RECORD_HEADER)
    memcpy(out + RECORD_HEADER, data, caplen)
    return RECORD_HEADER + <size_t>caplen


cdef size_t put_block(
    char *out, const packet_header *header, const u_char *data, bpf_u_int32 caplen,
    unsigned long long stamp_ns,
) noexcept nogil:
    # draft-ietf-opsawg-pcapng, 4.3: the data is padded to 32 bits, no option follows.
    cdef bpf_u_int32 padded = (caplen + 3) & ~<bpf_u_int32>3
    cdef bpf_u_int32 size = BLOCK_HEADER + padded + 4
    cdef bpf_u_int32[7] fields
    fields[0] = ENHANCED_PACKET
    fields[1] = size
    fields[2] = 0
    fields[3] = <bpf_u_int32>(stamp_ns >> 32)
    fields[4] = <bpf_u_int32>stamp_ns
    fields[5] = caplen
    fields[6] = header.len
    memcpy(out, fields, BLOCK_HEADER)
    memcpy(out + BLOCK_HEADER, data, caplen)
    memset(out + BLOCK_HEADER + caplen, 0, padded - caplen)
    memcpy(out + BLOCK_HEADER + padded, &size, 4)
    return size


cdef void on_packet(
    u_char *user, const packet_header *header, const u_char *data
) noexcept nogil:
    cdef Sink *sink = <Sink *>user
    cdef bpf_u_int32 caplen = header.caplen
    cdef char *record = sink.data + sink.length
    # With nanosecond precision, libpcap keeps nanoseconds in the field tv_usec.
    cdef long long stamp_ns = header.ts.tv_sec * BILLION + header.ts.tv_usec
    if sink.stale:
        # What was queued before the program was in force comes first. Its number is
        # an upper bound; the first record with a later stamp ends it for good, and
        # the bound does where the clock was set back.
        if stamp_ns < sink.since_ns:
            sink.stale -= 1
            return
        sink.stale = 0
    if sink.finished:
        return
    sink.seen += 1
    sink.left -= 1
    if caplen > sink.snaplen:
        caplen = sink.snaplen
    if sink.pcapng:
        sink.length += put_block(
            record, header, data, caplen, <unsigned long long>stamp_ns
        )
        clear_padding(record + BLOCK_HEADER, caplen, sink.address)
    else:
        sink.length += put_record(record, header, data, caplen, sink.nano)
        clear_padding(record + RECORD_HEADER, caplen, sink.address)
    sink.packets += 1
    sink.octets += caplen
    if (
        sink.left == 0
        or sink.packets >= sink.packet_limit
        or sink.octets >= sink.octet_limit
    ):
        sink.finished = True
        pcap_breakloop(sink.handle)
    elif sink.length >= sink.target:
        pcap_breakloop(sink.handle)


cdef long long realtime_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec * BILLION + now.tv_nsec


cdef object text(const char *message):
    return (<bytes>message).decode("utf-8", "replace")


cdef int attach(int fd, const instruction *instructions, size_t count) except -1:
    # Have the kernel run the program on the socket, and see that it does.
    cdef sock_fprog request
    cdef socklen_t taken = 0
    request.len = <unsigned short>count
    request.filter = <sock_filter *>instructions
    if setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &request, sizeof(request)) < 0:
        refuse(count, text(strerror(errno)))
    # With a length of 0 the kernel answers how many instructions are attached.
    if getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &taken) < 0 or taken != count:
        refuse(count, f"it has {taken}")
    return 0


cdef object refuse(size_t count, str reason):
    raise FilterError(
        f"the kernel does not take the filter of {count} instructions: {reason}"
    )


cdef size_t instructions_of(bytes code) except 0:
    cdef size_t count = <size_t>len(code) // INSTRUCTION
    if len(code) % INSTRUCTION or not 0 < count <= MAX_INSTRUCTIONS:
        raise FilterError(
            f"a filter of {len(code) / INSTRUCTION:g} instructions, "
            f"the kernel takes {MAX_INSTRUCTIONS}"
        )
    return count


def library_version() -> str:
    """Return what libpcap says of itself."""
    return text(pcap_lib_version())


def attach_program(int fd, bytes code) -> None:
    """Attach a program of 8-byte instructions to the socket ``fd``.

    Raises:
        FilterError: the kernel does not take it.

    """
    cdef size_t count = instructions_of(code)
    attach(fd, <const instruction *><const char *>code, count)


def compile_filter(
    str expression, *, int link_type, int snaplen, bint optimize = True
) -> bytes:
    """Compile a BPF expression to an array of 8-byte instructions.

    The program is as libpcap makes it for a capture of ``link_type``. This may take
    long and look names up: call it in a process that can be killed.

    Raises:
        FilterError: it does not compile, with libpcap's words.

    """
    cdef pcap_t *handle = NULL
    cdef program compiled
    cdef bytes source = expression.encode()
    cdef const char *characters = source
    cdef int status
    if b"\0" in source:
        raise FilterError("the expression holds a NUL character")
    handle = pcap_open_dead(link_type, snaplen)
    if handle == NULL:
        raise MemoryError
    try:
        with nogil:
            status = pcap_compile(
                handle, &compiled, characters, optimize, PCAP_NETMASK_UNKNOWN
            )
        if status < 0:
            raise FilterError(text(pcap_geterr(handle)))
        try:
            return PyBytes_FromStringAndSize(
                <const char *>compiled.bf_insns,
                <Py_ssize_t>compiled.bf_len * INSTRUCTION,
            )
        finally:
            pcap_freecode(&compiled)
    finally:
        pcap_close(handle)


@cython.auto_pickle(False)
cdef class Capture:
    """One non-blocking capture handle.

    Opening and closing block for up to 200 ms and release the GIL. After that, all
    methods but ``close`` belong to one thread. Nothing is delivered before
    ``set_program``.

    Args:
        device: what libpcap captures on.
        link_type: the link type of the records.
        snaplen: bytes kept per packet.
        buffer_size: bytes of the kernel's ring; it may grant less.
        timeout_ms: how long the kernel keeps a block that is not full.
        nano: the fraction of the records' timestamps is nanoseconds.
        pcapng: the records are enhanced packet blocks of interface 0, their timestamps
            whole nanoseconds in any case.
        packet_limit: deliver no more than this many packets.
        byte_limit: deliver no packet after that which reaches this sum of data.

    Raises:
        PrivilegeError: CAP_NET_RAW is missing.
        CaptureError: libpcap's words.

    """

    cdef pcap_t *_handle
    cdef int _fd
    cdef Sink _sink
    cdef size_t _capacity
    cdef bint _more
    cdef bint _ready
    cdef unsigned int _last_received
    cdef unsigned int _last_dropped
    cdef unsigned int _last_missed
    cdef unsigned long long _received
    cdef unsigned long long _dropped
    cdef unsigned long long _missed

    def __cinit__(
        self,
        str device = "any",
        *,
        int link_type = 113,
        int snaplen = MAX_SNAPLEN,
        int buffer_size = 32 << 20,
        int timeout_ms = 50,
        bint nano = False,
        bint pcapng = False,
        packet_limit = None,
        byte_limit = None,
    ):
        cdef char[PCAP_ERRBUF_SIZE] reason
        cdef bytes name = device.encode()
        cdef int status
        if not 1 <= snaplen <= MAX_SNAPLEN:
            raise ValueError(f"a snaplen of {snaplen}")
        if buffer_size <= 0:  # libpcap would take its default, in silence
            raise ValueError(f"a buffer of {buffer_size}")
        memset(&self._sink, 0, sizeof(self._sink))
        self._sink.snaplen = <bpf_u_int32>snaplen
        self._sink.nano = nano
        self._sink.pcapng = pcapng
        self._sink.packet_limit = NO_LIMIT if packet_limit is None else packet_limit
        self._sink.octet_limit = NO_LIMIT if byte_limit is None else byte_limit
        self._sink.left = NO_LIMIT
        self._sink.address = ADDRESSES.get(link_type, 0)
        self._fd = -1
        reason[0] = 0
        self._handle = pcap_create(<char *>name, reason)
        if self._handle == NULL:
            self._fail(text(reason))
        self._sink.handle = self._handle
        # Before activation these fail only when asked for what cannot be.
        if (
            pcap_set_snaplen(self._handle, snaplen) != 0
            or pcap_set_buffer_size(self._handle, buffer_size) != 0
            or pcap_set_timeout(self._handle, timeout_ms) != 0
        ):
            self._fail(f"a buffer of {buffer_size} or a timeout of {timeout_ms}")
        # Always: the kernel then stamps a packet once for all that capture it.
        if pcap_set_tstamp_precision(
            self._handle, PCAP_TSTAMP_PRECISION_NANO
        ) != 0:
            self._fail("no timestamps in nanoseconds")
        with nogil:
            status = pcap_activate(self._handle)
        if status < 0:
            self._refuse(device, status)
        if pcap_datalink(self._handle) != link_type and pcap_set_datalink(
            self._handle, link_type
        ) != 0:
            self._fail(text(pcap_geterr(self._handle)))
        if pcap_setnonblock(self._handle, 1, reason) != 0:
            self._fail(text(reason))
        self._fd = pcap_get_selectable_fd(self._handle)
        if self._fd < 0:
            self._fail(f"{device} has no descriptor to wait for")

    cdef object _fail(self, str message):
        self.close()
        raise CaptureError(message)

    cdef object _refuse(self, str device, int status):
        words = text(pcap_geterr(self._handle)) or text(pcap_statustostr(status))
        self.close()
        if status in (PCAP_ERROR_PERM_DENIED, PCAP_ERROR_PROMISC_PERM_DENIED):
            raise PrivilegeError(f"cannot capture on {device}: {words}")
        raise CaptureError(f"cannot capture on {device}: {words}")

    def set_program(self, bytes code) -> None:
        """Deliver the packets that the program accepts, from now on.

        ``code`` is what the kernel shall run, an array of 8-byte instructions. No
        packet that arrives after the return is missed, none that arrived before the
        program was in force is delivered. Call it once; it may block for 50 ms.

        Raises:
            FilterError: the kernel does not take it.

        """
        cdef instruction reject
        cdef size_t count = instructions_of(code)
        self._check_open()
        memset(&reject, 0, sizeof(reject))
        reject.code = 0x06  # BPF_RET | BPF_K, 0 bytes
        attach(self._fd, &reject, 1)
        with nogil:
            # Wait until no CPU is still putting into the ring a packet that it took
            # before: the kernel does so inside read-side sections of RCU.
            if syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) != 0:
                usleep(20000)
        self._accumulate()
        self._sink.stale = self._received - self._dropped
        self._sink.since_ns = realtime_ns()
        self._received = self._dropped = self._missed = 0
        attach(self._fd, <const instruction *><const char *>code, count)
        self._ready = True

    def read_batch(self, size_t target) -> bytes:
        """Return the records that wait, at most one record more than ``target`` bytes.

        Never blocks; empty when nothing waits. Afterwards ``more`` says whether
        reading stopped early, ``finished`` whether a limit is reached.

        Raises:
            CaptureError: libpcap's words, for example that the host lost the device.

        """
        cdef size_t capacity = target + MOST_AROUND + self._sink.snaplen
        cdef int status
        cdef bytes batch
        self._check_open()
        if not self._ready or self._sink.finished:
            return b""
        if capacity > self._capacity:
            free(self._sink.data)
            self._sink.data = <char *>malloc(capacity)
            self._capacity = capacity if self._sink.data != NULL else 0
            if self._sink.data == NULL:
                raise MemoryError
        self._sink.length = 0
        self._sink.target = target
        with nogil:
            status = pcap_dispatch(
                self._handle, MAX_DISPATCH, on_packet, <u_char *>&self._sink
            )
        if status < 0 and status != PCAP_ERROR_BREAK:
            raise CaptureError(text(pcap_geterr(self._handle)))
        self._more = not self._sink.finished and (
            status == PCAP_ERROR_BREAK or status == MAX_DISPATCH
        )
        return PyBytes_FromStringAndSize(
            self._sink.data, <Py_ssize_t>self._sink.length
        )

    def stop(self) -> None:
        """Deliver no packet that arrives from now on; those in the ring still are.

        Told by number, not by time: a clock that is set changes nothing. The counters
        stay as they are.

        """
        self._check_open()
        if not self._sink.stopped:
            self._sink.left = self.undelivered()
            self._sink.stopped = True
            self._sink.finished = self._sink.left == 0

    def undelivered(self) -> int:
        """Return how many packets are in the ring that are to be delivered."""
        self._check_open()
        if self._sink.finished or not self._ready:
            return 0
        if self._sink.stopped:
            return self._sink.left
        self._accumulate()
        return self._received - self._dropped - self._sink.seen

    cdef int _accumulate(self) except -1:
        # The kernel's and libpcap's counters have 32 bits: sum the differences.
        cdef pcap_stat counters
        memset(&counters, 0, sizeof(counters))
        if pcap_stats(self._handle, &counters) != 0:
            raise CaptureError(text(pcap_geterr(self._handle)))
        self._received += <unsigned int>(counters.ps_recv - self._last_received)
        self._dropped += <unsigned int>(counters.ps_drop - self._last_dropped)
        self._missed += <unsigned int>(counters.ps_ifdrop - self._last_missed)
        self._last_received = counters.ps_recv
        self._last_dropped = counters.ps_drop
        self._last_missed = counters.ps_ifdrop
        return 0

    def statistics(self) -> tuple[int, int, int]:
        """Return the packets received, dropped by the kernel, dropped by interfaces.

        Sums since ``set_program``; received are those that the filter accepted, the
        dropped among them. Call it often enough that 2**32 packets do not pass.
        """
        self._check_open()
        if not self._sink.stopped:
            self._accumulate()
        return self._received, self._dropped, self._missed

    def fileno(self) -> int:
        """Return the descriptor that is readable while records wait."""
        self._check_open()
        return self._fd

    @property
    def packets(self) -> int:
        """How many packets were delivered."""
        return self._sink.packets

    @property
    def data_bytes(self) -> int:
        """How many bytes of packet data were delivered."""
        return self._sink.octets

    @property
    def more(self) -> bool:
        """Whether the last batch ended before the ring was empty."""
        return self._more

    @property
    def finished(self) -> bool:
        """Whether a limit is reached: nothing will be delivered any more."""
        return self._sink.finished

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self._handle == NULL

    cdef int _check_open(self) except -1:
        if self._handle == NULL:
            raise ValueError("the capture is closed")
        return 0

    def close(self) -> None:
        """Close the handle; again is harmless. This may block for 200 ms."""
        cdef pcap_t *handle = self._handle
        self._handle = NULL
        self._sink.handle = NULL
        self._fd = -1
        if handle != NULL:
            with nogil:
                pcap_close(handle)
        free(self._sink.data)
        self._sink.data = NULL
        self._capacity = 0

    def __dealloc__(self):
        free(self._sink.data)
        if self._handle != NULL:
            pcap_close(self._handle)
            self._handle = NULL
            warnings.warn("unclosed capture", ResourceWarning, stacklevel=1)
