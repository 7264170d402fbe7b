"""The classic capture file: its header, link types and timestamp precision.

The format is pcap-savefile(5): a header of 24 bytes, then records of 16 bytes and
their data. Records are read and written by the two kernels only; here is what is
handled once per stream.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from .errors import BadMagicError, CorruptError, TruncatedError

__all__ = ["MAX_SNAPLEN", "LinkType", "PcapHeader", "Precision"]

MAX_SNAPLEN = 262_144
"""The most bytes that libpcap and Wireshark take per packet (MAXIMUM_SNAPLEN)."""

_HEADER = "IHHiIII"  # magic, version major and minor, zone, sigfigs, snaplen, network
_LENGTH = struct.calcsize("<" + _HEADER)
# The upper bits of the network field hold the length of the frame check sequence.
_LINK_TYPE_MASK = 0x03FF_FFFF


class LinkType(enum.IntEnum):
    """The link types that workers send (https://www.tcpdump.org/linktypes.html)."""

    LINUX_SLL = 113
    LINUX_SLL2 = 276


class Precision(enum.StrEnum):
    """What a timestamp's fraction counts."""

    MICRO = "micro"
    NANO = "nano"

    @property
    def magic(self) -> int:
        """The magic number of a file whose timestamps have this precision."""
        return 0xA1B2C3D4 if self is Precision.MICRO else 0xA1B23C4D


@dataclass(frozen=True, slots=True, kw_only=True)
class PcapHeader:
    """The first 24 bytes of a capture file.

    ``link_type`` is a number from the link-type registry, known to us or not;
    ``snaplen`` is in bytes; ``byte_order`` is ``<`` or ``>`` as in ``struct``.
    """

    link_type: int
    snaplen: int = MAX_SNAPLEN
    precision: Precision = Precision.MICRO
    byte_order: str = "<"

    SIZE = _LENGTH

    def __post_init__(self) -> None:
        if not 0 <= self.link_type <= _LINK_TYPE_MASK:
            raise ValueError(f"link type {self.link_type} does not fit the header")
        if not 0 <= self.snaplen < 1 << 32:
            raise ValueError(f"snaplen {self.snaplen} does not fit the header")

    @classmethod
    def parse(cls, data: bytes) -> PcapHeader:
        """Read the header that ``data`` begins with.

        Raises:
            TruncatedError: fewer than 24 bytes.
            BadMagicError: not a classic capture file.
            CorruptError: a version that nobody writes.

        """
        if len(data) < _LENGTH:
            raise TruncatedError("the file header is incomplete", offset=0)
        for byte_order in "<>":
            magic, major, minor, _, _, snaplen, network = struct.unpack_from(
                byte_order + _HEADER, data
            )
            for precision in Precision:
                if magic == precision.magic:
                    if (major, minor) != (2, 4):
                        raise CorruptError(f"pcap version {major}.{minor}", offset=4)
                    return cls(
                        link_type=network & _LINK_TYPE_MASK,
                        snaplen=snaplen,
                        precision=precision,
                        byte_order=byte_order,
                    )
        raise BadMagicError(f"not a capture file (begins {data[:4].hex()})", offset=0)

    def serialize(self) -> bytes:
        """Return the 24 bytes."""
        return struct.pack(
            self.byte_order + _HEADER,
            self.precision.magic, 2, 4, 0, 0, self.snaplen, self.link_type,
        )  # fmt: skip
