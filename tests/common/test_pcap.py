from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.errors import BadMagicError, CorruptError, TruncatedError
from ddump_common.pcap import LinkType, PcapHeader, Precision

GOLDEN = bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 00000400 71000000")

headers = st.builds(
    PcapHeader,
    link_type=st.integers(0, 0x03FFFFFF),
    snaplen=st.integers(0, (1 << 32) - 1),
    precision=st.sampled_from(Precision),
    byte_order=st.sampled_from("<>"),
)


def test_golden_bytes():
    assert PcapHeader(link_type=LinkType.LINUX_SLL).serialize() == GOLDEN


@given(headers, st.binary(max_size=8))
def test_round_trip_with_trailing_data(header, trailing):
    assert PcapHeader.parse(header.serialize() + trailing) == header


def test_the_length_of_the_frame_check_sequence_is_not_the_link_type():
    data = GOLDEN[:20] + struct.pack("<I", 0x14000000 | 1)
    assert PcapHeader.parse(data).link_type == 1


@pytest.mark.parametrize("length", range(24))
def test_cut_at_every_byte(length):
    with pytest.raises(TruncatedError, match="incomplete, at byte 0"):
        PcapHeader.parse(GOLDEN[:length])


def test_another_magic():
    with pytest.raises(BadMagicError, match="3c68746d"):
        PcapHeader.parse(b"<html>" + bytes(24))


def test_another_version():
    with pytest.raises(CorruptError, match=r"version 1\.4, at byte 4"):
        PcapHeader.parse(GOLDEN[:4] + b"\1" + GOLDEN[5:])


@pytest.mark.parametrize(
    "fields",
    [{"link_type": -1}, {"link_type": 1 << 26}, {"link_type": 1, "snaplen": -1}],
)
def test_what_does_not_fit_cannot_exist(fields):
    with pytest.raises(ValueError, match="does not fit"):
        PcapHeader(**fields)
