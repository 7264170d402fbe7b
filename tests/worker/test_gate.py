"""The gate of a real worker: TLS, who is turned away there, and for how long it waits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import resource
import socket
import ssl
import subprocess
import time

import aiohttp
import pytest

from support.certificates import EARLY, EXPIRED, Authority, self_signed
from support.crowds import cut_at_end
from support.programs import DDUMP
from support.workers import Worker, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n"
HALF = b"GET /api/v1/health HTTP/1.1\r\nHost: loc"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
DESCRIPTORS = 4096
LIMIT = ("--max-connections", "512")


@pytest.fixture(autouse=True)
def _enough_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def options(authority):
    """Those of a worker that asks for certificates."""
    pair = authority.server("127.0.0.1")
    return (
        "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
        "--tls-client-ca", str(authority.cert), "--tls-crl", str(authority.crl),
    )  # fmt: skip


def context(authority, pair=None, version=None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.cert)
    if pair is not None:
        made.load_cert_chain(pair.cert, pair.key)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


def requests(running: Worker) -> list[str]:
    """Return the lines of the log that are about requests."""
    return [line for line in running.said if " INFO request " in line]


def port_of(running: Worker) -> int:
    return int(running.url.rpartition(":")[2])


@contextlib.asynccontextmanager
async def connected(running: Worker, tls=None, *, local="127.0.0.1"):
    """A connection; at the end it is cut."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(running), ssl=tls, local_addr=(local, 0)
    )
    async with cut_at_end(reader, writer) as both:
        yield both


async def asked(
    running: Worker, request: bytes, tls=None, *, local="127.0.0.1"
) -> bytes:
    """Send ``request`` and return all that comes."""
    async with connected(running, tls, local=local) as (reader, writer):
        writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with asyncio.timeout(5):
            return await reader.read()


