"""The invariant: whatever expression or program the worker's kernel is given,

* ``compile_filter`` returns whole instructions, the same each time, or raises FilterError;
* what was compiled for a cooked capture can be made into a program that Linux takes, or
  is refused as one that it cannot run;
* ``attach_program`` attaches a program or raises FilterError, whatever its bytes are;
* no read or write leaves its buffer (run it under ASan: fuzz.sh).

Expressions are made of libpcap's own words, so that no name is ever looked up.

Usage: fuzz_pcap.py --seconds N [--seed S]. It prints the seed of each failure, which
runs that case again.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddump_common.errors import FilterError
from ddump_worker import _pcap
from ddump_worker.program import UnsupportedLoadError, cook
from support.fuzzing import fuzz

WORDS = [
    "and",
    "or",
    "not",
    "(",
    ")",
    "!",
    "&&",
    "||",
    "icmp",
    "icmp6",
    "tcp",
    "udp",
    "ip",
    "ip6",
    "arp",
    "sctp",
    "host",
    "net",
    "port",
    "portrange",
    "src",
    "dst",
    "proto",
    "gateway",
    "ether",
    "broadcast",
    "multicast",
    "vlan",
    "mpls",
    "pppoed",
    "pppoes",
    "geneve",
    "less",
    "greater",
    "inbound",
    "outbound",
    "ifindex",
    "len",
    "=",
    "!=",
    ">",
    ">=",
    "<",
    "<=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "&",
    "|",
    "^",
    "<<",
    ">>",
    "[",
    "]",
    ":",
    "ip[0]",
    "tcp[13]",
    "ip6[6:2]",
    "link[0]",
    "ether[0:4]",
    "0",
    "1",
    "2",
    "17",
    "53",
    "80-90",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "0x",
    "0xffffffff",
    "10.0.0.5",
    "10.0.0.0/8",
    "10.0.0.0/33",
    "::1",
    "fe80::/10",
    "1:2:3:4:5:6",
    "tcp-syn",
    "tcpflags",
    "icmptype",
    "icmp-echo",
    "\\tcp",
    "\\",
    "'",
    '"',
    "#",
    "$",
    "\x7f",
    "\t",
]
LINK_TYPES = (113, 276)
EDGES = (0, 1, 7, 0x7FFF, 0xFFFF, 0xFFFF_F000, 0xFFFF_F01C, 0x7FFF_FFFF, 0xFFFF_FFFF)


def any_expression(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randrange(1, 10))]
    if rng.random() < 0.5:  # likely to compile
        words = [rng.choice(("tcp", "udp", "icmp", "ip", "len > 60", "port 53"))]
        for _ in range(rng.randrange(5)):
            words += [
                rng.choice(("and", "or", "and not")),
                rng.choice(
                    (
                        "tcp[13] & 2 != 0",
                        "net 10.0.0.0/8",
                        "host ::1",
                        "ifindex 3",
                        "inbound",
                    )
                ),
            ]
    return " ".join(words)


def any_program(rng, code):
    """``code`` tampered with, or noise."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 64, 800)))
    data = bytearray(code)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) // 8 + 1) * 8
        match rng.randrange(4):
            case 0:
                data[at : at + 8] = rng.randbytes(8)
            case 1:
                data[at + 4 : at + 8] = struct.pack("=I", rng.choice(EDGES))
            case 2:
                del data[at : at + rng.choice((1, 8, 24))]
            case _:
                data[at:at] = data[:100] * rng.choice((1, 1, 400))
    return bytes(data)


def compiled(expression, options):
    """Return the program; none when the expression is refused."""
    try:
        code = _pcap.compile_filter(expression, **options)
    except FilterError:
        return b""
    assert code, expression
    return code


def attach(code):
    """Return whether Linux takes the program."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        try:
            _pcap.attach_program(taker.fileno(), code)
        except FilterError:
            return False
    return True


def check(seed):
    """Make one case of the seed and judge it."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    link_type = rng.choice(LINK_TYPES)
    snaplen = rng.choice((1, 16, 20, 64, 262_144))
    options = {
        "link_type": link_type,
        "snaplen": snaplen,
        "optimize": rng.random() < 0.8,
    }
    expression = any_expression(rng)
    code = compiled(expression, options)
    if code:
        assert len(code) % 8 == 0, expression
        assert compiled(expression, options) == code, expression
        with suppress(UnsupportedLoadError):
            cooked = cook(code, link_type=link_type, snaplen=snaplen)
            assert len(cooked) == len(code)
            attach(cooked)
    attach(any_program(rng, code))


if __name__ == "__main__":
    fuzz(check)
