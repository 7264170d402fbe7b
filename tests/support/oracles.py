"""What independent tools saw of the same packets, and how their files are read."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import dpkt

from support import traffic
from support.programs import started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.namespaces import Host, Network

QUIET_SECONDS = 10

Record = tuple[int, int, bytes]
"""A timestamp in nanoseconds, a length on the wire, the bytes kept."""


@contextlib.contextmanager
def oracle(
    host: Host, path: Path, *, packets: int, link: str = "LINUX_SLL"
) -> Iterator[None]:
    """Record the test's packets with tcpdump, which ends when it has ``packets``.

    To be started after what it is compared with: then the kernel stamps once for both.
    """
    command = host.command(
        "tcpdump", "-Z", "root", "-U", "-i", "any", "-y", link, "-B", "32768",
        "--time-stamp-precision", "nano", "-w", str(path), traffic.FILTER,
    )  # fmt: skip
    with started(command, stderr=subprocess.PIPE, text=True) as process:
        said = itertools.takewhile(
            lambda line: "listening on any" not in line,
            iter(process.stderr.readline, ""),
        )
        complaint = "".join(said)
        assert process.poll() is None, complaint
        yield
        await_records(path, packets)
        process.send_signal(signal.SIGINT)
        process.wait(QUIET_SECONDS)


def await_records(path: Path, count: int) -> None:
    """Wait until a growing capture holds ``count`` records."""
    deadline = time.monotonic() + QUIET_SECONDS
    while len(read(path)) < count:
        assert time.monotonic() < deadline, f"{path}: {len(read(path))} of {count}"
        time.sleep(0.05)


def read(path: Path) -> list[Record]:
    """Return the whole records of a nanosecond SLL or SLL2 capture."""
    data = path.read_bytes()
    if len(data) < 24:
        return []
    header = dpkt.pcap.LEFileHdr(data)
    assert header.magic == 0xA1B23C4D
    assert header.linktype in (dpkt.pcap.DLT_LINUX_SLL, dpkt.pcap.DLT_LINUX_SLL2)
    records, offset = [], 24
    while offset + 16 <= len(data):
        record = dpkt.pcap.LEPktHdr(data[offset : offset + 16])
        if offset + 16 + record.caplen > len(data):
            break
        records.append(
            (
                record.tv_sec * 10**9 + record.tv_usec,
                record.len,
                data[offset + 16 : offset + 16 + record.caplen],
            )
        )
        offset += 16 + record.caplen
    return records


def replay_everywhere(
    net: Network, folder: Path, *, packets: int, packets_per_second: int
) -> None:
    """Send known packets to every host at once, from the bridge's ports."""
    with contextlib.ExitStack() as stack:
        senders = []
        for number, host in enumerate(net.hosts, start=1):
            path = folder / f"sent{number}.pcap"
            traffic.write_capture(
                path, traffic.frames(net.client, host, packets, seed=number)
            )
            senders.append(
                stack.enter_context(
                    traffic.replay(
                        net.client,
                        f"port{number}",
                        path,
                        packets_per_second=packets_per_second,
                    )
                )
            )
        for sender in senders:
            _, complaint = sender.communicate(timeout=30)
            assert sender.returncode == 0, complaint


def payloads(records: list[Record]) -> list[bytes]:
    """Return what tells one sent packet from another, in order of arrival."""
    return [data[16 + 20 + 8 :] for _, _, data in records]
