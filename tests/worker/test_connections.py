"""Connections: how many, and which of them are alive."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct

import pytest
import uvloop
from aiohttp import web

from ddump_common.tls import server_context
from ddump_worker.connections import (
    Claim,
    Connection,
    Connections,
    has_arrived,
    has_vanished,
)
from ddump_worker.gate import Gate
from ddump_worker.identity import Client, Identity, IdentityKind
from ddump_worker.listen import Listener, parse_address
from support.certificates import Authority
from support.namespaces import network
from support.workers import wait_until

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"
LEFT = b"GET /left HTTP/1.1\r\nHost: x\r\n\r\n"


def as_in_a_worker(test):
    """Run a test on the event loop that workers have."""

    @functools.wraps(test)
    def run(*arguments, **options):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*arguments, **options))

    return run


def tcp_info(
    *, retransmits=0, probes=0, last_ack_ms=0, unacknowledged=0, not_sent=0
) -> bytes:
    info = bytearray(148)
    info[2], info[3] = retransmits, probes
    struct.pack_into("=I", info, 24, unacknowledged)
    struct.pack_into("=I", info, 56, last_ack_ms)
    struct.pack_into("=I", info, 144, not_sent)
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


@pytest.mark.parametrize(
    ("info", "arrived"),
    [
        (tcp_info(last_ack_ms=10**6), True),
        (tcp_info(unacknowledged=1), False),
        (tcp_info(not_sent=1), False),
    ],
)
def test_all_has_arrived_when_nothing_is_under_way(info, arrived):
    assert has_arrived(info) is arrived


@contextlib.asynccontextmanager
async def serving(host, connections, context=None):
    """Serve an endless flood at ``host``; yield its address, and an event at its end."""
    ended = asyncio.Event()

    async def stream(request):
        request.protocol.deaf = True  # as streams of the worker are
        try:
            await answer(request, 1 << 40)
        finally:
            ended.set()

    async def answer(request, size):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(size >> 16):
            await response.write(b"x" * 65536)
        await response.write_eof()
        return response

    async def short(request):
        response = await answer(request, 1 << 20)
        response.force_close()
        return response

    async def long(request):
        if token := request.query.get("token"):
            known = Identity(kind=IdentityKind.TOKEN, name=token)
            request.protocol.identify(Client(identity=known, address="192.0.2.1:1"))
        return await answer(request, 8 << 20)

    async def left(request):
        """Be over when the kernel does not take the rest of it."""
        response = web.StreamResponse()
        response.force_close()
        await response.prepare(request)
        while request.transport.get_write_buffer_size() < 48 << 10:
            await response.write(b"x" * 4096)
            await asyncio.sleep(0)
        return response

    app = web.Application()
    app.router.add_get("/", stream)
    app.router.add_get("/short", short)
    app.router.add_get("/long", long)
    app.router.add_get("/left", left)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    with host.entered():
        listener = Listener(parse_address(f"{host.address}:0"))
    tasks = asyncio.TaskGroup()

    async def accept():
        async with tasks:
            gate = Gate(
                runner.server, connections, context=lambda: context, tasks=tasks
            )
            gate.open(listener.socket)

    accepting = asyncio.get_running_loop().create_task(accept())
    try:
        yield listener.address, ended
    finally:
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        connections.abort()
        await runner.cleanup()
        listener.close()


def begin(host, address, tls=None, *, requests: bytes = REQUEST) -> socket.socket:
    """Connect from ``host``, and read the beginning of what comes."""
    with host.entered():
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((str(address.host), address.port))
    client.settimeout(5)
    if tls is not None:
        client = tls.wrap_socket(client, server_hostname=str(address.host))
    client.sendall(requests)
    assert client.recv(1000)
    return client


async def sweeping(connections, until) -> None:
    """Sweep until ``until`` is set, for at most 20 s."""
    async with asyncio.timeout(20):
        while not until.is_set():
            connections.sweep()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("encrypted", [False, True])
@as_in_a_worker
async def test_a_peer_that_vanishes_in_full_flow_is_cut(caplog, tmp_path, encrypted):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        server, tls = both(tmp_path, host, encrypted=encrypted)
        async with serving(host, connections, server) as (address, ended):
            client = await asyncio.to_thread(begin, net.client, address, tls)
            net.client.run("ip", "link", "set", "port1", "down")
            await sweeping(connections, ended)
            client.close()
    assert len(connections) == 0
    assert "has vanished" in caplog.text


@pytest.mark.parametrize("encrypted", [False, True])
@as_in_a_worker
async def test_a_peer_that_stalls_first_and_vanishes_then_is_cut(
    caplog, tmp_path, encrypted
):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        server, tls = both(tmp_path, host, encrypted=encrypted)
        async with serving(host, connections, server) as (address, ended):
            client = await asyncio.to_thread(begin, net.client, address, tls)
            await asyncio.sleep(1)  # the window is shut, probes are answered
            connections.sweep()
            assert not ended.is_set()
            net.client.run("ip", "link", "set", "port1", "down")
            await sweeping(connections, ended)
            client.close()
    assert "has vanished" in caplog.text


@as_in_a_worker
async def test_a_peer_that_stalls_and_lives_is_kept(caplog):
    connections = Connections(limit=5, vanished_ms=1500)
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, ended):
            client = await asyncio.to_thread(begin, net.client, address)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(6):
                    await sweeping(connections, ended)
            assert not ended.is_set()
            assert len(connections) == 1
            # It reads on, and gets what waited.
            await asyncio.to_thread(read, client, 1 << 20)
            client.close()
            async with asyncio.timeout(5):
                await ended.wait()
    assert caplog.text == ""


@as_in_a_worker
async def test_who_reads_nothing_and_closes_its_side_has_left():
    connections = Connections(limit=5)
    with network(1, prefix="ddump-half") as net:
        (host,) = net.hosts
        async with (
            serving(host, connections) as (address, ended),
            stalled(1, net.client, address, REQUEST) as (client,),
        ):
            (connection,) = connections._open
            await wait_until(connection._lower.get_write_buffer_size)
            assert connection.claim is Claim.STREAM
            client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                await ended.wait()


def read(client, count) -> None:
    while count > 0:
        count -= len(client.recv(65536))


@as_in_a_worker
async def test_a_stalled_peer_gets_the_end_of_what_it_asked_for(tmp_path):
    """Also by TLS, whose transports give up on their own after a while."""
    connections = Connections(limit=5)
    with network(1, prefix="ddump-stall") as net:
        (host,) = net.hosts
        server, tls = both(tmp_path, host, encrypted=True)
        async with serving(host, connections, server) as (address, _):
            client = await asyncio.to_thread(
                begin, net.client, address, tls, requests=SHORT
            )
            await asyncio.sleep(1)
            connections.sweep()
            assert len(connections) == 1
            received = await asyncio.to_thread(read_all, client)
            assert received.endswith(b"0\r\n\r\n")
            # It keeps its side open, and all was said.
            await wait_until(lambda: swept(connections))
            client.close()


def read_all(client) -> bytes:
    received = b""
    while b"0\r\n\r\n" not in received[-5:]:
        received += client.recv(65536)
    return received


def swept(connections) -> bool:
    connections.sweep()
    return len(connections) == 0


@as_in_a_worker
async def test_who_does_not_take_its_answers_is_cut(monkeypatch, caplog):
    monkeypatch.setattr("ddump_worker.connections.ANSWER_SECONDS", 0.5)
    connections = Connections(limit=5)
    with network(1, prefix="ddump-unread") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, _):
            client = await asyncio.to_thread(
                begin, net.client, address, requests=LONG * 30
            )
            await wait_until(lambda: swept(connections))
            client.close()
    assert "does not take its answer" in caplog.text


@as_in_a_worker
async def test_a_stream_may_take_longer_than_an_answer(monkeypatch, caplog):
    monkeypatch.setattr("ddump_worker.connections.ANSWER_SECONDS", 0.1)
    connections = Connections(limit=5)
    with network(1, prefix="ddump-stream") as net:
        (host,) = net.hosts
        async with serving(host, connections) as (address, ended):
            client = await asyncio.to_thread(begin, net.client, address)
            await asyncio.sleep(0.5)
            connections.sweep()
            assert not ended.is_set()
            client.close()
    assert "does not take" not in caplog.text


def pair_of(connections, accepted, gone):
    """Return two connections of one host, which are not made yet."""
    return (
        Connection(
            web.Server(None),
            connections=connections,
            loop=asyncio.get_running_loop(),
            accepted=accepted,
            address=f"10.0.0.1:{port}",
            give_up=functools.partial(gone.append, port),
        )
        for port in (1, 2)
    )


@as_in_a_worker
async def test_one_with_unread_bytes_does_not_have_to_go(monkeypatch):
    monkeypatch.setattr("ddump_worker.connections.FRESH_SECONDS", 0)
    connections, gone = Connections(limit=1), []
    here, there = socket.socketpair()
    with here, there:
        one, other = pair_of(connections, here, gone)
        there.send(b"GET")
        assert await connections.admit(one)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connections.admit(other)
        assert not gone
        here.recv(3)
        assert await connections.admit(other)
        assert (len(gone), len(connections), connections.evicted) == (1, 1, 1)
    other.forget()
    assert len(connections) == 0


@as_in_a_worker
async def test_nobody_waits_for_room_for_ever(monkeypatch):
    monkeypatch.setattr("ddump_worker.connections.FRESH_SECONDS", 0)
    connections, gone = Connections(limit=1), []
    here, there = socket.socketpair()
    with here, there:
        one, other = pair_of(connections, here, gone)
        there.send(b"GET")
        assert await connections.admit(one)
        async with asyncio.timeout(4):
            assert not await connections.admit(other)
        assert (gone, connections.refused, len(connections)) == ([], 1, 1)


def closing(connections, count) -> bool:
    """Whether there are so many, all of them closing with something left to say."""
    return [each.is_closing for each in connections._open] == [True] * count


@contextlib.asynccontextmanager
async def stalled(count, host, address, requests):
    """Have so many clients at ``host`` ask, and read no more than a beginning."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = await asyncio.to_thread(begin, host, address, requests=requests)
            clients.append(stack.enter_context(client))
        yield clients


