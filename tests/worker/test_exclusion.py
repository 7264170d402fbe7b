"""What is left out of every capture: judged packet by packet by libpcap's filter."""

from __future__ import annotations

import ipaddress
import socket
import struct
import subprocess

import dpkt
import pytest

from ddump_worker._pcap import compile_filter
from ddump_worker.exclusion import Exclusion, Service, only
from ddump_worker.interfaces import Interface

ANY = str(ipaddress.IPv4Address(0))


def interface(name: str, index: int, *addresses: str, loopback=False) -> Interface:
    return Interface(
        name=name,
        index=index,
        up=True,
        loopback=loopback,
        promiscuous=False,
        dropped=0,
        addresses=tuple(ipaddress.ip_interface(text) for text in addresses),
    )


HOST = [
    interface("lo", 1, "127.0.0.1/8", "::1/128", loopback=True),
    interface("eth0", 2, "10.0.0.5/24", "2001:db8::5/64", "fe80::5/64"),
    interface("eth1", 3),
]


def service(address: str, port: int = 8475) -> Service:
    return Service(address=ipaddress.ip_address(address), port=port)


def packet(source: str, sport: int, destination: str, dport: int, *, udp=False):
    """Return a cooked packet."""
    if udp:
        inner = dpkt.udp.UDP(sport=sport, dport=dport)
        protocol = dpkt.ip.IP_PROTO_UDP
    else:
        inner = dpkt.tcp.TCP(sport=sport, dport=dport)
        protocol = dpkt.ip.IP_PROTO_TCP
    version = ipaddress.ip_address(source).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    ends = {
        "src": socket.inet_pton(family, source),
        "dst": socket.inet_pton(family, destination),
    }
    if version == 4:
        data = bytes(dpkt.ip.IP(p=protocol, data=inner, **ends))
    else:
        data = bytes(
            dpkt.ip6.IP6(nxt=protocol, plen=len(inner), hlim=9, data=inner, **ends)
        )
    protocol = 0x0800 if version == 4 else 0x86DD
    return struct.pack(">HHH8sH", 0, 1, 6, b"", protocol) + data


def is_captured(expressions: list[str], data: bytes) -> bool:
    """Return whether tcpdump finds that a packet matches all of ``expressions``."""
    header = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 113)
    record = struct.pack("=IIII", 1, 0, len(data), len(data)) + data
    joined = " and ".join(f"({each})" for each in expressions)
    done = subprocess.run(
        ["tcpdump", "-nr", "-", joined],
        input=header + record,
        capture_output=True,
        check=True,
    )
    return bool(done.stdout)


def excluded_by(*services: Service) -> list[str]:
    # The rule about loopback's copies needs a live capture: see the worker's tests.
    expressions = Exclusion(services=services).expressions(HOST)
    return [each for each in expressions if "ifindex" not in each]


