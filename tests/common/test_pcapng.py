from __future__ import annotations

import os
import subprocess

from ddump_common.pcap import Precision
from ddump_common.pcapng import InterfaceDescription, SectionHeader, Statistics


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


def test_a_text_that_is_none_is_escaped():
    block = InterfaceDescription(link_type=1, name="x\udce9").serialize()
    assert rb"x\udce9" in block


def test_golden_statistics():
    assert Statistics(
        time_ns=(1 << 32) + 7, interface=3, received=5, delivered=4, comment="hi"
    ).serialize() == bytes.fromhex(
        "05000000 3c000000 03000000 01000000 07000000"
        "0100 0200 68690000"
        "0400 0800 0500000000000000"
        "0800 0800 0400000000000000"
        "00000000 3c000000"
    )


def test_capinfos_and_tshark_read_statistics(tmp_path):
    path = tmp_path / "counted.pcapng"
    second = 1_700_661_780 * 10**9  # 2023-11-22T14:03:00Z
    path.write_bytes(
        SectionHeader().serialize()
        + b"".join(
            InterfaceDescription(link_type=113, precision=precision).serialize()
            for precision in Precision
        )
        + b"".join(
            Statistics(
                time_ns=second, interface=number, precision=precision,
                started_ns=second - 10**9, ended_ns=second, received=10,
                interface_dropped=1, dropped=2, delivered=8, comment="ended: duration",
            ).serialize()
            for number, precision in enumerate(Precision)
        )
    )  # fmt: skip
    told = subprocess.run(
        ["capinfos", path], check=True, capture_output=True, text=True
    )
    assert told.stderr == ""
    assert told.stdout.count("Number of stat entries = 1") == 2
    shown = subprocess.run(
        ["tshark", "-nVr", path, "-X", "read_format:MIME Files Format"],
        check=True, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"},
    )  # fmt: skip
    assert "rror" not in shown.stderr
    for fact in (
        "Number of Received Packets = 10",
        "Number of Dropped Packets = 1",
        "Number of Packets Dropped by OS = 2",
        "Number of Packets Delivered to the User = 8",
        "Comment = ended: duration",
        "[Timestamp: Nov 22, 2023 14:03:00.000000000 UTC]",
    ):
        assert shown.stdout.count(fact) == 2, (fact, shown.stdout)
