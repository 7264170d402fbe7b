"""The host's network interfaces and addresses, as rtnetlink(7) tells them.

Asked by netlink and not read from /sys, as that may show another network namespace
than the one that the worker captures in.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylibpcap.base import get_iface_list  # type: ignore[import-untyped] # has no stubs

from ddump_common.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Interface", "capturable", "interfaces"]

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_IFNAME, _IFLA_STATS64, _IFLA_PROMISCUITY = 3, 23, 30
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
# rtnl_link_stats64: the eleventh counter on are rx_length_errors, over, crc, frame,
# fifo, missed. What the card lost are the last two.
_FIFO, _MISSED = 14 * 8, 15 * 8
_RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One network interface.

    ``dropped`` counts packets that it lost before the kernel saw them, since it came
    up; ``addresses`` carry their prefix.
    """

    name: str
    index: int
    up: bool
    loopback: bool
    promiscuous: bool
    dropped: int
    addresses: tuple[Address, ...] = ()


def interfaces() -> list[Interface]:
    """Return the interfaces of this network namespace, by index.

    Raises:
        CaptureError: the kernel does not tell.

    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
            netlink.bind((0, 0))
            # The kernel answers within the call: there is nothing to wait for.
            netlink.setblocking(False)
            addresses: dict[int, list[Address]] = {}
            for message in _dump(netlink, _RTM_GETADDR, _RTM_NEWADDR, _ADDRESS.size):
                index, address = _address(message)
                if address is not None:
                    addresses.setdefault(index, []).append(address)
            found = [
                _interface(message, addresses)
                for message in _dump(netlink, _RTM_GETLINK, _RTM_NEWLINK, _LINK.size)
            ]
    except OSError as exc:
        raise CaptureError(f"cannot list the network interfaces: {exc}") from exc
    return sorted(found, key=lambda interface: interface.index)


def _dump(
    netlink: socket.socket, request: int, answer: int, body: int
) -> Iterator[bytes]:
    header = _HEADER.size
    netlink.send(
        _HEADER.pack(header + body, request, _NLM_F_REQUEST | _NLM_F_DUMP, request, 0)
        + bytes(body)
    )
    while True:
        data = netlink.recv(_RECEIVE_BYTES)
        while len(data) >= header:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, header)
                raise OSError(-code, os.strerror(-code))
            if kind == answer:
                yield data[header:length]
            data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _address(message: bytes) -> tuple[int, Address | None]:
    family, prefix, _, _, index = _ADDRESS.unpack_from(message)
    attributes = _attributes(message[_ADDRESS.size :])
    # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL is ours.
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
    if family == socket.AF_INET and len(raw) == 4:
        return index, ipaddress.IPv4Interface((raw, prefix))
    if family == socket.AF_INET6 and len(raw) == 16:
        return index, ipaddress.IPv6Interface((raw, prefix))
    return index, None


def _interface(message: bytes, addresses: dict[int, list[Address]]) -> Interface:
    _, _, index, flags, _ = _LINK.unpack_from(message)
    attributes = _attributes(message[_LINK.size :])
    statistics = attributes.get(_IFLA_STATS64, b"").ljust(_MISSED + 8, b"\0")
    (promiscuity,) = struct.unpack("=I", attributes.get(_IFLA_PROMISCUITY, bytes(4)))
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0")
    return Interface(
        name=name.decode(errors="surrogateescape"),
        index=index,
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
        promiscuous=promiscuity > 0,
        dropped=struct.unpack_from("=Q", statistics, _FIFO)[0]
        + struct.unpack_from("=Q", statistics, _MISSED)[0],
        addresses=tuple(addresses.get(index, ())),
    )


def capturable() -> list[Interface]:
    """Return the interfaces that libpcap offers as well.

    Raises:
        CaptureError: the kernel does not tell.

    """
    offered = set(get_iface_list())
    return [each for each in interfaces() if each.name in offered]
