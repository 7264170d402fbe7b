"""Packets on loopback whose number and content a test knows."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Talker:
    """Sends datagrams to a port of its own, where they are received and forgotten."""

    def __init__(self, family: int = socket.AF_INET, host: str = "127.0.0.1") -> None:
        self._receiver = socket.socket(family, socket.SOCK_DGRAM)
        self._receiver.bind((host, 0))
        self.address = self._receiver.getsockname()
        self._sender = socket.socket(family, socket.SOCK_DGRAM)
        self._sender.connect(self.address)
        self._numbers = itertools.count()

    @property
    def port(self) -> int:
        return self.address[1]

    @property
    def filter(self) -> str:
        return f"udp dst port {self.port}"

    def send(self, count: int = 1, *, size: int = 32) -> list[bytes]:
        """Send ``count`` different payloads of ``size`` bytes; return them."""
        payloads = [
            next(self._numbers).to_bytes(8, "big").ljust(size, b"x")
            for _ in range(count)
        ]
        for payload in payloads:
            self._sender.send(payload)
        return payloads

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@contextlib.contextmanager
def talker(family: int = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[Talker]:
    """Open a talker for the time of the body."""
    opened = Talker(family, host)
    try:
        yield opened
    finally:
        opened.close()


def records(capture: bytes) -> list[tuple[int, int, bytes]]:
    """Return (timestamp fields as one number, length on the wire, data) of records.

    ``capture`` is in this machine's byte order and whole; the header may be missing.
    """
    if capture[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"):
        scale = 10**6 if capture[0] == 0xD4 else 10**9
        capture = capture[24:]
    else:
        scale = 10**6
    found = []
    offset = 0
    while offset < len(capture):
        seconds, fraction, caplen, length = struct.unpack_from("=IIII", capture, offset)
        data = capture[offset + 16 : offset + 16 + caplen]
        assert len(data) == caplen
        assert fraction < scale
        found.append((seconds * scale + fraction, length, data))
        offset += 16 + caplen
    return found


def payloads(capture: bytes, *, cooked: int = 16) -> list[bytes]:
    """Return the payloads of a capture of IPv4 UDP packets without options."""
    return [data[cooked + 28 :] for _, _, data in records(capture)]


def tcpdump(capture: bytes, *options: str) -> list[str]:
    """Return what tcpdump prints of a capture, by line."""
    done = subprocess.run(
        ["tcpdump", "-n", "-r", "-", *options],
        input=capture,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().splitlines()
