"""Run the real worker where a link that loses frames says so: ``dropping.py OPTION...``

No link between namespaces counts what its card missed. A veth counts frames that are
longer than its MTU, which nobody gets to see, among what the host did not want
(``rx_dropped``), of which there is nothing on a quiet link. So the worker is told to read
that counter of the kernel's in the place of ``rx_missed_errors``.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.namespaces import Network

_RX_DROPPED = 6 * 8  # in rtnl_link_stats64
_MTU = 1500
_PORT = 8999
FILTER = f"udp port {_PORT}"


def _frame(size: int) -> bytes:
    udp = struct.pack(">HHHH", _PORT, _PORT, 8 + size, 0) + bytes(size)
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
        bytes([10, 78, 0, 1]), bytes([10, 78, 0, 2]),
    )  # fmt: skip
    return b"\x02\0\0\0\0\xaa\x02\0\0\0\0\xab\x08\0" + ip + udp


class Link:
    """A link to a host, which loses frames when it is asked to."""

    def __init__(self, sender: socket.socket) -> None:
        self._sender = sender

    def send(self, frames: int) -> None:
        """Send frames that arrive."""
        for _ in range(frames):
            self._sender.send(_frame(100))

    def lose(self, frames: int) -> None:
        """Send frames that are longer than the other end takes."""
        for _ in range(frames):
            with contextlib.suppress(OSError):  # it may be told at once
                self._sender.send(_frame(2 * _MTU))


@contextlib.contextmanager
def losing_link(net: Network) -> Iterator[Link]:
    """Give the first host of ``net`` such a link, as its interface ``feed``."""
    with net.feed(1) as name:
        net.client.run("ip", "link", "set", name, "mtu", str(3 * _MTU))
        with (
            net.client.entered(),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        ):
            sender.bind((name, 0))
            with net.hosts[0].entered():
                yield Link(sender)


if __name__ == "__main__":
    from ddump_worker import interfaces

    interfaces._MISSED = _RX_DROPPED
    from ddump_worker.cli import main

    main()
