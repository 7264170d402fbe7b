"""The kernel: libpcap's handle, what it delivers, and what it refuses."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings

import pytest

from ddump_common.errors import CaptureError, FilterError
from ddump_worker import _pcap
from ddump_worker.program import cook
from support.captures import parse_blocks
from support.loopback import payloads, records, talker

LO = socket.if_nametoindex("lo")
ONCE = f"not (ifindex {LO} and outbound)"
TARGET = 256 << 10


def program(expression: str, *, link_type: int = 113, snaplen: int = 262144) -> bytes:
    joined = f"({expression}) and {ONCE}" if expression else ONCE
    code = _pcap.compile_filter(joined, link_type=link_type, snaplen=snaplen)
    return cook(code, link_type=link_type, snaplen=snaplen)


@pytest.fixture
def opened():
    """Return a function that opens captures, and close them all at the end."""
    captures = []

    def open_one(expression: str, **options) -> _pcap.Capture:
        # Small rings: many tests at once must not take much of the host's memory.
        capture = _pcap.Capture(**{"buffer_size": 2 << 20, **options})
        captures.append(capture)
        capture.set_program(
            program(
                expression,
                link_type=options.get("link_type", 113),
                snaplen=options.get("snaplen", 262144),
            )
        )
        return capture

    yield open_one
    for capture in captures:
        capture.close()


@contextlib.contextmanager
def without_program():
    capture = _pcap.Capture(buffer_size=2 << 20)
    try:
        yield capture
    finally:
        capture.close()


def read(capture, count: int, *, target: int = TARGET) -> bytes:
    """Read until ``count`` packets are delivered, for at most 5 s."""
    data = b""
    deadline = time.monotonic() + 5
    while capture.packets < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{capture.packets} of {count} packets"
        select.select([capture], [], [], left)
        data += capture.read_batch(target)
    return data


def read_rest(capture) -> bytes:
    """Read all that comes until nothing has come for 0.3 s."""
    data = b""
    while select.select([capture], [], [], 0.3)[0]:
        data += capture.read_batch(TARGET)
    return data


class TestCompileFilter:
    def test_a_program_is_made_of_instructions(self):
        code = _pcap.compile_filter("", link_type=113, snaplen=96)
        assert code == struct.pack("=HBBI", 6, 0, 0, 96)  # ret #96

    def test_an_optimized_program_is_shorter(self):
        options = {"link_type": 113, "snaplen": 96}
        expression = "tcp port 80 or tcp port 443"
        long = _pcap.compile_filter(expression, optimize=False, **options)
        assert len(_pcap.compile_filter(expression, **options)) < len(long)

    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("foo bar baz", "syntax error"),
            ("vlan", "no VLAN support for Linux cooked"),
            ("tcp port", "syntax error"),
            ("host 1.2.3.4.5", "invalid|unknown|illegal"),
            ("tcp port 80 and \0", "NUL"),
        ],
    )
    def test_what_does_not_compile_is_refused_with_the_library_s_words(
        self, expression, words
    ):
        with pytest.raises(FilterError, match=words):
            _pcap.compile_filter(expression, link_type=113, snaplen=96)

    def test_a_filter_that_accepts_nothing_is_refused(self):
        with pytest.raises(FilterError, match="rejects all packets"):
            _pcap.compile_filter("tcp and udp", link_type=113, snaplen=96)


class TestAttachProgram:
    @pytest.fixture
    def udp(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            yield opened

    def test_the_kernel_takes_a_valid_program(self, udp):
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(5)
        # Of a datagram, its filter sees eight bytes of header and the payload.
        keep = struct.pack("=HBBI", 0x06, 0, 0, 8 + 3)
        _pcap.attach_program(udp.fileno(), keep)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"abcdef", udp.getsockname())
            assert udp.recv(100) == b"abc"

    @pytest.mark.parametrize(
        "code",
        [b"", b"1234567", b"123456789", struct.pack("=HBBI", 6, 0, 0, 1) * 4097],
        ids=["empty", "short", "long", "too many"],
    )
    def test_what_is_no_program_is_refused(self, udp, code):
        with pytest.raises(FilterError, match="the kernel takes 4096"):
            _pcap.attach_program(udp.fileno(), code)

    @pytest.mark.parametrize(
        "code",
        [
            struct.pack("=HBBI", 0xFFFF, 0, 0, 0),
            struct.pack("=HBBI", 0x05, 0, 0, 9),  # a jump out of the program
            struct.pack("=HBBI", 0x20, 0, 0, 0),  # no return
        ],
        ids=["unknown", "jump", "endless"],
    )
    def test_what_the_kernel_does_not_take_is_refused(self, udp, code):
        with pytest.raises(FilterError, match="does not take the filter of 1 instr"):
            _pcap.attach_program(udp.fileno(), code)


@pytest.mark.live
class TestCapture:
    def test_what_is_sent_is_delivered_once_and_whole(self, opened):
        with talker() as udp:
            capture = opened(udp.filter)
            sent = udp.send(100, size=500)
            data = read(capture, 100)
            assert payloads(data) == sent
            assert payloads(data + read_rest(capture)) == sent
            assert capture.packets == 100
            assert capture.data_bytes == 100 * (16 + 28 + 500)
            assert capture.statistics() == (100, 0, 0)

    def test_the_first_packet_after_set_program_is_delivered(self, opened):
        for _ in range(5):
            with talker() as udp:
                capture = opened(f"ifindex {LO} and {udp.filter}")
                sent = udp.send()
                assert payloads(read(capture, 1)) == sent

    def test_nothing_leaks_that_was_queued_before_the_program(self, opened):
        with talker() as noise, talker() as udp:
            done = threading.Event()

            def talk():
                while not done.is_set():
                    noise.send(10)

            thread = threading.Thread(target=talk)
            thread.start()
            try:
                for _ in range(5):
                    capture = opened(udp.filter)
                    sent = udp.send(3)
                    data = read(capture, 3) + read_rest(capture)
                    assert payloads(data) == sent
                    assert capture.statistics() == (3, 0, 0)
                    capture.close()
            finally:
                done.set()
                thread.join()

    def test_nothing_is_delivered_without_a_program(self):
        capture = _pcap.Capture(buffer_size=2 << 20)
        with talker() as udp:
            udp.send(10)
            select.select([capture], [], [], 1)
            assert capture.read_batch(TARGET) == b""
        capture.close()

    def test_batches_end_at_the_target(self, opened):
        with talker() as udp:
            capture = opened(udp.filter)
            sent = udp.send(100, size=1000)
            time.sleep(0.2)  # all blocks are retired: one dispatch could take all
            batches = [capture.read_batch(4000)]
            assert capture.more
            while capture.more:
                batches.append(capture.read_batch(4000))
            record = 16 + 16 + 28 + 1000
            assert {len(batch) for batch in batches[:-1]} == {4 * record}
            assert payloads(b"".join(batches)) == sent

    def test_a_batch_is_not_written_again(self, opened):
        with talker() as udp:
            capture = opened(udp.filter)
            first = udp.send(5)
            kept = read(capture, 5)
            udp.send(50, size=700)
            read(capture, 55)
            assert payloads(kept) == first

    def test_a_packet_limit_is_exact(self, opened):
        with talker() as udp:
            capture = opened(udp.filter, packet_limit=7)
            sent = udp.send(20)
            assert not capture.finished
            assert payloads(read(capture, 7)) == sent[:7]
            assert capture.finished
            assert not capture.more
            assert capture.read_batch(TARGET) == b""

    def test_the_packet_that_reaches_the_byte_limit_is_the_last(self, opened):
        with talker() as udp:
            size = 16 + 28 + 100
            capture = opened(udp.filter, byte_limit=2 * size + 1)
            sent = udp.send(20, size=100)
            assert payloads(read(capture, 3)) == sent[:3]
            assert capture.finished
            assert capture.data_bytes == 3 * size

    @pytest.mark.parametrize("snaplen", [1, 16, 17, 44, 60, 262144])
    def test_packets_are_cut_to_the_snaplen(self, opened, snaplen):
        with talker() as udp:
            capture = opened(udp.filter, snaplen=snaplen)
            udp.send(1, size=300)
            ((_, length, data),) = records(read(capture, 1))
            assert length == 16 + 28 + 300
            assert len(data) == min(snaplen, length)

    def test_packets_larger_than_a_page_are_whole(self, opened):
        with talker() as udp:
            capture = opened(udp.filter)
            sent = udp.send(3, size=65000)
            assert payloads(read(capture, 3)) == sent

    def test_sll2_has_the_index_of_the_interface(self, opened):
        with talker() as udp:
            capture = opened(f"ifindex {LO} and {udp.filter}", link_type=276)
            sent = udp.send()
            data = read(capture, 1)
            assert payloads(data, cooked=20) == sent
            ((_, _, packet),) = records(data)
            assert struct.unpack_from(">H2xI", packet) == (0x0800, LO)

    def test_micro_and_nano_are_the_same_time(self, opened):
        with talker() as udp:
            nano = opened(udp.filter, nano=True)
            micro = opened(udp.filter)
            other = opened(udp.filter, nano=True)
            before = time.time_ns()
            udp.send(20)
            after = time.time_ns()
            fine = read(nano, 20)
            times = [
                struct.unpack_from("=II", fine, 92 * number) for number in range(20)
            ]
            stamps = [seconds * 10**9 + fraction for seconds, fraction in times]
            assert before <= stamps[0] <= stamps[-1] <= after
            # The kernel stamps a packet once for all sockets.
            assert read(other, 20) == fine
            assert [stamp for stamp, _, _ in records(read(micro, 20))] == [
                stamp // 1000 for stamp in stamps
            ]

    @pytest.mark.parametrize("link_type", [113, 276])
    @pytest.mark.parametrize("snaplen", [1, 6, 45, 46, 47, 48, 262144])
    def test_blocks_have_what_records_have(self, opened, link_type, snaplen):
        options = {"link_type": link_type, "snaplen": snaplen}
        with talker() as udp:
            plain = opened(udp.filter, nano=True, **options)
            blocks = opened(udp.filter, pcapng=True, **options)
            for size in (1, 2, 3, 4, 1000):
                udp.send(3, size=8 + size)
            expected = records(b"\x4d\x3c\xb2\xa1".ljust(24) + read(plain, 15))
            found = parse_blocks(read(blocks, 15))
            assert [
                (stamp, record.length, record.data) for _, stamp, record in found
            ] == expected
            assert {number for number, _, _ in found} == {0}
            assert blocks.data_bytes == plain.data_bytes

    @pytest.mark.parametrize("target", [1, 999, TARGET])
    def test_a_batch_of_blocks_is_one_larger_than_asked_at_most(self, opened, target):
        with talker() as udp:
            capture = opened(udp.filter, pcapng=True, byte_limit=50 * 345)
            udp.send(60, size=301)
            found = []
            while not capture.finished:
                select.select([capture], [], [], 5)
                data = capture.read_batch(target)
                assert len(data) < target + 32 + 348
                found += parse_blocks(data)
            assert capture.data_bytes == 50 * 345
            assert len(found) == capture.packets == 50

    def test_nothing_that_comes_after_stop_is_delivered(self, opened):
        with talker() as udp:
            capture = opened(udp.filter)
            early = udp.send(3)
            capture.stop()
            udp.send(3)
            capture.stop()
            assert capture.undelivered() == 3
            data = read(capture, 3)
            assert capture.finished
            assert payloads(data) == early
            assert capture.read_batch(TARGET) == b""
            assert capture.statistics()[0] == 3
            assert capture.undelivered() == 0

    def test_stopping_an_empty_ring_finishes_at_once(self, opened):
        capture = opened("udp port 1 and greater 60000")
        capture.stop()
        assert capture.finished

    def test_what_waits_in_the_ring_is_known(self, opened):
        with talker() as udp:
            udp.send(5)  # before its time, in the ring or not
            capture = opened(udp.filter, packet_limit=15)
            assert capture.undelivered() == 0
            udp.send(10)
            assert capture.undelivered() == 10
            read(capture, 10)
            assert capture.undelivered() == 0
            udp.send(200)
            read(capture, 15)
            assert capture.finished
            assert capture.undelivered() == 0
        with without_program() as bare:
            assert bare.undelivered() == 0

    @pytest.mark.parametrize(("link_type", "cooked"), [(113, 16), (276, 20)])
    def test_what_the_ring_held_before_does_not_show_in_the_padding(
        self, opened, link_type, cooked
    ):
        address = {113: 6, 276: 12}[link_type]
        with talker() as udp:
            capture = opened(udp.filter, link_type=link_type, buffer_size=1 << 20)
            found = []
            for number in range(1, 50):
                udp.send(10, size=7000 + number)  # full of "x": two rings of it
                found += records(read(capture, 10 * number))
            assert {data[address : address + 8] for _, _, data in found} == {bytes(8)}
            assert {data[cooked] for _, _, data in found} == {0x45}

    @pytest.mark.parametrize(("link_type", "length"), [(113, 6), (276, 12)])
    def test_headers_cut_short_are_left_as_they_are(self, opened, link_type, length):
        with talker() as udp:
            whole = opened(udp.filter, link_type=link_type)
            cut = [
                opened(udp.filter, link_type=link_type, snaplen=length + more)
                for more in (-1, 0, 1)
            ]
            udp.send()
            ((_, _, data),) = records(read(whole, 1))
            for more, capture in zip((-1, 0, 1), cut, strict=True):
                ((_, _, short),) = records(read(capture, 1))
                assert short == data[: length + more]

    def test_what_the_ring_cannot_hold_is_counted(self, opened):
        with talker() as udp:
            capture = opened(udp.filter, buffer_size=1 << 20)
            udp.send(200, size=30000)
            time.sleep(0.15)  # the last block is retired
            data = read_rest(capture)
            received, dropped, _ = capture.statistics()
            assert received == 200
            assert dropped > 100
            assert len(records(data)) == capture.packets == 200 - dropped
            # Sums: asking again takes nothing away.
            assert capture.statistics()[:2] == (received, dropped)

    def test_an_empty_ring_gives_an_empty_batch_at_once(self, opened):
        capture = opened("udp port 1 and udp port 2 and greater 60000")
        began = time.monotonic()
        assert capture.read_batch(TARGET) == b""
        assert time.monotonic() - began < 0.02

    def test_closing_again_is_harmless_and_ends_everything(self, opened):
        capture = opened("udp")
        assert not capture.closed
        capture.close()
        capture.close()
        assert capture.closed
        for method in (
            capture.fileno,
            capture.statistics,
            lambda: capture.read_batch(TARGET),
            lambda: capture.set_program(program("udp")),
        ):
            with pytest.raises(ValueError, match="closed"):
                method()
        assert (capture.packets, capture.data_bytes) == (0, 0)

    def test_a_capture_that_is_forgotten_is_closed_with_a_warning(self, opened):
        capture = _pcap.Capture(buffer_size=2 << 20)
        descriptor = capture.fileno()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del capture
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_a_program_that_the_kernel_does_not_take_is_refused(self):
        capture = _pcap.Capture(buffer_size=2 << 20)
        try:
            with pytest.raises(FilterError, match="does not take"):
                capture.set_program(struct.pack("=HBBI", 0x20, 0, 0, 0))
            assert capture.read_batch(TARGET) == b""
        finally:
            capture.close()

    @pytest.mark.parametrize(
        "options",
        [{"snaplen": 0}, {"snaplen": -1}, {"snaplen": 262145}, {"buffer_size": 0}],
    )
    def test_what_cannot_be_is_refused(self, options):
        with pytest.raises(ValueError, match=r"a snaplen of|a buffer of"):
            _pcap.Capture(**options)

    def test_a_device_that_is_not_there_is_refused(self):
        with pytest.raises(CaptureError, match="cannot capture on nosuch0"):
            _pcap.Capture("nosuch0")

    def test_a_link_type_that_the_device_lacks_is_refused(self):
        with pytest.raises(CaptureError, match=r"DLT|data link"):
            _pcap.Capture(link_type=105)

    def test_without_the_capability_it_says_so(self):
        script = (
            "from ddump_worker._pcap import Capture\n"
            "from ddump_common.errors import PrivilegeError\n"
            "try: Capture()\n"
            "except PrivilegeError as exc: print(exc)\n"
        )
        done = subprocess.run(
            ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--",
             sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        assert "cannot capture on any" in done.stdout