class TestTls:
    @pytest.mark.parametrize(
        "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
    )
    async def test_a_right_certificate_is_let_in(self, options, authority, version):
        tls = context(authority, authority.client("alice"), version)
        async with worker(*options, anonymous=False) as running:
            assert running.url.startswith("https://127.0.0.1:")
            answer = await asked(running, HEALTH, tls)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            # A connection is kept for more requests.
            async with connected(running, tls) as (reader, writer):
                for _ in range(3):
                    writer.write(HEALTH)
                    assert b"200 OK" in await reader.readuntil(b'"}')
        assert "handshake" not in running.text

    @pytest.mark.parametrize(
        ("client", "alert", "reason"),
        [
            ("none", "CERTIFICATE_REQUIRED", "peer did not return a certificate"),
            ("other", "UNKNOWN_CA", "certificate: unable to get local issuer"),
            ("self-signed", "UNKNOWN_CA", "certificate: self-signed certificate"),
            ("expired", "CERTIFICATE_EXPIRED", "certificate: certificate has expired"),
            ("early", "BAD_CERTIFICATE", "certificate: certificate is not yet valid"),
            ("revoked", "CERTIFICATE_REVOKED", "certificate: certificate revoked"),
            (
                "server",
                "UNSUPPORTED_CERTIFICATE",
                "certificate: unsuitable certificate",
            ),
        ],
    )
    async def test_a_wrong_one_is_told_so_and_logged(
        self, tmp_path, options, authority, client, alert, reason
    ):
        pairs = {
            "other": lambda: Authority(tmp_path, "other").client("alice"),
            "self-signed": lambda: self_signed(tmp_path, "alice"),
            "expired": lambda: authority.client("alice", made=EXPIRED),
            "early": lambda: authority.client("alice", made=EARLY),
            "revoked": lambda: authority.client("alice"),
            "server": lambda: authority.server("localhost"),
        }
        pair = None if client == "none" else pairs[client]()
        if client == "revoked":
            authority.revoke(pair)
        async with worker(*options, anonymous=False) as running:
            await asked(running, HEALTH, context(authority, authority.client("right")))
            before = running.descriptors()
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                with pytest.raises(ssl.SSLError) as caught:
                    await asked(running, HEALTH, context(authority, pair, version))
                if client != "none" or version is ssl.TLSVersion.TLSv1_3:
                    assert alert in caught.value.reason
            await wait_until(lambda: running.text.count("handshake") == 2)
            await wait_until(lambda: running.descriptors() <= before)
        lines = re.findall(
            r"the TLS handshake with 127\.0\.0\.1:\d+ failed: (.*)", running.text
        )
        assert len(lines) == 2
        assert all(reason in line for line in lines)

    async def test_versions_before_1_2_are_refused(self, options):
        async with worker(*options, anonymous=False) as running:
            said = await asyncio.to_thread(
                subprocess.run,
                ["openssl", "s_client", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0",
                 "-connect", f"127.0.0.1:{port_of(running)}"],
                input=b"", capture_output=True, check=False,
            )  # fmt: skip
            assert said.returncode == 1
            assert b"alert protocol version" in said.stderr
            await wait_until(lambda: "unsupported protocol" in running.text)

    @pytest.mark.parametrize(
        "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
    )
    async def test_no_session_outlives_what_was_revoked(
        self, options, authority, version
    ):
        # Whoever resumes one does not show its certificate again.
        alice = authority.client("alice")
        tls = context(authority, alice, version)

        def session(before=None) -> tuple[ssl.SSLSession | None, bool]:
            with (
                socket.create_connection(("127.0.0.1", port_of(running))) as plain,
                tls.wrap_socket(
                    plain, server_hostname="127.0.0.1", session=before
                ) as shaken,
            ):
                shaken.sendall(HEALTH)
                assert b"200 OK" in shaken.recv(4096)
                return shaken.session, shaken.session_reused

        async with worker(*options, anonymous=False) as running:
            first, _ = await asyncio.to_thread(session)
            await running.hang_up()
            _, reused = await asyncio.to_thread(session, first)
            assert not reused
            authority.revoke(alice)
            await running.hang_up()
            with pytest.raises(ssl.SSLError, match=r"(?i)revoked"):
                await asyncio.to_thread(session, first)

    async def test_plain_http_is_told_of_https(self, options):
        async with worker(*options, anonymous=False) as running:
            answer = await asked(running, HEALTH)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"application/problem+json" in head
            assert b"Retry-After" not in head
            assert "https://" in json.loads(body)["hint"]
            await wait_until(lambda: len(requests(running)) == 1)
        (line,) = requests(running)
        assert re.search(
            r" identity=null address=127\.0\.0\.1:\d+ method=null path=null status=400 "
            r'ended="This is a port of https: the request came without TLS"',
            line,
        )

    async def test_plain_http_cannot_fill_the_log_and_is_counted(
        self, options, authority
    ):
        tls = context(authority, authority.client("alice"))
        field = b"\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n"
        asking = HEALTH.replace(b"\r\n\r\n", field)
        async with worker(*options, anonymous=False) as running:
            for _ in range(40):
                assert b"400 Bad Request" in await asked(running, asking)
            answer = await asked(running, METRICS, tls)
            assert b"ddump_worker_failed_handshakes_total 40.0\n" in answer
        assert len(requests(running)) == 31  # and that for the metrics
        assert "0123456789abcdef" not in running.text

    async def test_connections_that_lead_to_nothing_leave_nothing(
        self, options, authority
    ):
        alice = context(authority, authority.client("alice"))
        async with worker(*options, anonymous=False) as running:
            await asked(running, HEALTH, alice)
            before = running.descriptors()
            for sent in (b"", b"\x16", b"\x16\x03\x01\xff\xff", b"\x16" * 5000, b"\0"):
                for _ in range(20):
                    async with connected(running) as (_, writer):
                        writer.write(sent)
                        if writer.transport.get_write_buffer_size():
                            await writer.drain()
            await asked(running, HEALTH, alice)
            await wait_until(lambda: running.descriptors() <= before)

    async def test_strangers_cannot_fill_the_log(self, options, authority):
        async with worker(*options, anonymous=False) as running:
            for _ in range(100):
                with pytest.raises((ssl.SSLError, OSError)):
                    await asked(running, HEALTH, context(authority))
            await wait_until(lambda: running.text.count("handshake") >= 30)
            await stop_soon(running)
        assert running.text.count("the TLS handshake with") == 30

    async def test_all_that_failed_are_counted(self, options, authority):
        tls = context(authority, authority.client("alice"))
        async with worker(*options, anonymous=False) as running:
            for _ in range(40):
                with pytest.raises((ssl.SSLError, OSError)):
                    await asked(running, HEALTH, context(authority))
            answer = await asked(running, METRICS, tls)
            assert b"ddump_worker_failed_handshakes_total 40.0\n" in answer


async def stop_soon(running: Worker) -> None:
    running.terminate()
    await running.process.wait()


