"""What the output begins with, and how its link type and precision are chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.pcap import LinkType, PcapHeader, Precision
from ddump_common.pcapng import SectionHeader

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OutputHeader", "choose_link_type", "fits", "is_micro", "link_type_name"]

_COOKED = frozenset(LinkType)
# pcap-savefile(5): the magic number of microseconds, in either byte order.
_MICRO_MAGIC = (b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHeader:
    """The bytes that the output begins with; what interfaces it has comes later."""

    pcapng: bool
    precision: Precision

    def serialize(self, link_type: int) -> bytes:
        """Return the pcap file header, or the section header."""
        if self.pcapng:
            return SectionHeader(application=f"ddump {__version__}").serialize()
        return PcapHeader(link_type=link_type, precision=self.precision).serialize()


def choose_link_type(link: Link | None, inputs: Sequence[int]) -> int:
    """Return the output's link type, given what was asked for and what the files have.

    Cooked captures of either kind count as one kind, SLL unless asked otherwise; among
    kinds the most frequent wins, and the first of equals.
    """
    cooked = (link or Link.SLL).link_type
    kinds = [cooked if link_type in _COOKED else link_type for link_type in inputs]
    return Counter(kinds).most_common(1)[0][0] if kinds else cooked


def fits(link_type: int, output: int) -> bool:
    """Return whether packets of ``link_type`` can be written under ``output``."""
    return link_type == output or {link_type, output} <= _COOKED


def link_type_name(link_type: int) -> str:
    """Return what to call it in a message."""
    name = LinkType(link_type).name if link_type in _COOKED else f"{link_type}"
    return f"link type {name}"


def is_micro(beginning: bytes) -> bool:
    """Return whether a file that begins so cannot hold finer times than microseconds."""
    return beginning in _MICRO_MAGIC
