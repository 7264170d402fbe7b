"""Interfaces and addresses: iproute2 is the judge."""

from __future__ import annotations

import json
import socket
import struct

import pytest

from ddump_common.errors import CaptureError
from ddump_worker import interfaces as module
from ddump_worker.interfaces import capturable, interfaces
from support.namespaces import network


def shown_by_ip(host) -> dict[str, tuple]:
    found = {}
    addresses = json.loads(host.run("ip", "-j", "addr").stdout)
    links = json.loads(host.run("ip", "-d", "-j", "-s", "link").stdout)
    for each, link in zip(addresses, links, strict=True):
        found[each["ifname"]] = (
            each["ifindex"],
            "UP" in each["flags"],
            "LOOPBACK" in each["flags"],
            link["promiscuity"] > 0,
            {f"{a['local']}/{a['prefixlen']}" for a in each["addr_info"]},
        )
    return found


def test_they_are_those_that_ip_shows():
    with network(1, prefix="ddump-interfaces") as net:
        (host,) = net.hosts
        for command in (
            "link add dev two type veth peer name three",
            "link set two promisc on",
            "addr add 192.0.2.1/32 dev lo",
            "addr add 10.9.9.1 peer 10.9.9.2/30 dev two",
            "link set three up",
        ):
            host.run("ip", *command.split())
        host.run("sysctl", "-qw", "net.ipv6.conf.three.disable_ipv6=0")
        host.run("ip", "addr", "add", "2001:db8::1/64", "dev", "three", "nodad")
        with host.entered():
            found = interfaces()
            offered = capturable()
        assert {
            each.name: (
                each.index,
                each.up,
                each.loopback,
                each.promiscuous,
                {str(address) for address in each.addresses},
            )
            for each in found
        } == shown_by_ip(host)
        assert [each.index for each in found] == sorted(each.index for each in found)
        assert {each.name for each in offered} == {each.name for each in found}


def test_a_host_with_many_interfaces_is_told_whole():
    with network(1, prefix="ddump-interfaces") as net:
        (host,) = net.hosts
        for number in range(30):
            host.run("ip", "link", "add", f"a{number}", "type", "veth", "peer", "name",
                     f"b{number}")  # fmt: skip
        with host.entered():
            found = interfaces()
        assert len(found) == len(shown_by_ip(host)) == 62


def test_the_names_are_the_host_s():
    assert {each.name: each.index for each in interfaces()} == {
        name: index for index, name in socket.if_nameindex()
    }


def attribute(kind: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + padded


class TestMessages:
    def test_the_drops_are_those_of_the_card(self):
        counters = list(range(100, 125))
        statistics = attribute(23, struct.pack("=25Q", *counters))
        message = struct.pack("=BxHiII", 0, 1, 7, 0x1, 0) + statistics
        found = module._interface(message + attribute(3, b"x0\0"), {})
        assert found.dropped == counters[14] + counters[15]
        assert (found.name, found.index, found.up) == ("x0", 7, True)

    def test_what_is_missing_is_nothing(self):
        found = module._interface(struct.pack("=BxHiII", 0, 1, 7, 0, 0), {})
        assert (found.name, found.dropped, found.promiscuous) == ("", 0, False)

    def test_the_local_address_of_a_link_to_one_peer(self):
        message = struct.pack("=BBBBI", socket.AF_INET, 30, 0, 0, 7)
        message += attribute(1, bytes([10, 9, 9, 2])) + attribute(
            2, bytes([10, 9, 9, 1])
        )
        index, address = module._address(message)
        assert (index, str(address)) == (7, "10.9.9.1/30")

    @pytest.mark.parametrize(
        ("family", "raw"),
        [(socket.AF_INET, b""), (socket.AF_INET6, b"1234"), (99, b"1234")],
    )
    def test_other_addresses_are_left_out(self, family, raw):
        message = struct.pack("=BBBBI", family, 8, 0, 0, 7) + attribute(1, raw)
        assert module._address(message) == (7, None)

    def test_attributes_that_cannot_be_end_the_list(self):
        good = attribute(3, b"lo\0")
        assert module._attributes(good + struct.pack("=HH", 2, 9)) == {3: b"lo\0"}
        assert module._attributes(good + b"x") == {3: b"lo\0"}


class Answers:
    """A netlink socket that answers with what a test wants."""

    def __init__(self, *answers: bytes):
        self._answers = list(answers)

    def send(self, _: bytes) -> None:
        pass

    def recv(self, _: int) -> bytes:
        return self._answers.pop(0)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class TestDump:
    def test_parts_are_joined_and_others_passed_over(self):
        answers = Answers(
            message(16, b"one1") + message(99, b"zzzz"),
            message(16, b"two2") + message(3, bytes(4)),
        )
        assert list(module._dump(answers, 18, 16, 16)) == [b"one1", b"two2"]

    def test_an_error_is_raised(self):
        answers = Answers(message(2, struct.pack("=i", -1)))
        with pytest.raises(OSError, match="not permitted"):
            list(module._dump(answers, 18, 16, 16))


def test_a_kernel_that_does_not_tell_is_named(monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(module, "_dump", refuse)
    with pytest.raises(CaptureError, match="cannot list the network interfaces"):
        interfaces()
