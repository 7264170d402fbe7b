"""Very many clients at once, through ``nginx/ddump.conf`` on a host with one core."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest

from support.crowds import cut_at_end, fill_all_streams
from support.machines import await_fact
from support.nginx import PORT
from support.site import site
from support.workers import Worker, wait_until

pytestmark = [pytest.mark.live, pytest.mark.process]

HEALTH = "/api/v1/health"
HALF = f"GET {HEALTH} HTTP/1.1\r\nHost: loc".encode()
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.fixture(scope="module", autouse=True)
def _enough_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def place():
    with site() as made:
        settings = made.folder / "etc/nginx.conf"
        text = settings.read_text()
        settings.write_text(text.replace("worker_processes auto", "worker_processes 1"))
        made.nginx.reload()
        await_fact(lambda: len(made.nginx.pids()) == 1)
        yield made


def socket_of(place):
    """Return a socket of the client's host."""
    with place.client.entered():
        made = socket.socket()
    made.setblocking(False)
    return made


@contextlib.asynccontextmanager
async def connected(place, tls=None):
    """A connection to nginx; at the end it is cut."""
    plain = socket_of(place)
    try:
        address = place.host.address
        await asyncio.get_running_loop().sock_connect(plain, (address, PORT))
        name = None if tls is None else address
        reader, writer = await asyncio.open_connection(
            sock=plain, ssl=tls, server_hostname=name
        )
    except BaseException:
        plain.close()
        raise
    async with cut_at_end(reader, writer) as both:
        yield both


async def dawdle(place, sent, tls=None):
    """Connect, send something, and return after how long nginx ended it."""
    begun = time.monotonic()
    with contextlib.suppress(OSError):  # also before hands are shaken
        async with connected(place, tls) as (reader, writer):
            writer.write(sent)
            assert await reader.read() == b""
    return time.monotonic() - begun


async def dawdle_on(place, tls):
    """Take long for each step of the way to half a header."""
    begun = time.monotonic()
    async with connected(place) as (reader, writer):
        await asyncio.sleep(4)
        await writer.start_tls(tls, server_hostname=place.host.address)
        await asyncio.sleep(3)
        writer.write(HALF[:10])
        await asyncio.sleep(2)
        writer.write(HALF[10:])
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
    return time.monotonic() - begun


async def dawdle_again(place, tls):
    """Ask for something, and then send half a header."""
    async with connected(place, tls) as (reader, writer):
        writer.write(f"GET {HEALTH} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b"200 OK" in await reader.readuntil(b'"}')
        begun = time.monotonic()
        writer.write(HALF)
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
    return time.monotonic() - begun


async def neighbour(place):
    """Ask as another program; return how long it took."""
    process = await asyncio.create_subprocess_exec(
        *place.curl_command(
            "-m", "5", "-f", "-o", "/dev/null", "-w", "%{time_total}",
            f"{place.url}{HEALTH}",
        ),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0
    return float(said)


def established(place):
    """Return how many connections nginx has."""
    told = place.host.run("ss", "-Htn", "state", "established", f"sport = :{PORT}")
    return len(told.stdout.splitlines())


async def test_a_thousand_that_send_half_a_header_are_closed_in_time(place):
    tls = place.context(None)
    dawdlers = [
        *(dawdle(place, HALF, tls) for _ in range(1000)),
        *(dawdle(place, HELLO) for _ in range(100)),
        *(dawdle(place, b"") for _ in range(100)),
        *(dawdle_on(place, tls) for _ in range(10)),
        *(dawdle_again(place, tls) for _ in range(10)),
    ]
    answers = []
    most = 0
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(each) for each in dawdlers]
        while not all(each.done() for each in begun):
            answers.append(await neighbour(place))
            most = max(most, await asyncio.to_thread(established, place))
    took = [each.result() for each in begun]
    assert most >= 1000  # it had them all at once
    assert min(took) > 9
    assert max(took) < 12
    assert len(answers) > 10
    assert max(answers) < 1
    await wait_until(lambda: established(place) == 0)


async def test_a_thousand_requests_at_the_limit_of_streams(place):
    """Eight get what they ask for, all others an answer, and nothing is left."""
    worker = Worker(process=place.worker.process, urls=[place.url])
    tls = place.context(place.authority.client("responder"))
    connector = aiohttp.TCPConnector(
        limit=0, ssl=tls, socket_factory=lambda _: socket_of(place)
    )
    async with aiohttp.ClientSession(place.url, connector=connector) as http:

        async def captured() -> bool:
            async with http.get("/capture", params={"duration": "0.1"}) as answer:
                return answer.status == 200 and len(await answer.read()) >= 24

        assert await captured()
        before = worker.descriptors(), descriptors(place)
        # A goodbye by TLS alone nginx does not hear while it streams.
        await fill_all_streams(
            http,
            worker.packet_sockets,
            leave=lambda answer: answer.connection.transport.abort(),
        )
        await wait_until(lambda: worker.packet_sockets() == 0)
        await wait_until(lambda: worker.descriptors() <= before[0])
        await wait_until(lambda: descriptors(place) <= before[1])
        assert await captured()


def descriptors(place):
    """Return how many files nginx has open that serves."""
    (pid,) = place.nginx.pids()
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