class TestTime:
    async def test_a_thousand_that_send_half_a_header_are_closed_in_time(
        self, options, authority
    ):
        """Of a worker in plain, and of one by TLS, where some do not even shake hands."""
        tls = context(authority, authority.client("alice"))
        async with (
            worker(*LIMIT) as plain,
            worker(*options, *LIMIT, anonymous=False) as encrypted,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(
                outlasted(plain, [dawdle(plain, HALF) for _ in range(1000)], authority)
            )
            tasks.create_task(
                outlasted(
                    encrypted,
                    [
                        *(dawdle(encrypted, HALF, tls) for _ in range(500)),
                        *(dawdle(encrypted, HELLO) for _ in range(250)),
                        *(dawdle(encrypted, b"") for _ in range(249)),
                        dawdle_late(encrypted, tls),
                    ],
                    authority,
                )
            )


async def outlasted(running: Worker, dawdlers, authority) -> None:
    """Have others ask meanwhile; all dawdlers are closed, and nobody has to wait."""
    took, answers = await while_others(running, dawdlers, authority)
    assert max(took) < 12
    # It never had more than its limit: others made room.
    assert sum(each < 9 for each in took) >= 400
    # To shake hands late gives nobody more time.
    assert took[-1] > 9
    assert len(answers) > 10
    assert max(answers) < 1
    await wait_until(lambda: nothing_established(running))


async def dawdle(running: Worker, sent: bytes, tls=None) -> float:
    """Connect, send something, and return after how long the worker ended it."""
    begun = time.monotonic()
    with contextlib.suppress(OSError):  # also before hands are shaken
        async with connected(running, tls) as (reader, writer):
            writer.write(sent)
            await reader.read()
    return time.monotonic() - begun


async def dawdle_late(running: Worker, tls) -> float:
    """Do the same, but begin to shake hands when most of the time is over."""
    begun = time.monotonic()
    async with connected(running, local="127.0.0.3") as (reader, writer):
        await asyncio.sleep(6)
        await writer.start_tls(tls, server_hostname="127.0.0.1")
        writer.write(HALF)
        await closed(reader, seconds=8)
    return time.monotonic() - begun


async def while_others(running, dawdlers, authority) -> tuple[list[float], list[float]]:
    """Return how long each dawdler was there, and how long others took meanwhile."""
    pair = authority.client("neighbour")
    answers = []
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(each) for each in dawdlers]
        while not all(each.done() for each in started):
            answers.append(await neighbour(running, authority, pair))
    return [each.result() for each in started], answers


