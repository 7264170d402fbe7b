"""Connections: how many, and which of them are alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct

import pytest
from aiohttp import web

from ddump_worker.connections import Connections, has_vanished
from ddump_worker.listen import Listener, parse_address
from support.namespaces import network
from support.workers import wait_until


def tcp_info(*, retransmits=0, probes=0, last_ack_ms=0) -> bytes:
    info = bytearray(104)
    info[2], info[3] = retransmits, probes
    struct.pack_into("=I", info, 56, last_ack_ms)
    return bytes(info)


@pytest.mark.parametrize(
    ("info", "vanished"),
    [
        (tcp_info(), False),
        # Nothing is under way, nothing has come: an idle stream.
        (tcp_info(last_ack_ms=10**6), False),
        (tcp_info(retransmits=3, last_ack_ms=39_999), False),
        (tcp_info(retransmits=3, last_ack_ms=40_000), True),
        (tcp_info(probes=2, last_ack_ms=50_000), True),
        # A living peer that does not read answers the probes.
        (tcp_info(probes=1, last_ack_ms=10_000), False),
        (tcp_info(probes=0, last_ack_ms=120_000), False),
    ],
)
def test_a_peer_has_vanished_when_it_leaves_repetitions_unanswered(info, vanished):
    assert has_vanished(info) is vanished


@contextlib.asynccontextmanager
async def serving(host, connections):
    """Serve an endless flood at ``host``; yield the listener."""
    ended = asyncio.Event()

    async def handle(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        finally:
            ended.set()

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    loop = asyncio.get_running_loop()
    with host.entered():
        listener = Listener(parse_address(f"{host.address}:0"))
    server = await loop.create_server(
        lambda: connections.protocol(runner.server), sock=listener.socket
    )
    try:
        yield listener.address, ended
    finally:
        server.close()
        connections.abort()
        await runner.cleanup()
        listener.close()


async def begin(net, address):
    """Connect from the client's host, and read the beginning of the flood."""
    with net.client.entered():
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((str(address.host), address.port))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await loop.sock_recv(client, 1000)
    return client


async def sweeping(connections, until) -> None:
    """Sweep until ``until`` is set, for at most 20 s."""
    async with asyncio.timeout(20):
        while not until.is_set():
            connections.sweep()
            await asyncio.sleep(0.05)


async def test_a_peer_that_vanishes_in_full_flow_is_cut(caplog):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, ended):
            client = await begin(net, address)
            net.client.run("ip", "link", "set", "port1", "down")
            await sweeping(connections, ended)
            client.close()
    assert len(connections) == 0
    assert "has vanished" in caplog.text


async def test_a_peer_that_stalls_first_and_vanishes_then_is_cut(caplog):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, ended):
            client = await begin(net, address)
            await asyncio.sleep(1)  # the window is shut, probes are answered
            connections.sweep()
            assert not ended.is_set()
            net.client.run("ip", "link", "set", "port1", "down")
            await sweeping(connections, ended)
            client.close()
    assert "has vanished" in caplog.text


async def test_a_peer_that_stalls_and_lives_is_kept(caplog):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, ended):
            client = await begin(net, address)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(6):
                    await sweeping(connections, ended)
            assert not ended.is_set()
            assert len(connections) == 1
            # It reads on, and gets what waited.
            received = 0
            while received < 1 << 20:
                received += len(
                    await asyncio.get_running_loop().sock_recv(client, 65536)
                )
            client.close()
            async with asyncio.timeout(5):
                await ended.wait()
    assert caplog.text == ""


class Transport(asyncio.Transport):
    """Takes what is written, and says how it ended."""

    def __init__(self, extra=None):
        super().__init__(extra)
        self.written = b""
        self.closed = self.aborted = False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True


async def test_connections_over_the_limit_are_answered_before_they_are_closed():
    connections = Connections(limit=1)
    first, second = Transport(), Transport()
    assert connections.admit("first", first)
    assert not connections.admit("second", second)
    head, _, body = second.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert json.loads(body)["detail"] == "all 1 connections are in use"
    assert f"Content-Length: {len(body)}".encode() in head
    assert not second.closed
    await wait_until(lambda: second.closed)
    connections.forget("first")
    connections.forget("second")
    assert connections.admit("third", Transport())
    assert (len(connections), connections.refused) == (1, 1)


async def test_very_many_over_the_limit_are_cut_at_once():
    connections = Connections(limit=0)
    transports = [Transport() for _ in range(70)]
    for number, transport in enumerate(transports):
        connections.admit(number, transport)
    assert sum(transport.aborted for transport in transports) == 6
    assert sum(bool(transport.written) for transport in transports) == 64
    await wait_until(lambda: sum(t.closed for t in transports) == 64)
    late = Transport()
    connections.admit("late", late)
    assert late.written
    await wait_until(lambda: late.closed)


async def test_sweeping_passes_over_what_is_not_tcp():
    connections = Connections(limit=9)
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as closed:
        closed.close()
        for number, sock in enumerate((None, unix, closed)):
            connections.admit(number, Transport({"socket": sock}))
        connections.sweep()
        assert len(connections) == 3


async def test_aborting_cuts_all():
    connections = Connections(limit=9)
    transports = [Transport(), Transport()]
    for number, transport in enumerate(transports):
        connections.admit(number, transport)
    connections.abort()
    assert all(transport.aborted for transport in transports)
