"""The helper process that compiles one filter, and then is gone.

libpcap's compiler can take minutes, and looks names up; a process can be limited and
killed, and needs no privilege. It reads expressions from stdin with a NUL between them, the user's first and
then the worker's own, and writes one byte of outcome to stdout and what belongs to it:
``+`` and the program, ``-`` and why there is none for the user's, or ``!`` and why
there is none for the worker's own. The program is one for the kernel, or with the
argument ``stored`` one for packets in a capture file; it accepts what all of the
expressions accept, each of which means what it means alone.

It imports nothing that takes long: every capture waits for it to start.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING

from ddump_common.errors import FilterError

from . import _pcap
from .capabilities import keep_none
from .program import UnsupportedLoadError, chain, cook, reads_kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "COMPILED",
    "CPU_SECONDS",
    "EXCLUSIONS_REFUSED",
    "NICENESS",
    "REFUSED",
    "SEPARATOR",
    "STORED",
    "WALL_SECONDS",
    "main",
]

COMPILED = b"+"
REFUSED = b"-"
EXCLUSIONS_REFUSED = b"!"
SEPARATOR = b"\0"
STORED = "stored"

# 300 ports took libpcap's optimizer 5.6 s, a name without a resolver 10 s.
CPU_SECONDS = 2
WALL_SECONDS = 5
_MAX_MEMORY = 512 << 20
NICENESS = 10
"""By how much it gives way to what captures; whoever starts it sets that first."""


_REFUSALS = (FilterError, UnsupportedLoadError, MemoryError)


def _limit() -> None:
    # The soft limit ends it by SIGXCPU. Were the hard one the same, it would be
    # SIGKILL, and look as if someone else had killed it.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should the worker die, this process does not stay.
    signal.alarm(WALL_SECONDS + 1)


def _program(
    expressions: Sequence[str], link_type: int, snaplen: int, *, stored: bool
) -> bytes:
    # The user's comes first: it often is the one that rejects most, and soonest.
    given = [each for each in expressions if each.strip()] or [""]
    code = chain(
        [
            _pcap.compile_filter(each, link_type=link_type, snaplen=snaplen)
            for each in given
        ]
    )
    if not stored:
        code = cook(code, link_type=link_type, snaplen=snaplen)
    elif reads_kernel(code):
        raise FilterError(
            "stored packets do not tell what this filters by (ifindex needs a ring of "
            "sll2)"
        )
    # The kernel checks a program for any socket alike, and needs no privilege here.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        _pcap.attach_program(probe.fileno(), code)
    return code


def _answer(
    text: bytes, link_type: int, snaplen: int, *, stored: bool = False
) -> bytes:
    expression, *exclusions = text.decode().split(SEPARATOR.decode())
    try:
        code = _program([expression, *exclusions], link_type, snaplen, stored=stored)
    except _REFUSALS as exc:
        refused = REFUSED + _words(exc)
    else:
        return COMPILED + code
    try:
        _program(["", *exclusions], link_type, snaplen, stored=stored)
    except _REFUSALS as exc:
        refused = EXCLUSIONS_REFUSED + _words(exc)
    return refused


def _words(refusal: Exception) -> bytes:
    match refusal:
        case UnsupportedLoadError():
            return f"the kernel cannot filter by {refusal}".encode()
        case MemoryError():
            return b"the filter takes too much memory to compile"
        case _:
            return str(refusal).encode()


def main() -> None:
    """Compile what stdin holds; the arguments are link type, snaplen, and ``stored``."""
    keep_none()
    _limit()
    link_type, snaplen = (int(word) for word in sys.argv[1:3])
    text = sys.stdin.buffer.read()
    answer = _answer(text, link_type, snaplen, stored=STORED in sys.argv[3:])
    sys.stdout.buffer.write(answer)
