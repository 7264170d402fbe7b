"""Interfaces that are kept promiscuous while the worker runs, for mirror ports.

``any`` cannot be made promiscuous. A packet socket that receives nothing asks for it
per interface, which needs CAP_NET_RAW and no more, and the kernel takes it back when
the socket is closed, however the process ends.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from ddump_common.errors import PrivilegeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Promiscuous", "find_interface", "packet_socket"]

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_MEMBERSHIP = struct.Struct("=iHH8s")  # packet_mreq: index, type, length, address


def packet_socket() -> socket.socket:
    """Return a packet socket that receives nothing.

    Raises:
        PrivilegeError: the process lacks CAP_NET_RAW.

    """
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError as exc:
        raise PrivilegeError(
            "capturing needs the capability CAP_NET_RAW, which this process lacks",
            hint="run it as root, by systemd with AmbientCapabilities=CAP_NET_RAW, or "
            "with setpriv --inh-caps +net_raw --ambient-caps +net_raw; a file "
            "capability on a script has no effect",
        ) from exc


def find_interface(name: str) -> int:
    """Return the index of an interface that is to be promiscuous.

    Raises:
        UsageError: there is none of that name.

    """
    try:
        return socket.if_nametoindex(name)
    except OSError as exc:
        raise _unfit(name, exc) from exc


def _unfit(name: str, exc: OSError) -> UsageError:
    return UsageError(
        f"the interface {name!r} cannot be made promiscuous: {exc.strerror or exc}"
    )


class Promiscuous:
    """Keeps interfaces promiscuous until it is closed."""

    def __init__(self, names: Iterable[str]) -> None:
        """Switch them on.

        Raises:
            PrivilegeError: the process lacks CAP_NET_RAW.
            UsageError: there is no interface of a name, or it cannot be promiscuous.

        """
        self._socket = packet_socket()
        try:
            for name in names:
                self._add(name)
        except BaseException:
            self.close()
            raise

    def _add(self, name: str) -> None:
        index = find_interface(name)
        try:
            self._socket.setsockopt(
                _SOL_PACKET,
                _PACKET_ADD_MEMBERSHIP,
                _MEMBERSHIP.pack(index, _PACKET_MR_PROMISC, 0, b""),
            )
        except OSError as exc:
            raise _unfit(name, exc) from exc

    def close(self) -> None:
        """Switch them off, unless others keep them on."""
        self._socket.close()