async def neighbour(running: Worker, authority, pair) -> float:
    """Ask from another address, as another program; return how long it took."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-m", "5", "--interface", "127.0.0.2", "-w", "%{time_total}",
        "--cacert", authority.cert, "--cert", pair.cert, "--key", pair.key,
        "-o", "/dev/null", "-f", f"{running.url}/api/v1/health",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0
    return float(said)


def nothing_established(running: Worker) -> bool:
    said = subprocess.run(
        ["ss", "-Htn", "state", "established", f"( sport = :{port_of(running)} )"],
        check=True, capture_output=True,
    )  # fmt: skip
    return not said.stdout


class TestRoom:
    async def test_the_oldest_idle_one_makes_room(self, options, authority):
        tls = context(authority, authority.client("alice"))
        options = (*options, "--max-connections", "3")
        async with (
            worker(*options, anonymous=False) as running,
            connected(running) as (silent, _),
            connected(running, tls) as (half, half_writer),
            aiohttp.ClientSession() as http,
            http.get(f"{running.url}/capture?filter=icmp", ssl=tls) as stream,
        ):
            half_writer.write(HALF)
            await stream.content.readexactly(24)
            assert b"200 OK" in await asked(running, HEALTH, tls)
            await closed(silent)
            async with connected(running, tls) as (reader, writer):
                writer.write(HEALTH)
                assert b"200 OK" in await reader.readuntil(b'"}')
                assert b"200 OK" in await asked(running, HEALTH, tls)
                await closed(half)
                assert b"200 OK" in await asked(running, HEALTH, tls)
                writer.write(HEALTH)  # it was not the oldest
                assert b"200 OK" in await reader.readuntil(b'"}')
            assert not stream.content.at_eof()

    # Both ends of so many handshakes have to be done before the last is tired of waiting.
    @pytest.mark.parametrize(("encrypted", "many"), [(False, 200), (True, 60)])
    async def test_a_burst_over_the_limit_is_answered_all(
        self, options, authority, encrypted, many
    ):
        """From one host: none of them has to go for the next before it was heard."""
        tls = context(authority, authority.client("alice")) if encrypted else None
        options = (*(options if encrypted else ()), "--max-connections", "20")
        async with (
            worker(*options, anonymous=not encrypted) as running,
            asyncio.timeout(10),
            asyncio.TaskGroup() as tasks,
        ):
            every = [
                tasks.create_task(asked(running, HEALTH, tls)) for _ in range(many)
            ]
        assert {each.result()[:15] for each in every} == {b"HTTP/1.1 200 OK"}

    @pytest.mark.parametrize("encrypted", [False, True])
    async def test_streams_alone_turn_others_away(self, options, authority, encrypted):
        alice = authority.client("alice")
        tls = context(authority, alice) if encrypted else None
        options = (*(options if encrypted else ()), "--max-connections", "2")
        async with (
            worker(*options, anonymous=not encrypted) as running,
            aiohttp.ClientSession() as http,
            http.get(f"{running.url}/capture?filter=icmp", ssl=tls or True) as first,
            http.get(f"{running.url}/capture?filter=icmp", ssl=tls or True) as second,
        ):
            for stream in (first, second):
                await stream.content.readexactly(24)
            answer = await asked(running, HEALTH, tls)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"Retry-After: 5\r\n" in head
            assert b"Ddump-Host: " in head
            assert json.loads(body)["detail"] == "all 2 connections are in use"
            shown = (
                "--ca", authority.cert, "--cert", alice.cert, "--key", alice.key,
            )  # fmt: skip
            said = await ddump_says(*(shown if encrypted else ()), running.url)
            assert "503: " in said
            assert "all 2 connections are in use" in said

            await wait_until(lambda: len(requests(running)) > 1)
            first.close()
            await wait_until(lambda: answered(running, tls))
        for line in requests(running)[:2]:
            assert re.search(
                r" identity=null address=127\.0\.0\.1:\d+ method=null path=null status=503 "
                r'ended="Too many connections: all 2 connections are in use"',
                line,
            )

    @pytest.mark.parametrize("sent", [b"", HALF])
    async def test_nobody_waits_behind_those_of_another_host(self, sent):
        """Who keeps coming, and far faster than places are free again."""
        async with (
            worker("--max-connections", "8") as running,
            flood(running, sent=sent) as opened,
        ):
            await wait_until(lambda: len(opened) > 300)
            # Every one of that host's is new, and so many wait as may.
            for _ in range(5):
                begun = time.monotonic()
                assert b"200 OK" in await asked(running, HEALTH, local="127.0.0.2")
                assert time.monotonic() - begun < 0.5

    async def test_who_says_nothing_goes_before_who_waits_is_tired(self):
        async with (
            worker("--max-connections", "8") as running,
            flood(running, rate=40) as opened,
        ):
            await wait_until(lambda: len(opened) > 60)
            begun = time.monotonic()
            assert b"200 OK" in await asked(running, HEALTH)
            assert time.monotonic() - begun < 0.5

    @pytest.mark.parametrize("encrypted", [False, True])
    async def test_a_crowd_that_says_nothing_hears_no_less_of_streams_alone(
        self, options, authority, encrypted
    ):
        alice = authority.client("alice")
        tls = context(authority, alice) if encrypted else None
        options = (*(options if encrypted else ()), "--max-connections", "1")
        async with (
            worker(*options, anonymous=not encrypted) as running,
            aiohttp.ClientSession() as http,
            http.get(f"{running.url}/capture?filter=icmp", ssl=tls or True) as stream,
            flood(running) as opened,
        ):
            await stream.content.readexactly(24)
            await wait_until(lambda: len(opened) > 200)
            for _ in range(10):
                answer = await asked(running, HEALTH, tls, local="127.0.0.2")
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"Retry-After: 5\r\n" in answer

    async def test_behind_a_proxy_its_clients_compete_each_for_itself(self, tmp_path):
        async with (
            worker(
                "--proxy-uid", "root", "--max-connections", "4",
                listen=[f"unix:{tmp_path}/w"],
            ) as running,
            unread(running, "192.0.2.9") as (one, _),
            unread(running, "192.0.2.1") as (oldest, _),
            unread(running, "192.0.2.1"),
            unread(running, "192.0.2.1"),
            unix(running) as (reader, writer),
        ):  # fmt: skip
            writer.write(HEALTH)
            assert b"200 OK" in await reader.readuntil(b'"}')
            # Each gets what is on its way; the rest of it he who was alone.
            assert await answers(oldest) < UNREAD
            assert await answers(one) == UNREAD
            await wait_until(lambda: "192.0.2.1:1 made room" in running.text)

    async def test_who_makes_room_is_said_to_have(self):
        slow = "%20or%20".join(f"port%20{number}" for number in range(1, 301))
        asking = f"GET /capture?filter={slow} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        async with (
            worker("--max-connections", "1") as running,
            connected(running) as (reader, writer),
        ):
            writer.write(asking.encode())
            await wait_until(lambda: running.children())
            assert await answered(running)
            await closed(reader)
            await wait_until(lambda: "path=/capture" in running.text)
        (line,) = (line for line in running.said if "path=/capture" in line)
        assert " status=null ended=evicted " in line

    async def test_very_many_over_the_limit_are_cut_at_once(self):
        async with (
            worker("--max-connections", "1") as running,
            aiohttp.ClientSession() as http,
            http.get(f"{running.url}/capture?filter=icmp") as stream,
            contextlib.AsyncExitStack() as stack,
        ):
            await stream.content.readexactly(24)
            before = running.descriptors()
            for _ in range(300):
                await stack.enter_async_context(connected(running))
            # All are answered; 64 are waited for, a second at most, the others closed.
            await wait_until(lambda: running.descriptors() <= before)
            stream.close()
            await wait_until(lambda: answered(running))
            answer = await asked(running, METRICS)
            refused = re.search(rb"refused_connections_total (\d+)", answer)[1]
            assert int(refused) >= 300
        turned_away = [each for each in requests(running) if "Too many" in each]
        assert len(turned_away) == 30
        assert all("status=503" in line for line in turned_away)


@contextlib.asynccontextmanager
async def flood(running: Worker, *, sent: bytes = b"", rate: int = 300):
    """Connect so often each second, keeping the last 600; yield all that were opened."""
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        for number in itertools.count():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
                writer.write(sent)
                opened.append(writer)
            if number >= 600:
                opened[number - 600].transport.abort()
            await asyncio.sleep(1 / rate)

    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(connect())
        try:
            yield opened
        finally:
            connecting.cancel()
            for each in opened:
                each.transport.abort()


UNREAD = 60


@contextlib.asynccontextmanager
async def unix(running: Worker):
    """A connection to the worker's socket; at the end it is cut."""
    path = running.url.removeprefix("unix:")
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def unread(running: Worker, client: str):
    """A connection of the proxy for a client that asks for much, and reads nothing."""
    asking = (
        "GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n"
        f"Ddump-Client-Address: {client}:1\r\n\r\n"
    )
    async with unix(running) as (reader, writer):
        writer.write(asking.encode() * UNREAD)
        await wait_until(lambda: f"address={client}:1 " in running.text)
        yield reader, writer


