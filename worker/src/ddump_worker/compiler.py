"""The helper process that compiles one filter, and then is gone.

libpcap's compiler can take minutes, and looks names up; a process can be limited and
killed. It reads two expressions from stdin with a NUL between them, the user's and
the worker's own, and writes one byte of outcome to stdout and what belongs to it:
``+`` and the program that the kernel shall run, or ``-`` and why there is none.

It imports nothing that takes long: every capture waits for it to start.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys

from ddump_common.errors import FilterError

from . import _pcap
from .program import UnsupportedLoadError, cook

__all__ = ["COMPILED", "CPU_SECONDS", "REFUSED", "SEPARATOR", "WALL_SECONDS", "main"]

COMPILED = b"+"
REFUSED = b"-"
SEPARATOR = b"\0"

# 300 ports took libpcap's optimizer 5.6 s, a name without a resolver 10 s.
CPU_SECONDS = 2
WALL_SECONDS = 5
_MAX_MEMORY = 512 << 20
_NICENESS = 10


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Capturing goes first. And should the worker die, this process does not stay.
    os.nice(_NICENESS)
    signal.alarm(WALL_SECONDS + 1)


def _program(expression: str, exclusions: str, link_type: int, snaplen: int) -> bytes:
    # Alone first: "a) or (b" must not compile because parentheses are put around it.
    _pcap.compile_filter(
        expression, link_type=link_type, snaplen=snaplen, optimize=False
    )
    parts = [f"({part})" for part in (expression, exclusions) if part.strip()]
    code = _pcap.compile_filter(
        " and ".join(parts), link_type=link_type, snaplen=snaplen
    )
    cooked = cook(code, link_type=link_type, snaplen=snaplen)
    # The kernel checks a program for any socket alike, and needs no privilege here.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        _pcap.attach_program(probe.fileno(), cooked)
    return cooked


def _answer(text: bytes, link_type: int, snaplen: int) -> bytes:
    expression, _, exclusions = text.partition(SEPARATOR)
    try:
        return COMPILED + _program(
            expression.decode(), exclusions.decode(), link_type, snaplen
        )
    except UnsupportedLoadError as exc:
        reason = f"the kernel cannot filter by {exc}"
    except MemoryError:
        reason = "the filter takes too much memory to compile"
    except FilterError as exc:
        reason = str(exc)
    return REFUSED + reason.encode()


def main() -> None:
    """Compile what stdin holds; the arguments are link type and snaplen."""
    _limit()
    link_type, snaplen = (int(word) for word in sys.argv[1:3])
    sys.stdout.buffer.write(_answer(sys.stdin.buffer.read(), link_type, snaplen))
