from __future__ import annotations

import pytest

from ddump_common.api import Link
from ddump_common.pcap import PcapHeader, Precision
from ddump_merger.header import (
    OutputHeader,
    choose_link_type,
    fits,
    is_micro,
    link_type_name,
)
from support.captures import pcap_header

ETHERNET, RAW, SLL, SLL2 = 1, 101, 113, 276


@pytest.mark.parametrize("precision", list(Precision))
def test_classic(precision):
    header = OutputHeader(pcapng=False, precision=precision)
    assert PcapHeader.parse(header.serialize(RAW)) == PcapHeader(
        link_type=RAW, snaplen=262_144, precision=precision
    )


def test_pcapng_begins_with_its_section_alone():
    header = OutputHeader(pcapng=True, precision=Precision.NANO)
    data = header.serialize(SLL)
    assert data.startswith(b"\x0a\x0d\x0d\x0a")
    assert int.from_bytes(data[4:8], "little") == len(data)
    assert b"ddump 0" in data


@pytest.mark.parametrize(
    ("link", "inputs", "expected"),
    [
        (None, [], SLL),
        (Link.SLL2, [], SLL2),
        (None, [SLL2, SLL2], SLL),
        (Link.SLL2, [SLL, SLL], SLL2),
        (None, [ETHERNET, RAW, ETHERNET], ETHERNET),
        (None, [RAW, ETHERNET], RAW),
        (None, [ETHERNET, SLL, SLL2], SLL),  # two of one kind
        (Link.SLL2, [ETHERNET, ETHERNET, SLL], ETHERNET),
    ],
)
def test_the_link_type(link, inputs, expected):
    assert choose_link_type(link, inputs) == expected


def test_what_fits():
    assert fits(ETHERNET, ETHERNET)
    assert fits(SLL, SLL2)
    assert fits(SLL2, SLL)
    assert not fits(ETHERNET, SLL)
    assert not fits(SLL, ETHERNET)


def test_names():
    assert link_type_name(SLL2) == "link type LINUX_SLL2"
    assert link_type_name(147) == "link type 147"


def test_what_can_only_be_microseconds():
    assert is_micro(pcap_header()[:4])
    assert is_micro(pcap_header(byte_order=">")[:4])
    assert not is_micro(pcap_header(nano=True)[:4])
    assert not is_micro(b"\x0a\x0d\x0d\x0a")
    assert not is_micro(b"")