async def answers(reader) -> int:
    """Read until all have come, or nothing more does; return how many did."""
    count = 0
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        async with asyncio.timeout(5):
            while count < UNREAD:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)[1]
                await reader.readexactly(int(length))
                count += 1
    return count


async def closed(reader, *, seconds: float = 5) -> None:
    """Wait until the worker has ended a connection, on which nothing came."""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


class TestDescriptors:
    async def test_without_a_free_one_it_waits_until_there_is(self):
        async with worker() as running:
            assert await answered(running)
            _, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (0, hard))
            async with connected(running) as (reader, writer):
                writer.write(HEALTH)
                await wait_until(
                    lambda: "could not be accepted: Too many open files" in running.text
                )
                before = running.cpu_seconds()
                await asyncio.sleep(1)
                assert running.cpu_seconds() - before < 0.2
                resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (4096, hard))
                assert b"200 OK" in await reader.readuntil(b'"}')
            assert await answered(running)
        assert running.text.count("could not be accepted") <= 30


async def answered(running: Worker, tls=None) -> bool:
    return b"200 OK" in await asked(running, HEALTH, tls)


async def ddump_says(*arguments) -> str:
    """Return what ddump says of a target that it cannot open."""
    process = await asyncio.create_subprocess_exec(
        DDUMP, *arguments, "-w", "/dev/null", stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 3, said
    return said.decode()