@as_in_a_worker
async def test_nobody_can_keep_a_place_by_leaving_the_end_of_an_answer():
    """Also with bytes after it, which nobody reads any more."""
    connections = Connections(limit=3)
    with network(1, prefix="ddump-left") as net:
        (host,) = net.hosts
        async with (
            serving(host, connections) as (address, _),
            stalled(3, net.client, address, LEFT) as clients,
        ):
            await wait_until(lambda: closing(connections, 3))
            for each in clients:
                each.sendall(b"junk")
            with await asyncio.to_thread(begin, net.client, address, requests=SHORT):
                pass
    assert connections.evicted == 1


@pytest.mark.parametrize("encrypted", [False, True])
@as_in_a_worker
async def test_who_does_not_take_the_end_of_an_answer_is_cut(
    monkeypatch, caplog, tmp_path, encrypted
):
    monkeypatch.setattr("ddump_worker.connections.ANSWER_SECONDS", 0.5)
    connections = Connections(limit=5)
    with network(1, prefix="ddump-left") as net:
        (host,) = net.hosts
        server, tls = both(tmp_path, host, encrypted=encrypted)
        async with serving(host, connections, server) as (address, _):
            client = await asyncio.to_thread(
                begin, net.client, address, tls, requests=LEFT
            )
            with client:
                await wait_until(lambda: closing(connections, 1))
                connections.sweep()
                assert len(connections) == 1
                client.sendall(b"junk")
                await wait_until(lambda: swept(connections))
    assert "does not take its answer" in caplog.text


