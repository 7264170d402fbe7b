"""Programs for the kernel: what libpcap itself attaches is the judge."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
import subprocess

import pytest

from ddump_worker import _pcap
from ddump_worker.program import (
    INSTRUCTION,
    UnsupportedLoadError,
    chain,
    cook,
    reads_kernel,
)
from support.programs import started

AD = 0xFFFFF000


def compiled(expression: str, link_type: int, snaplen: int = 262144) -> bytes:
    return _pcap.compile_filter(expression, link_type=link_type, snaplen=snaplen)


def instructions(code: bytes) -> list[tuple[int, ...]]:
    return list(INSTRUCTION.iter_unpack(code))


def attached_by_tcpdump(expression: str, link_type: str) -> list[tuple[int, ...]]:
    """Return the program that tcpdump's socket has in the kernel, as ss shows it."""
    command = ["tcpdump", "-Z", "root", "-i", "any", "-y", link_type, "-s", "262144",
               "-w", "/dev/null", expression]  # fmt: skip
    with started(command, stderr=subprocess.PIPE, text=True) as process:
        while "listening on" not in process.stderr.readline():
            assert process.poll() is None
        shown = subprocess.run(
            ["ss", "-0", "-b", "-p"], capture_output=True, text=True, check=True
        ).stdout
    (words,) = [
        match[1]
        for match in re.finditer(
            rf"pid={process.pid},[^\n]*\n[^\n]*bpf filter \(\d+\): ([^\n]*)", shown
        )
    ]
    return [
        tuple(int(word, 0) for word in each.split())
        for each in words.split(",")
        if each.strip()
    ]


@pytest.mark.live
@pytest.mark.parametrize("link_type", [113, 276])
@pytest.mark.parametrize(
    "expression",
    [
        "",
        "ip",
        "udp port 53",
        "tcp[tcpflags] & tcp-syn != 0",
        "host 10.1.2.3 and not (tcp port 80 or tcp port 443)",
        "ip6 and tcp src port 22",
        "not (ifindex 1 and outbound) and inbound",
        "arp or icmp6",
        "greater 100 and ip[2:2] > 40",
        "ether proto 0x88cc",
    ],
)
def test_the_program_is_the_one_that_libpcap_attaches(expression, link_type):
    name = {113: "LINUX_SLL", 276: "LINUX_SLL2"}[link_type]
    theirs = attached_by_tcpdump(expression, name)
    ours = instructions(
        cook(compiled(expression, link_type), link_type=link_type, snaplen=262144)
    )

    def returns_apart(program):
        return [(code, jt, jf, min(k, 1) if code == 6 else k)
                for code, jt, jf, k in program]  # fmt: skip

    # They differ in how much of a packet is kept, and in nothing else.
    assert returns_apart(ours) == returns_apart(theirs)


@pytest.mark.parametrize(
    ("link_type", "snaplen", "kept"),
    [(113, 262144, 262128), (113, 100, 84), (113, 16, 1), (113, 1, 1), (276, 100, 80)],
)
def test_the_kernel_keeps_what_makes_the_snaplen_with_the_cooked_header(
    link_type, snaplen, kept
):
    code = cook(compiled("udp", link_type), link_type=link_type, snaplen=snaplen)
    returns = {k for operation, _, _, k in instructions(code) if operation == 6}
    assert returns == {kept, 0}


def load(mode: int, size: int, k: int, kind: int = 0) -> bytes:
    return INSTRUCTION.pack(kind | mode | size, 0, 0, k) + INSTRUCTION.pack(6, 0, 0, 1)


W, H, B, ABS, IND, MSH = 0x00, 0x08, 0x10, 0x20, 0x40, 0xA0


@pytest.mark.parametrize(
    ("link_type", "mode", "size", "k", "cooked"),
    [
        (113, ABS, H, 0, AD + 4),
        (113, ABS, H, 2, AD + 28),
        (113, ABS, H, 14, AD + 0),
        (113, ABS, B, 16, 0),
        (113, IND, B, 16, 0),
        (113, ABS, W, AD + 8, AD + 8),
        (276, ABS, H, 0, AD + 0),
        (276, ABS, W, 4, AD + 8),
        (276, ABS, H, 8, AD + 28),
        (276, ABS, B, 10, AD + 4),
        (276, ABS, B, 20, 0),
        (276, IND, W, 23, 3),
    ],
)
def test_fields_of_the_cooked_header_are_the_kernel_s(link_type, mode, size, k, cooked):
    code = cook(load(mode, size, k), link_type=link_type, snaplen=100)
    assert instructions(code)[0] == (mode | size, 0, 0, cooked)


