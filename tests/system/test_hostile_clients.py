"""Very many clients at once, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import subprocess
import time
from urllib.parse import quote

import aiohttp
import pytest

from support.certificates import Authority
from support.crowds import fill_all_streams
from support.namespaces import network
from support.nginx import PORT as NGINX_PORT
from support.site import site
from support.traffic import FILTER, PORT
from support.workers import Worker, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]


@pytest.fixture(autouse=True)
def _enough_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_thousand_requests_at_the_limit_of_streams(tmp_path, encrypted):
    """Eight get what they ask for, all others an answer, and nothing is left."""
    options: tuple[str, ...] = ()
    tls = None
    if encrypted:
        authority = Authority(tmp_path)
        pair, mine = authority.server("127.0.0.1"), authority.client("alice")
        options += (
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(authority.cert),
        )  # fmt: skip
        tls = ssl.create_default_context(cafile=authority.cert)
        tls.load_cert_chain(mine.cert, mine.key)
    connector = aiohttp.TCPConnector(limit=0, ssl=tls or True)
    async with (
        worker(*options, anonymous=not encrypted) as running,
        aiohttp.ClientSession(running.url, connector=connector) as http,
    ):
        async with http.get("/api/v1/status") as answer:
            assert answer.status == 200
        before = running.descriptors()
        await fill_all_streams(http, running.packet_sockets)

        async def free() -> bool:
            async with http.get("/api/v1/status") as answer:
                said = await answer.json()
            return not said["streams"] and said["memory"]["used_bytes"] == 0

        await wait_until(free)
        assert running.packet_sockets() == 0
        await wait_until(lambda: running.descriptors() <= before)
        async with http.get("/capture", params={"duration": "0.1"}) as answer:
            assert answer.status == 200
            assert len(await answer.read()) >= 24


async def test_clients_that_vanish_lose_their_handles_within_a_minute(tmp_path):
    """By TLS: one to which nothing is sent, and one to which something always is."""
    authority = Authority(tmp_path)
    with network(1, prefix="ddump-gone") as net, site() as place:
        (host,) = net.hosts
        pair = authority.server(host.address)
        async with worker(
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(authority.cert),
            listen=[f"{host.address}:0"], prefix=host.command(), anonymous=False,
        ) as running, asyncio.TaskGroup() as tasks:  # fmt: skip
            tasks.create_task(vanish(net, running, authority))
            tasks.create_task(vanish_behind_nginx(place))
        assert running.text.count("identity=cert:CN=alice") == 2
        assert running.text.count("has vanished") == 1  # of the other TCP knows


async def vanish_behind_nginx(place):
    """Do the same there, beside a client that lives and does not read: it remains."""
    proxied = Worker(process=place.worker.process, urls=[place.url])
    tls = place.context(place.authority.client("responder"))
    with (
        place.connect(tls, receive_buffer=4096, source=place.host) as paused,
        place.client.entered(),
        socket.socket(type=socket.SOCK_DGRAM) as sender,
    ):
        paused.sendall(
            f"GET /capture?filter={quote(FILTER)} HTTP/1.1\r\n"
            f"Host: {place.host.address}\r\n\r\n".encode()
        )
        place.await_running(1)

        for _ in range(5000):  # more than is kept on the way to it
            sender.sendto(bytes(1400), (place.host.address, PORT))

        def is_paused() -> bool:
            mine = f"sport = :{NGINX_PORT} and dst {place.host.address}"
            told = place.host.run("ss", "-Htno", "state", "established", mine)
            return b"timer:(persist" in told.stdout

        await wait_until(is_paused)
        await vanish(place.net, proxied, place.authority, remaining=1)
        assert is_paused()


async def vanish(net, running, authority, *, remaining=0):
    """Have two clients ask a worker and vanish; all but ``remaining`` handles go."""
    mine = authority.client("alice")
    async with contextlib.AsyncExitStack() as stack:
        before = running.packet_sockets()
        for accept in ("application/vnd.tcpdump.pcap", "application/x-pcapng"):
            process = await asyncio.create_subprocess_exec(
                *net.client.command(
                    "curl", "-sSN", "--cacert", str(authority.cert),
                    "--cert", str(mine.cert), "--key", str(mine.key),
                    "-H", f"Accept: {accept}", f"{running.url}/capture?filter=icmp",
                ),
                stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert len(await process.stdout.readexactly(24)) == 24
        assert running.packet_sockets() == before + 2
        net.client.run("nft", "-f", "-", input=_DEAF)
        vanished = time.monotonic()
        await wait_until(lambda: running.packet_sockets() == remaining, seconds=58)
        assert time.monotonic() - vanished > 20  # no sooner: networks have pauses


_DEAF = b"""
add table inet gone
add chain inet gone input { type filter hook input priority 0; policy drop; }
add chain inet gone output { type filter hook output priority 0; policy drop; }
"""
