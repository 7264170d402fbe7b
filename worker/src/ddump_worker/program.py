"""A BPF program: what libpcap compiled, made into what the kernel shall run.

libpcap compiles for a capture of ``any`` as if each packet began with a cooked header
(LINUX_SLL of 16 bytes, LINUX_SLL2 of 20). The kernel's filter sees packets without
it, so offsets move, and loads of the header's fields become loads of the kernel's own
data about the packet. This is what ``pcap_setfilter`` does inside, for the same
layout; done here, it can be checked before any handle is open, and the kernel cuts
packets to the snaplen before they take room in the ring.

Filters that all must hold are compiled one by one, and their programs chained. Joined
to one expression they would change each other's meaning: in libpcap ``pppoes`` and
``geneve`` move the offsets of all that comes after them, also when they are negated, so
that ``(not pppoes) and (not port 22)`` lets port 22 pass.

Packets that are stored have their cooked header, and what libpcap compiled runs on
them as it is, unless it asks for what only the kernel knows.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INSTRUCTION", "UnsupportedLoadError", "chain", "cook", "reads_kernel"]

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k

_LD, _LDX, _RET = 0x00, 0x01, 0x06
_JA = 0x05
_CLASS, _SIZE, _MODE, _RVAL = 0x07, 0x18, 0xE0, 0x18
_W, _H, _B = 0x00, 0x08, 0x10
_ABS, _IND, _MSH = 0x20, 0x40, 0xA0

# linux/filter.h: loads at these offsets read what the kernel knows of the packet.
_AD_OFF = 0xFFFF_F000
_AD_PROTOCOL, _AD_PKTTYPE = _AD_OFF + 0, _AD_OFF + 4
_AD_IFINDEX, _AD_HATYPE = _AD_OFF + 8, _AD_OFF + 28

# Link type -> length of the cooked header, and its fields that the kernel has too, by
# offset and size of the load (pcap/sll.h).
_HEADERS: dict[int, tuple[int, dict[tuple[int, int], int]]] = {
    113: (16, {(0, _H): _AD_PKTTYPE, (2, _H): _AD_HATYPE, (14, _H): _AD_PROTOCOL}),
    276: (
        20,
        {
            (0, _H): _AD_PROTOCOL,
            (4, _W): _AD_IFINDEX,
            (8, _H): _AD_HATYPE,
            (10, _B): _AD_PKTTYPE,
        },
    ),
}


class UnsupportedLoadError(Exception):
    """The program reads a byte of the cooked header that the kernel does not have."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"byte {offset} of the cooked header")
        self.offset = offset


def chain(codes: Sequence[bytes]) -> bytes:
    """Return a program that accepts what each of ``codes`` accepts, as the last does.

    Where one accepts the next goes on; where one rejects that is the end. None reads
    what another has left in registers or memory: libpcap's programs set them first.
    """
    *before, last = codes
    return b"".join(map(_going_on, before)) + last


def _going_on(code: bytes) -> bytes:
    """Return ``code`` so that it runs on behind its end where it would accept."""
    left = len(code) // INSTRUCTION.size
    chained = bytearray()
    for operation, jt, jf, k in INSTRUCTION.iter_unpack(code):
        left -= 1
        if operation & _CLASS == _RET and k:
            chained += INSTRUCTION.pack(_JA, 0, 0, left)
        else:
            chained += INSTRUCTION.pack(operation, jt, jf, k)
    return bytes(chained)


def cook(code: bytes, *, link_type: int, snaplen: int) -> bytes:
    """Return the program that the kernel shall run for ``code``.

    It accepts the same packets, and keeps of each as many bytes as make ``snaplen``
    with the cooked header before them.

    Raises:
        UnsupportedLoadError: it cannot run in the kernel.

    """
    length, fields = _HEADERS[link_type]
    kept = max(snaplen - length, 1)
    cooked = bytearray()
    for operation, jt, jf, k in INSTRUCTION.iter_unpack(code):
        kind, mode = operation & _CLASS, operation & _MODE
        if kind == _RET:
            # A constant other than 0 is how many bytes to keep.
            if operation & _RVAL == 0 and k:
                k = kept
        elif (kind == _LD and mode in (_ABS, _IND)) or (kind == _LDX and mode == _MSH):
            k = _moved(k, operation, length, fields)
        cooked += INSTRUCTION.pack(operation, jt, jf, k)
    return bytes(cooked)


def reads_kernel(code: bytes) -> bool:
    """Return whether a program loads what only the kernel knows of a packet."""
    return any(
        operation & _CLASS == _LD and operation & _MODE == _ABS and k >= _AD_OFF
        for operation, _, _, k in INSTRUCTION.iter_unpack(code)
    )


def _moved(
    k: int, operation: int, length: int, fields: dict[tuple[int, int], int]
) -> int:
    if k >= _AD_OFF:
        return k
    if k >= length:
        return k - length
    if operation & _CLASS == _LD and operation & _MODE == _ABS:
        place = fields.get((k, operation & _SIZE))
        if place is not None:
            return place
    raise UnsupportedLoadError(k)
