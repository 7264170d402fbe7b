"""Hosts that are network namespaces, joined by a bridge in a namespace of their own.

Everything made here is removed by the context manager, also when its body fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace with one interface, ``eth0``, and one address."""

    namespace: str
    address: str
    hardware_address: str

    def command(self, *arguments: str) -> list[str]:
        """Return ``arguments`` as they are run inside this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), check=True, capture_output=True, **options
        )

    def kill_connections(self, port: int) -> None:
        """Close the TCP connections to ``port`` of this host, as an administrator may."""
        self.run("ss", "--kill", "state", "established", f"( sport = :{port} )")

    @contextlib.contextmanager
    def losing(self, percent: int, *, port: int) -> Iterator[None]:
        """Lose some of the TCP segments that come to ``port`` and that leave it."""
        rules = "".join(
            f"add chain inet lossy {hook} {{ type filter hook {hook} priority 0; }}\n"
            f"add rule inet lossy {hook} tcp {side} {port} "
            f"numgen random mod 100 < {percent} drop\n"
            for hook, side in (("input", "dport"), ("output", "sport"))
        )
        self.run("nft", "-f", "-", input=f"add table inet lossy\n{rules}".encode())
        try:
            yield
        finally:
            self.run("nft", "delete", "table", "inet", "lossy")

    @contextlib.contextmanager
    def limited(self, rate: str) -> Iterator[None]:
        """Let no more leave by ``eth0`` than ``rate``, which is written as for tc."""
        self.run(
            "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate,
            "burst", "16kb", "latency", "200ms",
        )  # fmt: skip
        try:
            yield
        finally:
            self.run("tc", "qdisc", "delete", "dev", "eth0", "root")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into this host; sockets made meanwhile stay there."""
        with (
            Path("/proc/thread-self/ns/net").open() as home,
            Path("/run/netns", self.namespace).open() as there,
        ):
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Several hosts on one bridge; ``client`` is the namespace that holds the bridge."""

    client: Host
    hosts: tuple[Host, ...]

    @contextlib.contextmanager
    def feed(self, number: int) -> Iterator[str]:
        """Give host ``number``, from 1, a second interface, ``feed``.

        What is sent on the interface of the client that this yields arrives there and
        nowhere else, also while the way by the bridge is down. The frames' address is
        not the host's: they are captured, and nobody answers.
        """
        name = f"feeder{number}"
        host = self.hosts[number - 1]
        _ip("-n", self.client.namespace, "link", "add", name, "type", "veth",
            "peer", "name", "feed", "netns", host.namespace)  # fmt: skip
        try:
            _ip("-n", self.client.namespace, "link", "set", name, "up")
            _ip("-n", host.namespace, "link", "set", "feed", "up")
            yield name
        finally:
            _ip("-n", self.client.namespace, "link", "delete", name)

    @contextlib.contextmanager
    def down(self, number: int) -> Iterator[None]:
        """Take the link between host ``number``, from 1, and the bridge down."""
        port = ("-n", self.client.namespace, "link", "set", f"port{number}")
        _ip(*port, "down")
        try:
            yield
        finally:
            _ip(*port, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(
        ["ip", *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _new_namespace(name: str) -> None:
    _ip("netns", "add", name)
    # Neighbour discovery would mix into what tests count.
    for scope in ("all", "default"):
        key = f"net.ipv6.conf.{scope}.disable_ipv6=1"
        _ip("netns", "exec", name, "sysctl", "-qw", key)
    _ip("-n", name, "link", "set", "lo", "up")


@contextlib.contextmanager
def network(count: int, *, prefix: str = "ddump") -> Iterator[Network]:
    """Make ``count`` hosts with addresses 10.77.0.1 and up; the client has 10.77.0.254."""
    stem = f"{prefix}-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        client = Host(
            namespace=f"{stem}-client",
            address="10.77.0.254",
            hardware_address="02:00:00:00:00:fe",
        )
        stack.callback(_delete, client.namespace)
        _new_namespace(client.namespace)
        _ip("-n", client.namespace, "link", "add", "eth0", "address",
            client.hardware_address, "type", "bridge")  # fmt: skip
        _ip(
            "-n", client.namespace, "addr", "add", f"{client.address}/24", "dev", "eth0"
        )
        _ip("-n", client.namespace, "link", "set", "eth0", "up")
        hosts = []
        for number in range(1, count + 1):
            host = Host(
                namespace=f"{stem}-{number}",
                address=f"10.77.0.{number}",
                hardware_address=f"02:00:00:00:00:{number:02x}",
            )
            stack.callback(_delete, host.namespace)
            _new_namespace(host.namespace)
            _ip("-n", client.namespace, "link", "add", f"port{number}", "type", "veth",
                "peer", "name", "eth0", "address", host.hardware_address,
                "netns", host.namespace)  # fmt: skip
            _ip(
                "-n", client.namespace, "link", "set", f"port{number}", "master", "eth0"
            )
            _ip("-n", client.namespace, "link", "set", f"port{number}", "up")
            _ip(
                "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0"
            )
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            hosts.append(host)
        yield Network(client=client, hosts=tuple(hosts))


def may_make_namespaces() -> bool:
    """Whether a namespace can be made here, and a program run in it."""
    name = f"ddump-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "true")
    except OSError:
        return False
    finally:
        _delete(name)
    return True


def _delete(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
