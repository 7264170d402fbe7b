"""Known packets, and ways to put them on the wire of a namespace."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

import dpkt

if TYPE_CHECKING:
    from pathlib import Path

    from support.namespaces import Host

PORT = 9999
FILTER = f"udp port {PORT}"


def frame(source: Host, destination: Host, payload: bytes, *, number: int = 0) -> bytes:
    """Return an Ethernet frame of UDP; ``number`` is its identification in IP."""
    return bytes(
        dpkt.ethernet.Ethernet(
            src=bytes.fromhex(source.hardware_address.replace(":", "")),
            dst=bytes.fromhex(destination.hardware_address.replace(":", "")),
            data=dpkt.ip.IP(
                src=bytes(map(int, source.address.split("."))),
                dst=bytes(map(int, destination.address.split("."))),
                p=dpkt.ip.IP_PROTO_UDP,
                id=number & 0xFFFF,
                data=dpkt.udp.UDP(
                    sport=PORT, dport=PORT, ulen=8 + len(payload), data=payload
                ),
            ),
        )
    )


def frames(source: Host, destination: Host, count: int, *, seed: int) -> list[bytes]:
    """Return ``count`` Ethernet frames of UDP, each different, of 60 to 1500 bytes."""
    chooser = random.Random(seed)  # noqa: S311 (the same packets for the same seed)
    return [
        frame(
            source,
            destination,
            seed.to_bytes(2, "big")
            + number.to_bytes(4, "big")
            + chooser.randbytes(chooser.randint(12, 1450)),
            number=number,
        )
        for number in range(count)
    ]


def write_capture(path: Path, packets: list[bytes]) -> None:
    """Write Ethernet ``packets`` a microsecond apart, as tcpreplay reads them."""
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, packet in enumerate(packets):
            writer.writepkt(packet, 1_000_000_000 + number / 1e6)


def replay(
    namespace: Host,
    interface: str,
    path: Path,
    *,
    packets_per_second: int,
    times: int = 1,
) -> subprocess.Popen[bytes]:
    """Start tcpreplay in ``namespace``; it ends by itself when the capture is sent."""
    return subprocess.Popen(
        namespace.command(
            "tcpreplay",
            "--preload-pcap",
            f"--pps={packets_per_second}",
            f"--loop={times}",
            f"--intf1={interface}",
            str(path),
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