@pytest.mark.parametrize(
    ("address", "data", "captured"),
    [
        # To the service and from it, at each of the host's addresses.
        (ANY, packet("10.0.0.9", 40000, "10.0.0.5", 8475), False),
        (ANY, packet("10.0.0.5", 8475, "10.0.0.9", 40000), False),
        (ANY, packet("127.0.0.1", 40000, "127.0.0.1", 8475), False),
        (ANY, packet("127.0.0.1", 8475, "127.0.0.1", 40000), False),
        (ANY, packet("127.0.0.1", 40000, "127.3.2.1", 8475), False),
        ("::", packet("2001:db8::9", 40000, "2001:db8::5", 8475), False),
        ("::", packet("fe80::5", 8475, "fe80::9", 40000), False),
        ("::", packet("::1", 40000, "::1", 8475), False),
        # That port on another host, and this host as its client.
        (ANY, packet("10.0.0.5", 40000, "10.0.0.9", 8475), True),
        (ANY, packet("10.0.0.9", 8475, "10.0.0.5", 40000), True),
        (ANY, packet("10.0.0.8", 40000, "10.0.0.9", 8475), True),
        ("::", packet("2001:db8::9", 8475, "2001:db8::5", 40000), True),
        # Other ports, other protocols.
        (ANY, packet("10.0.0.9", 40000, "10.0.0.5", 22), True),
        (ANY, packet("10.0.0.9", 8475, "10.0.0.5", 22), True),
        (ANY, packet("10.0.0.9", 40000, "10.0.0.5", 8475, udp=True), True),
        # A listener on one address is that address alone.
        ("10.0.0.5", packet("10.0.0.9", 40000, "10.0.0.5", 8475), False),
        ("10.0.0.5", packet("127.0.0.1", 40000, "127.0.0.1", 8475), True),
        ("127.0.0.1", packet("127.0.0.1", 40000, "127.0.0.1", 8475), False),
        ("127.0.0.1", packet("10.0.0.9", 40000, "10.0.0.5", 8475), True),
        ("::1", packet("::1", 8475, "::1", 40000), False),
        # Another family is not meant.
        (ANY, packet("2001:db8::9", 40000, "2001:db8::5", 8475), True),
        ("::", packet("10.0.0.9", 40000, "10.0.0.5", 8475), True),
    ],
)
def test_the_service_is_left_out_and_nothing_else(address, data, captured):
    assert is_captured(excluded_by(service(address)), data) is captured


def test_each_listener_is_left_out():
    expressions = excluded_by(service("127.0.0.1", 1000), service("10.0.0.5", 2000))
    first = packet("127.0.0.1", 5, "127.0.0.1", 1000)
    second = packet("10.0.0.9", 5, "10.0.0.5", 2000)
    neither = packet("127.0.0.1", 5, "127.0.0.1", 2000)
    assert [is_captured(expressions, each) for each in (first, second, neither)] == [
        False,
        False,
        True,
    ]


def test_what_the_operator_names_is_left_out_whole():
    expressions = Exclusion(operator=("port 1 or port 2", "arp")).expressions([])
    assert not is_captured(expressions, packet("1.1.1.1", 9, "1.1.1.2", 2))
    assert is_captured(expressions, packet("1.1.1.1", 9, "1.1.1.2", 3))


def test_loopback_s_second_copies_are_left_out_by_index():
    assert Exclusion().expressions(HOST) == ["not (ifindex 1 and outbound)"]


def test_a_host_without_addresses_has_a_valid_filter():
    (expression,) = Exclusion(services=(service(ANY),)).expressions([])
    assert compile_filter(expression, link_type=113, snaplen=96)


def test_a_host_with_many_addresses_has_a_filter_that_the_kernel_takes():
    expressions = Exclusion(services=(service("::"),)).expressions(crowded(128))
    code = compile_filter(" and ".join(expressions), link_type=113, snaplen=96)
    assert len(code) < 3000 * 8
    assert is_captured(expressions, packet("fd00::1", 8475, "fd00::2", 4000))


def crowded(count: int) -> list[Interface]:
    """Return a host whose addresses differ in each word."""
    numbers = (n * 0x1_0000_0001_0000_0001_0000_0001 for n in range(1, count + 1))
    return [interface("eth0", 2, *(f"{ipaddress.IPv6Address(n)}/64" for n in numbers))]


def test_a_host_with_too_many_addresses_leaves_the_port_out(caplog):
    exclusion = Exclusion(
        services=(service("::"), service("::", 9000), service("127.0.0.1", 7000))
    )
    for _ in range(2):
        expressions = exclusion.expressions(crowded(2000))
        code = compile_filter(" and ".join(expressions), link_type=113, snaplen=96)
        assert len(code) < 100 * 8
    assert not is_captured(expressions, packet("fd00::1", 8475, "fd00::2", 4000))
    assert not is_captured(expressions, packet("fd00::1", 4000, "fd00::2", 9000))
    assert is_captured(expressions, packet("10.0.0.9", 40000, "10.0.0.8", 7000))
    assert [record.args for record in caplog.records] == [(8475,), (9000,)]


def test_only_some_interfaces():
    assert only([3]) == "ifindex 3"
    assert only([3, 5]) == "ifindex 3 or ifindex 5"