@as_in_a_worker
async def test_answers_that_are_not_taken_make_room_and_streams_do_not(caplog):
    """The oldest of the host that has most; it competes with itself."""
    connections = Connections(limit=4)
    with network(2, prefix="ddump-most") as net:
        host, other = net.hosts
        async with (
            serving(host, connections) as (address, ended),
            stalled(1, net.client, address, REQUEST),
            stalled(1, other, address, LONG),
            stalled(2, net.client, address, LONG * 30),
            contextlib.AsyncExitStack() as stack,
        ):
            stream, others, *most = connections._open
            for number in (1, 2):
                await stack.enter_async_context(stalled(1, net.client, address, LONG))
                kept = [stream, others, *most[number:]]
                assert [*connections._open][: len(kept)] == kept
            assert len(connections) == 4
            assert not ended.is_set()
    assert "made room for others, and lost its answer" in caplog.text


@as_in_a_worker
async def test_a_first_answer_is_waited_for_also_by_a_host_that_has_none(monkeypatch):
    monkeypatch.setattr("ddump_worker.connections.FRESH_SECONDS", 1)
    connections = Connections(limit=2)
    with network(2, prefix="ddump-first") as net:
        host, other = net.hosts
        async with (
            serving(host, connections) as (address, _),
            stalled(2, net.client, address, LONG),
        ):
            first, second = connections._open
            assert {first.claim, second.claim} == {Claim.FIRST}
            begun = first._since
            async with stalled(1, other, address, SHORT):
                assert asyncio.get_running_loop().time() - begun >= 1
                assert next(iter(connections._open)) is second


@as_in_a_worker
async def test_clients_that_are_known_make_room_last():
    connections = Connections(limit=3)
    known = LONG.replace(b"/long", b"/long?token=monitor")
    with network(2, prefix="ddump-known") as net:
        host, other = net.hosts
        async with (
            serving(host, connections) as (address, _),
            stalled(2, net.client, address, known),
            stalled(1, other, address, LONG),
        ):
            first, second, unknown = connections._open
            async with stalled(1, other, address, known):
                assert [first, second] == [*connections._open][:2]
                assert unknown not in connections._open
                # All of them are known now.
                async with stalled(1, other, address, LONG):
                    assert first not in connections._open
                    assert second in connections._open


@as_in_a_worker
async def test_streams_alone_turn_others_away_at_once():
    connections = Connections(limit=2)
    with network(1, prefix="ddump-full") as net:
        (host,) = net.hosts
        async with (
            serving(host, connections) as (address, ended),
            stalled(2, net.client, address, REQUEST),
        ):
            begun = asyncio.get_running_loop().time()
            with await asyncio.to_thread(begin, net.client, address) as client:
                assert asyncio.get_running_loop().time() - begun < 0.5
                client.close()
            assert not ended.is_set()
    assert (connections.refused, connections.evicted) == (1, 0)


def both(tmp_path, host, *, encrypted):
    """Return the contexts of a server on ``host`` and of its clients, or none."""
    if not encrypted:
        return None, None
    authority = Authority(tmp_path)
    pair = authority.server(host.address)
    return (
        server_context(cert=pair.cert, key=pair.key),
        ssl.create_default_context(cafile=authority.cert),
    )
