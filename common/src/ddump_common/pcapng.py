"""The pcapng blocks beside packets: section header, interface, interface statistics.

The format is draft-ietf-opsawg-pcapng. Blocks are written in little-endian order;
enhanced packet blocks, one per packet, are the kernels'.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .pcap import MAX_SNAPLEN, Precision

__all__ = ["InterfaceDescription", "SectionHeader", "Statistics"]

_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_INTERFACE_STATISTICS = 5

_OPT_COMMENT = 1
_SHB_OS = 3
_SHB_USERAPPL = 4
_IF_NAME = 2
_IF_DESCRIPTION = 3
_IF_TSRESOL = 9
_IF_FILTER = 11
_ISB_STARTTIME = 2
_ISB_ENDTIME = 3
_ISB_IFRECV = 4
_ISB_IFDROP = 5
_ISB_OSDROP = 7
_ISB_USRDELIV = 8
_LONGEST_OPTION = 0xFFFF


def _text(value: str) -> bytes:
    # A file's name may hold bytes that are no text.
    return value.encode(errors="backslashreplace")


def _option(code: int, value: bytes) -> bytes:
    value = value[:_LONGEST_OPTION]
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _options(options: list[tuple[int, bytes]]) -> bytes:
    given = [_option(code, value) for code, value in options if value]
    return b"".join(given) + bytes(4) if given else b""  # opt_endofopt ends the list


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionHeader:
    """Section Header Block: who wrote the section. Empty texts are left out."""

    application: str = ""
    operating_system: str = ""
    comment: str = ""

    def serialize(self) -> bytes:
        """Return the block; the length of the section is given as unknown."""
        body = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        return _block(
            _SECTION_HEADER,
            body
            + _options(
                [
                    (_OPT_COMMENT, _text(self.comment)),
                    (_SHB_OS, _text(self.operating_system)),
                    (_SHB_USERAPPL, _text(self.application)),
                ]
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceDescription:
    """Interface Description Block. ``snaplen`` is in bytes; empty texts are left out."""

    link_type: int
    name: str = ""
    description: str = ""
    filter_expression: str = ""
    comment: str = ""
    snaplen: int = MAX_SNAPLEN
    precision: Precision = Precision.NANO

    def serialize(self) -> bytes:
        """Return the block."""
        # A filter begins with one byte that says how it is written: 0 is text.
        expression = _text(self.filter_expression)
        return _block(
            _INTERFACE_DESCRIPTION,
            struct.pack("<HHI", self.link_type, 0, self.snaplen)
            + _options(
                [
                    (_OPT_COMMENT, _text(self.comment)),
                    (_IF_NAME, _text(self.name)),
                    (_IF_DESCRIPTION, _text(self.description)),
                    (
                        _IF_TSRESOL,
                        bytes([9 if self.precision is Precision.NANO else 6]),
                    ),
                    (_IF_FILTER, b"\0" + expression if expression else b""),
                ]
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Interface Statistics Block: what became of the packets of ``interface`` so far.

    Times are nanoseconds since the epoch, written in the interface's ``precision``.
    ``received`` are those that the kernel accepted, ``dropped`` of them included;
    ``delivered`` are those in the capture. What is ``None`` is left out, as is an empty
    ``comment``.
    """

    time_ns: int
    interface: int = 0
    started_ns: int | None = None
    ended_ns: int | None = None
    received: int | None = None
    interface_dropped: int | None = None
    dropped: int | None = None
    delivered: int | None = None
    comment: str = ""
    precision: Precision = Precision.NANO

    def serialize(self) -> bytes:
        """Return the block."""
        options = [(_OPT_COMMENT, _text(self.comment))]
        for code, time_ns in (
            (_ISB_STARTTIME, self.started_ns),
            (_ISB_ENDTIME, self.ended_ns),
        ):
            if time_ns is not None:
                options.append((code, self._time(time_ns)))
        for code, count in (
            (_ISB_IFRECV, self.received),
            (_ISB_IFDROP, self.interface_dropped),
            (_ISB_OSDROP, self.dropped),
            (_ISB_USRDELIV, self.delivered),
        ):
            if count is not None:
                options.append((code, struct.pack("<Q", count)))
        body = struct.pack("<I", self.interface) + self._time(self.time_ns)
        return _block(_INTERFACE_STATISTICS, body + _options(options))

    def _time(self, time_ns: int) -> bytes:
        units = time_ns if self.precision is Precision.NANO else time_ns // 1000
        return struct.pack("<II", units >> 32, units & 0xFFFF_FFFF)
