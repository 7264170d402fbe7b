"""The merge beside the tools that people have: mergecap, tshark, tcpdump, capinfos."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess

import pytest

from ddump_merger._merge import Merge
from support.captures import (
    HEADER_SIZE,
    SLL,
    SLL2,
    Cooked,
    Record,
    enhanced_packet,
    interface,
    obsolete_packet,
    option,
    pcap,
    pcap_header,
    pcapng,
    section,
    statistics,
    statistics_time,
)
from support.merges import merge_whole
from support.programs import started

S = 1_000_000_000
BASE = 1_700_000_000 * S

# An IPv4 header and UDP from 192.0.2.1 port 1000 to 192.0.2.2 port 2000, 4 bytes.
DATAGRAM = bytes.fromhex(
    "45000020000000004011f6c9 c0000201 c0000202 03e807d0000c0000 61626364"
)


def run(*command):
    """Run a tool, outside of whatever was preloaded into this process."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


def packets(seed, count, *, jitter=0):
    """Packets in order of time, or as far out of it as ``jitter`` ns."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    moment = BASE
    made = []
    for _ in range(count):
        moment += rng.choice((0, 1000, 250_000, 3_000_000))
        data = Cooked(payload=DATAGRAM + rng.randbytes(rng.randrange(100))).sll()
        made.append(
            Record(moment - rng.randrange(jitter + 1) // 1000 * 1000, data, 1500)
        )
    return made


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return str(path)


WRITERS = [
    pcap,
    lambda records: pcap(records, byte_order=">"),
    lambda records: pcap(records, nano=True),
    pcapng,
    lambda records: pcapng(records, byte_order=">", nano=False),
]


def test_equals_mergecap(tmp_path):
    captures = [
        writer(packets(seed, 500)) for seed, writer in enumerate(WRITERS, start=1)
    ]
    files = [
        write(tmp_path, f"{n}.pcap", capture) for n, capture in enumerate(captures)
    ]
    merged = tmp_path / "merged.pcap"
    # mergecap lets the last of its inputs go first where times are equal.
    run("mergecap", "-F", "pcap", "-w", str(merged), *reversed(files))
    assert merge_whole(captures) == merged.read_bytes()[HEADER_SIZE:]


def test_equals_mergecap_of_reordered_inputs(tmp_path):
    captures = [pcap(packets(seed, 500, jitter=40_000_000)) for seed in range(3)]
    files = []
    for n, capture in enumerate(captures):
        path = write(tmp_path, f"{n}.pcap", capture)
        files.append(str(tmp_path / f"sorted{n}.pcap"))
        run("reordercap", path, files[-1])
    merged = tmp_path / "merged.pcap"
    run("mergecap", "-F", "pcap", "-w", str(merged), *reversed(files))
    ours = merge_whole(captures)
    theirs = merged.read_bytes()[HEADER_SIZE:]
    assert len(ours) == len(theirs)
    path = write(tmp_path, "ours.pcap", pcap_header() + ours)
    # reordercap's sort may swap equal times: compare the times, and the set of packets.
    fields = ("-T", "fields", "-e", "frame.time_epoch")
    assert run("tshark", "-nr", path, *fields) == run(
        "tshark", "-nr", str(merged), *fields
    )
    lines = run("tcpdump", "-nttxr", path), run("tcpdump", "-nttxr", str(merged))
    assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.parametrize("nano", [False, True])
def test_tcpdump_and_tshark_read_both_outputs(tmp_path, nano):
    records = [Record(BASE + 1_234_567_891, Cooked(payload=DATAGRAM).sll(), 1500)]
    capture = pcap(records, nano=True)
    plain = pcap_header(nano=nano) + merge_whole([capture], nano=nano)
    described = [interface(tsresol=9 if nano else 6) for _ in range(2)]
    blocks = merge_whole([pcap_header(), capture], nano=nano, pcapng=True)
    stamp = "1700000001.234567891" if nano else "1700000001.234567"
    for name, data in (
        ("a.pcap", plain),
        ("a.pcapng", section() + b"".join(described) + blocks),
    ):
        path = write(tmp_path, name, data)
        fields = ("frame.time_epoch", "udp.dstport", "frame.len", "frame.cap_len")
        shown = run(
            "tshark", "-nr", path, "-T", "fields", *(f"-e{field}" for field in fields)
        )
        assert shown.split() == [stamp.ljust(20, "0"), "2000", "1500", "48"]
        precision = ("--nano",) if nano else ()
        assert run("tcpdump", "-nttr", path, *precision).startswith(stamp + " ")


@pytest.mark.parametrize(("source", "target"), [(SLL, SLL2), (SLL2, SLL)])
def test_tools_read_what_was_converted(tmp_path, source, target):
    packet = Cooked(
        packet_type=4, address=bytes.fromhex("02a1b2c3d4e50000"), payload=DATAGRAM
    )
    data = packet.sll() if source == SLL else packet.sll2()
    capture = pcap([Record(BASE, data)], link_type=source)
    merged = merge_whole([capture], link_type=target)
    path = write(tmp_path, "a.pcap", pcap_header(link_type=target) + merged)
    shown = run("tcpdump", "-nner", path)
    assert "02:a1:b2:c3:d4:e5" in shown
    assert "192.0.2.1.1000 > 192.0.2.2.2000: UDP, length 4" in shown
    assert " Out " in shown
    fields = ("-T", "fields", "-e", "sll.pkttype", "-e", "sll.src.eth")
    shown = run("tshark", "-nr", path, *fields)
    assert shown.split() == ["4", "02:a1:b2:c3:d4:e5"]


RESOLUTIONS = [
    (None, None, 1_700_000_000_123_456),
    (0, None, 1_700_000_000),
    (3, None, 1_700_000_000_123),
    (6, 1_600_000_000, 5_000_007),
    (9, -100, 1_700_000_000 * S + 123_456_789),
    (0x80 | 10, None, (1_700_000_000 << 10) + 513),
    (0x80 | 20, 7, (1_700_000_000 << 20) + 777_777),
]


@pytest.mark.parametrize("packet", [enhanced_packet, obsolete_packet])
@pytest.mark.parametrize(("tsresol", "offset_s", "units"), RESOLUTIONS)
def test_timestamps_are_those_that_tshark_shows(
    tmp_path, packet, tsresol, offset_s, units
):
    record = Record(0, Cooked(payload=DATAGRAM).sll())
    capture = (
        section()
        + interface(tsresol=tsresol, tsoffset_s=offset_s)
        + packet(units, record)
    )
    ours = pcap_header(nano=True) + merge_whole([capture], nano=True)
    shown = {
        run("tshark", "-nr", path, "-T", "fields", "-e", "frame.time_epoch")
        for path in (
            write(tmp_path, "theirs.pcapng", capture),
            write(tmp_path, "ours.pcap", ours),
        )
    }
    assert len(shown) == 1


def test_what_mergecap_writes_is_read(tmp_path):
    captures = [pcap(packets(seed, 50)) for seed in range(3)]
    files = [
        write(tmp_path, f"{n}.pcap", capture) for n, capture in enumerate(captures)
    ]
    merged = tmp_path / "merged.pcapng"
    run("mergecap", "-F", "pcapng", "-w", str(merged), *reversed(files))
    merge = Merge(1)
    merge.receive_data(0, merged.read_bytes())
    assert merge.link_type(0) == SLL
    assert merge_whole([merged.read_bytes()]) == merge_whole(captures)


# --- Statistics blocks ---


def heartbeat_of(capture):
    merge = Merge(1)
    merge.receive_data(0, capture)
    merge.receive_eof(0)
    return merge.heartbeat(0)


def captured_with_statistics(units, *, tsresol, byte_order):
    # In front of a packet: editcap does not read on behind the last one.
    order = {"byte_order": byte_order}
    options = (
        option(1, b"ended: packets", **order)
        + statistics_time(2, units - 3, **order)
        + statistics_time(3, units + 3, **order)
        + b"".join(
            option(code, struct.pack(byte_order + "Q", code << 33), **order)
            for code in (4, 5, 7, 8)
        )
        + bytes(4)
    )
    packet = Record(0, Cooked(payload=DATAGRAM).sll())
    return (
        section(**order)
        + interface(**order, tsresol=tsresol)
        + statistics(units, **order, options=options)
        + enhanced_packet(units, packet, **order)
    )


# Without if_tsoffset: editcap writes none, and leaves the times of statistics as they are.
@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize(
    ("tsresol", "units"),
    [(tsresol, units) for tsresol, offset_s, units in RESOLUTIONS if offset_s is None],
)
def test_editcap_and_capinfos_read_the_same_statistics(
    tmp_path, tsresol, units, byte_order
):
    capture = captured_with_statistics(units, tsresol=tsresol, byte_order=byte_order)
    path = write(tmp_path, "a.pcapng", capture)
    assert "Number of stat entries = 1\n" in run("capinfos", path)
    copy = tmp_path / "b.pcapng"
    run("editcap", "-F", "pcapng", path, str(copy))
    ours, theirs = heartbeat_of(capture), heartbeat_of(copy.read_bytes())
    assert (ours.blocks, ours.read) == (1, 0)
    assert ours.delivered == 8 << 33
    assert theirs == ours._replace(read=1)  # it writes them behind all packets


def test_mergecap_takes_what_has_statistics(tmp_path):
    captures = [
        captured_with_statistics(BASE + n * S, tsresol=9, byte_order="<>"[n])
        for n in range(2)
    ]
    paths = [write(tmp_path, f"{n}.pcapng", each) for n, each in enumerate(captures)]
    merged = tmp_path / "merged.pcapng"
    run("mergecap", "-F", "pcapng", "-w", str(merged), *paths)
    assert merge_whole([merged.read_bytes()], nano=True) == merge_whole(
        captures, nano=True
    )


def test_what_dumpcap_counts_is_read(tmp_path):
    path = tmp_path / "lo.pcapng"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        command = [
            "dumpcap", "-q", "-i", "lo", "-a", "packets:5", "-w", str(path),
            "-f", f"udp dst port {port}",
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        with started(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            said = iter(process.stderr.readline, "")
            assert any(line.startswith("File: ") for line in said)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(5):
                    sender.sendto(b"counted", ("127.0.0.1", port))
            assert process.wait(10) == 0
    beat = heartbeat_of(path.read_bytes())
    assert (beat.blocks, beat.read, beat.received, beat.interface_dropped) == (
        1,
        5,
        5,
        0,
    )
    assert beat.comment == b"Counters provided by dumpcap"
    shown = run("capinfos", str(path))
    assert "Number of stat entries = 1\n" in shown
    assert "Number of packets = 5\n" in shown
