"""Interfaces that are promiscuous for as long as a socket is open."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from ddump_common.errors import UsageError
from ddump_worker.promiscuous import Promiscuous, packet_socket
from support.namespaces import network


def promiscuity(host) -> int:
    shown = host.run("ip", "-d", "-j", "link", "show", "eth0").stdout
    return json.loads(shown)[0]["promiscuity"]


def test_it_lasts_until_it_is_closed():
    with network(1, prefix="ddump-promisc") as net:
        (host,) = net.hosts
        assert promiscuity(host) == 0
        with host.entered():
            first, second = Promiscuous(["eth0", "lo"]), Promiscuous(["eth0"])
        assert promiscuity(host) == 2
        first.close()
        assert promiscuity(host) == 1
        second.close()
        assert promiscuity(host) == 0


def test_an_unknown_interface_is_refused_and_the_others_let_go():
    with network(1, prefix="ddump-promisc") as net:
        (host,) = net.hosts
        with (
            host.entered(),
            pytest.raises(UsageError, match=r"'nosuch0' cannot .*: no inter"),
        ):
            Promiscuous(["eth0", "nosuch0"])
        assert promiscuity(host) == 0


def test_the_socket_receives_nothing():
    with packet_socket() as opened:
        opened.settimeout(0.1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
        with pytest.raises(TimeoutError):
            opened.recv(100)


def test_without_the_capability_it_says_so():
    script = (
        "from ddump_worker.promiscuous import packet_socket\n"
        "from ddump_common.errors import PrivilegeError\n"
        "try: packet_socket()\n"
        "except PrivilegeError as exc: print(exc)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw",
         sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert "CAP_NET_RAW" in done.stdout
    assert "setpriv" in done.stdout
