"""How a stream begins: what comes before its first packet."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from ddump_common.pcap import PcapHeader
from ddump_common.pcapng import InterfaceDescription, SectionHeader

from . import __version__

if TYPE_CHECKING:
    from ddump_common.api import CaptureQuery

__all__ = ["pcap_preamble", "pcapng_preamble"]


def pcap_preamble(query: CaptureQuery) -> bytes:
    """Return the header of the classic capture that answers ``query``."""
    return PcapHeader(
        link_type=query.link.link_type,
        snaplen=query.snaplen,
        precision=query.precision,
    ).serialize()


def pcapng_preamble(query: CaptureQuery, *, filter_run: str) -> bytes:
    """Return the blocks that say who answers ``query``, and what its interface is.

    There is one interface, as all packets have one link type and one snaplen. Its
    timestamps are nanoseconds: what ``query`` has for precision is for classic pcap.
    Its filter is ``filter_run``, with that of the rule for who asks.
    """
    section = SectionHeader(
        application=f"ddump-worker {__version__}",
        operating_system=f"{platform.system()} {platform.release()}",
        comment=f"host: {platform.node()}",
    )
    interface = InterfaceDescription(
        link_type=query.link.link_type,
        name=",".join(query.interfaces) or "any",
        filter_expression=filter_run,
        snaplen=query.snaplen,
    )
    return section.serialize() + interface.serialize()
