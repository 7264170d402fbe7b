# What python-libpcap's pylibpcap/pcap.pxd lacks: buffer size and timestamp precision,
# the length of a program, running it, and declarations that may be called without the
# GIL.

from pylibpcap.pcap cimport bpf_u_int32, pcap_t, u_char

cdef extern from "pcap/pcap.h" nogil:
    enum:
        PCAP_ERRBUF_SIZE
        PCAP_ERROR_BREAK
        PCAP_ERROR_PERM_DENIED
        PCAP_ERROR_PROMISC_PERM_DENIED
        PCAP_TSTAMP_PRECISION_NANO

    const bpf_u_int32 PCAP_NETMASK_UNKNOWN

    struct timeval:
        long tv_sec
        long tv_usec

    # The C struct is pcap_pkthdr; this spelling of it has the times as they are.
    ctypedef struct packet_header "struct pcap_pkthdr":
        timeval ts
        bpf_u_int32 caplen
        bpf_u_int32 len

    ctypedef void (*packet_handler "pcap_handler")(
        u_char *, const packet_header *, const u_char *) noexcept nogil

    struct instruction "bpf_insn":
        unsigned short code
        u_char jt
        u_char jf
        bpf_u_int32 k

    struct program "bpf_program":
        unsigned int bf_len
        instruction *bf_insns

    int pcap_set_buffer_size(pcap_t *handle, int size)
    int pcap_set_tstamp_precision(pcap_t *handle, int precision)
    int pcap_get_selectable_fd(pcap_t *handle)
    int pcap_activate(pcap_t *handle)
    int pcap_dispatch(
        pcap_t *handle, int count, packet_handler callback, u_char *user)
    void pcap_breakloop(pcap_t *handle)
    void pcap_close(pcap_t *handle)
    int pcap_compile(
        pcap_t *handle, program *compiled, const char *expression, int optimize,
        bpf_u_int32 netmask)
    void pcap_freecode(program *compiled)
    int pcap_offline_filter(
        const program *compiled, const packet_header *header, const u_char *data)
    int bpf_validate(const instruction *instructions, int count)
    const char *pcap_statustostr(int status)

cdef extern from "fcntl.h" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE

    int fallocate(int fd, int mode, long offset, long length)

cdef extern from "linux/filter.h" nogil:
    # <linux/filter.h> names the same eight bytes sock_filter.
    struct sock_filter:
        pass

    struct sock_fprog:
        unsigned short len
        sock_filter *filter

cdef extern from "linux/membarrier.h" nogil:
    enum:
        MEMBARRIER_CMD_GLOBAL

cdef extern from "sys/socket.h" nogil:
    enum:
        SOL_SOCKET
        SO_ATTACH_FILTER
        SO_GET_FILTER

    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)

cdef extern from "sys/syscall.h" nogil:
    enum:
        SYS_membarrier

cdef extern from "time.h" nogil:
    enum:
        CLOCK_REALTIME

    struct timespec:
        long tv_sec
        long tv_nsec

    int clock_gettime(int clock, timespec *time)

cdef extern from "unistd.h" nogil:
    long syscall(long number, ...)
    int usleep(unsigned int microseconds)
