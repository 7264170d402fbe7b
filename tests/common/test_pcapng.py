from __future__ import annotations

import subprocess

from ddump_common.pcap import Precision
from ddump_common.pcapng import InterfaceDescription, SectionHeader


def test_golden_section_header():
    assert SectionHeader().serialize() == bytes.fromhex(
        "0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000"
    )


def test_golden_interface_description():
    assert InterfaceDescription(link_type=113, name="web").serialize() == bytes.fromhex(
        "01000000 28000000 7100 0000 00000400"
        "0200 0300 77656200"
        "0900 0100 09000000"
        "00000000 28000000"
    )


def test_capinfos_reads_what_is_written(tmp_path):
    path = tmp_path / "empty.pcapng"
    path.write_bytes(
        SectionHeader(
            application="ddump", operating_system="Linux", comment="two hosts"
        ).serialize()
        + InterfaceDescription(
            link_type=113, name="web1", description="first", filter_expression="icmp"
        ).serialize()
        + InterfaceDescription(
            link_type=113, name="db1", precision=Precision.MICRO, snaplen=96
        ).serialize()
    )
    told = subprocess.run(
        ["capinfos", path], check=True, capture_output=True, text=True
    ).stdout
    for fact in (
        "Capture application: ddump",
        "Capture oper-sys:    Linux",
        "Capture comment:     two hosts",
        "Name = web1",
        "Description = first",
        "Filter string = icmp",
        "Time precision = nanoseconds (9)",
        "Name = db1",
        "Time precision = microseconds (6)",
        "Capture length = 96",
    ):
        assert fact in told, told


def test_a_text_longer_than_an_option_is_cut(tmp_path):
    block = InterfaceDescription(link_type=1, name="n" * 70_000).serialize()
    assert len(block) % 4 == 0
    assert block.count(b"n") == 0xFFFF