def test_the_length_of_an_ip_header_is_read_where_it_moved_to():
    code = cook(load(MSH, B, 16, kind=1), link_type=113, snaplen=100)
    assert instructions(code)[0] == (1 | MSH | B, 0, 0, 0)


@pytest.mark.parametrize(
    ("link_type", "mode", "size", "k", "kind"),
    [
        (113, ABS, B, 0, 0),  # half of the packet's type
        (113, ABS, W, 0, 0),  # the type and the hardware's
        (113, ABS, H, 4, 0),  # the length of the address
        (113, ABS, W, 14, 0),  # the protocol and two bytes of the packet
        (113, IND, H, 0, 0),
        (113, MSH, B, 14, 1),
        (276, ABS, H, 2, 0),
        (276, ABS, H, 10, 0),
        (276, ABS, B, 19, 0),
    ],
)
def test_what_the_kernel_does_not_have_is_refused_by_offset(
    link_type, mode, size, k, kind
):
    with pytest.raises(UnsupportedLoadError, match=f"byte {k} of") as caught:
        cook(load(mode, size, k, kind), link_type=link_type, snaplen=100)
    assert caught.value.offset == k


def test_other_instructions_stay_as_they_are():
    code = b"".join(
        struct.pack("=HBBI", *each)
        for each in [
            (0x00, 0, 0, 3),  # ld #3
            (0x80, 0, 0, 0),  # ld #len
            (0x60, 0, 0, 2),  # ld M[2]
            (0x01, 0, 0, 3),  # ldx #3
            (0x02, 0, 0, 4),  # st
            (0x15, 1, 2, 3),  # jeq
            (0x04, 0, 0, 5),  # add
            (0x16, 0, 0, 7),  # ret a
            (0x06, 0, 0, 0),  # ret #0
        ]
    )
    assert cook(code, link_type=113, snaplen=100) == code


@pytest.mark.parametrize(
    ("expression", "link_type", "expected"),
    [
        ("ifindex 1", 113, True),
        ("ifindex 1", 276, False),
        ("udp port 5 or greater 99", 113, False),
        ("inbound", 113, False),
    ],
)
def test_what_only_the_kernel_knows_is_told(expression, link_type, expected):
    assert reads_kernel(compiled(expression, link_type)) is expected


def accepted(code: bytes, packets: list[bytes]) -> list[bytes]:
    """Return which packets the kernel lets pass: of a datagram it sees all bytes."""
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiving, sending:
        _pcap.attach_program(receiving.fileno(), code)
        receiving.setblocking(False)
        found = []
        for each in packets:
            sending.send(each)
            with contextlib.suppress(BlockingIOError):
                found.append(receiving.recv(1 << 16))
        return found


def cooked_packets() -> list[bytes]:
    """Return IPv4 packets of UDP and TCP between a few ports, and one in PPPoE."""
    packets = []
    for protocol, source, destination in itertools.product(
        (6, 17), (22, 53, 4000), (22, 53, 6081)
    ):
        ip = (
            b"\x45\x00" + struct.pack(">H", 60) + bytes(4) + bytes([64, protocol, 0, 0])
        )
        ports = struct.pack(">HH", source, destination)
        inner = ip + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + ports + bytes(36)
        packets.append(struct.pack(">HHH8sH", 0, 1, 6, b"", 0x0800) + inner)
        session = struct.pack(">BBHHH", 0x11, 0, 7, 62, 0x0021)
        packets.append(struct.pack(">HHH8sH", 0, 1, 6, b"", 0x8864) + session + inner)
    return packets


PARTS = [
    "",
    "not pppoes",
    "pppoes",
    "not geneve",
    "port 22",
    "not port 22",
    "tcp or port 53",
    "ip[40] = 0 or ip[8] < 65",
    "not (udp and dst port 6081)",
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_chain_accepts_what_each_program_accepts(count):
    packets = cooked_packets()
    alone = {each: accepted(compiled(each, 113), packets) for each in PARTS}
    assert len(alone["not port 22"]) not in (0, len(packets))
    for parts in itertools.permutations(PARTS, count):
        code = chain([compiled(each, 113) for each in parts])
        expected = [
            packet for packet in packets if all(packet in alone[each] for each in parts)
        ]
        assert accepted(code, packets) == expected, parts
