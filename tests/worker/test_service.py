"""Whole workers: how they start, what they withstand, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import pytest

from ddump_common.errors import CaptureError
from ddump_worker import service
from ddump_worker.compiler import WALL_SECONDS
from ddump_worker.filters import QUEUE_SECONDS, SHARE
from ddump_worker.streams import Streams
from support.loopback import payloads, records, talker, tcpdump
from support.namespaces import network
from support.orders import order
from support.workers import run, stop, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

SLOW = "+or+".join(f"port+{number}" for number in range(1, 600, 2))


@contextlib.asynccontextmanager
async def client(running, **options):
    timeout = aiohttp.ClientTimeout(total=40)
    async with aiohttp.ClientSession(
        running.url, timeout=timeout, **options
    ) as session:
        yield session


async def connect(running, request: str, *, receive_buffer: int | None = None):
    """Send a request; return its reader and writer when the answer's head is there."""
    parts = urlsplit(running.url)
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect((parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    writer.write(f"GET {request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    return head, reader, writer


async def status(http) -> dict:
    async with http.get("/api/v1/status") as response:
        return await response.json()


async def unused(http) -> bool:
    """Return whether a worker has no streams, and no memory for any."""
    now = await status(http)
    return now["memory"]["used_bytes"] == 0 and not now["streams"]


async def flood(udp, *, packets: int) -> None:
    """Send large packets, giving others their turn."""
    for _ in range(packets // 50):
        udp.send(50, size=8000)
        await asyncio.sleep(0)


class TestClients:
    async def test_quiet_clients_that_come_and_go_leave_nothing(self):
        async with worker("--max-streams", "40", "--capture-memory", "2GiB") as running:
            async with client(running) as http:
                for _ in range(2):
                    async with contextlib.AsyncExitStack() as stack:
                        for _ in range(12):
                            response = await stack.enter_async_context(
                                http.get("/capture", params={"filter": "udp port 1"})
                            )
                            await response.content.readexactly(24)
                        assert running.packet_sockets() == 12
                        assert (await status(http))["states"]["running"] == 12
                    # Within a second, though nothing flows.
                    await wait_until(lambda: running.packet_sockets() == 0, seconds=1.5)
                await wait_until(lambda: unused(http))
                now = await status(http)
            assert now["states"] == {
                "opening": 0,
                "running": 0,
                "draining": 0,
                "closed": 24,
            }
        assert running.text.count("the client left") == 24

    async def test_clients_that_leave_while_it_opens_leave_nothing(self):
        async with worker("--max-streams", "40", "--capture-memory", "2GiB") as running:
            parts = urlsplit(running.url)
            for number in range(30):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(
                    b"GET /capture?filter=udp+port+1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
                )
                await writer.drain()
                await asyncio.sleep(number * 0.006)  # at each stage of the opening
                writer.transport.abort()
            async with client(running) as http:
                await wait_until(lambda: unused(http))
            assert running.packet_sockets() == 0

    async def test_a_client_that_leaves_in_full_flow_is_noticed(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                async with http.get("/capture", params={"filter": udp.filter}):
                    await flood(udp, packets=500)
                await wait_until(lambda: running.packet_sockets() == 0, seconds=1.5)

    async def test_a_client_that_closes_its_side_is_gone(self):
        async with worker() as running:
            _, reader, writer = await connect(running, "/capture?filter=udp+port+1")
            writer.write_eof()
            async with asyncio.timeout(1.5):
                await reader.read()
            await wait_until(lambda: running.packet_sockets() == 0)
            writer.close()

    async def test_a_stalled_client_costs_no_cpu_and_gets_all_that_the_ring_held(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                _, reader, writer = await connect(
                    running,
                    f"/capture?filter={udp.filter.replace(' ', '+')}&link=sll2",
                    receive_buffer=4096,
                )
                for _ in range(6):
                    await flood(udp, packets=1000)  # 48 MB, more than ring and sockets

                async def stalled():
                    """Whether nothing is taken any more."""
                    (first,) = (await status(http))["streams"]
                    await asyncio.sleep(0.3)
                    (second,) = (await status(http))["streams"]
                    return first["packets"] == second["packets"]

                await wait_until(stalled)
                before, began = running.cpu_seconds(), time.monotonic()
                for _ in range(30):
                    udp.send(1)
                    await asyncio.sleep(0.1)
                share = (running.cpu_seconds() - before) / (time.monotonic() - began)
                assert share < 0.01, share
                # The others do not notice.
                other = await http.get(
                    "/capture", params={"filter": udp.filter, "packets": "3"}
                )
                udp.send(3)
                assert len(payloads(await other.read())) == 3
                now = await status(http)
                (stream,) = now["streams"]
                assert stream["dropped"] > 0
                # It has taken no more than it may: the ring is the kernel's.
                assert int(running.status_field("RssAnon")) < 100 << 10  # KiB
                # Every record that comes is whole, and as it was sent.
                running.terminate()
                await check_chunks(reader, stream, udp)
                writer.close()

    async def test_a_stalled_client_gets_nothing_from_after_the_duration(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                _, reader, writer = await connect(
                    running,
                    f"/capture?filter={udp.filter.replace(' ', '+')}"
                    "&link=sll2&duration=1",
                    receive_buffer=4096,
                )
                await flood(udp, packets=2000)  # more than the sockets hold
                await asyncio.sleep(1.2)
                (late,) = udp.send(1)
                await flood(udp, packets=200)
                (stream,) = (await status(http))["streams"]
                found = await check_chunks(reader, stream, udp)
                assert len(found) == 2000
                assert found[-1] == int.from_bytes(late[:8], "big") - 1
                writer.close()
        assert "ended=duration" in running.text
        assert "dropped=0 interface_dropped=0 undelivered=0" in running.text

    async def test_what_a_client_leaves_in_the_ring_is_counted(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                _, _, writer = await connect(
                    running,
                    f"/capture?filter={udp.filter.replace(' ', '+')}",
                    receive_buffer=4096,
                )
                await flood(udp, packets=2000)
                await asyncio.sleep(0.2)
                (stream,) = (await status(http))["streams"]
                assert stream["undelivered"] == 0
                writer.transport.abort()
                await wait_until(lambda: unused(http))
                totals = (await status(http))["totals"]
                left = 2000 - stream["packets"]
                assert left > 500
                assert totals["undelivered"] == left
                async with http.get("/metrics") as response:
                    text = await response.text()
                assert f"ddump_worker_undelivered_packets_total {left}.0\n" in text
        assert f"undelivered={left} " in running.text

    async def test_slow_headers_are_cut_after_ten_seconds(self):
        async with worker() as running:
            parts = urlsplit(running.url)
            slow, second, silent = [
                await asyncio.open_connection(parts.hostname, parts.port)
                for _ in range(3)
            ]
            began = time.monotonic()
            second[1].write(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await second[0].readuntil(b"}")

            async def trickle(pair) -> float:
                reader, writer = pair
                with contextlib.suppress(ConnectionError):
                    writer.write(b"GET / HTTP/1.1\r\nName: ")
                    for _ in range(100):
                        writer.write(b"x")
                        await writer.drain()
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.3):
                                await reader.read()
                                break
                writer.close()
                return time.monotonic() - began

            async def wait(pair) -> float:
                await pair[0].read()
                pair[1].close()
                return time.monotonic() - began

            async with asyncio.TaskGroup() as tasks:
                ended = [
                    tasks.create_task(trickle(slow)),
                    tasks.create_task(trickle(second)),
                    tasks.create_task(wait(silent)),
                ]
            for task in ended:
                assert 9 < task.result() < 12

    async def test_a_stream_outlives_the_deadline_for_headers(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                async with http.get(
                    "/capture", params={"filter": udp.filter, "packets": "1"}
                ) as response:
                    await asyncio.sleep(11)
                    udp.send()
                    assert len(payloads(await response.read())) == 1


async def check_chunks(reader, stream, udp) -> list[int]:
    """Read the chunked rest of a stream: whole records, payloads in order.

    Returns the numbers of the payloads.
    """
    body = bytearray()
    with contextlib.suppress(asyncio.IncompleteReadError):
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    last = -1
    numbers = []
    found = records(bytes(body))
    assert len(found) > 1000
    for _, _, data in found:
        payload = data[20 + 28 :]
        number = int.from_bytes(payload[:8], "big")
        assert number > last
        assert payload[8:].strip(b"x") == b""
        last = number
        numbers.append(number)
    return numbers


class TestLimits:
    async def test_one_stream_too_many_is_told_to_come_again(self):
        async with (
            worker("--max-streams", "2") as running,
            client(running) as http,
            http.get("/capture", params={"filter": "udp port 1"}) as first,
            http.get("/capture", params={"filter": "udp port 1"}),
        ):
            for method in ("GET", "HEAD"):
                async with http.request(method, "/capture") as refused:
                    assert refused.status == 503
                    assert int(refused.headers["Retry-After"]) > 0
                    assert "Ddump-Time" in refused.headers
            async with http.get("/capture") as refused:
                answer = await refused.json(content_type=None)
            assert "2 streams are in use" in answer["detail"]
            first.close()

            async def taken() -> bool:
                async with http.head("/capture") as response:
                    return response.status == 200

            await wait_until(taken)

    async def test_rings_take_no_more_memory_than_they_may(self):
        async with (
            worker("--buffer-size", "8MiB", "--capture-memory", "20MiB") as running,
            client(running) as http,
            http.get("/capture"),
            http.get("/capture"),
        ):
            async with http.get("/capture") as refused:
                assert refused.status == 503
                assert int(refused.headers["Retry-After"]) > 0
                answer = await refused.json(content_type=None)
            assert "16MiB of 20MiB" in answer["detail"]
            now = await status(http)
            assert now["memory"]["used_bytes"] == 16 << 20
            assert {each["buffer_bytes"] for each in now["streams"]} == {8 << 20}


class TestFilters:
    async def test_a_slow_filter_stops_nobody(self):
        async with worker() as running, client(running) as http:
            with talker() as udp:
                async with http.get(
                    "/capture", params={"filter": udp.filter}
                ) as flowing:
                    await flowing.content.readexactly(24)
                    delays = []
                    began = time.monotonic()
                    async with asyncio.TaskGroup() as tasks:
                        slow = tasks.create_task(
                            refused(http, f"/capture?filter={SLOW}")
                        )
                        while not slow.done():
                            sent = time.monotonic()
                            udp.send()
                            await flowing.content.readexactly(16 + 16 + 28 + 32)
                            delays.append(time.monotonic() - sent)
                            async with http.get("/api/v1/health") as response:
                                assert response.status == 200
                    assert time.monotonic() - began < 5.5
                    assert "too long to compile" in slow.result()["detail"]
                    assert max(delays) < 0.2
                    assert len(delays) > 5

    async def test_a_name_without_a_resolver_is_refused_in_time(self, tmp_path):
        with deaf_resolver(tmp_path) as (deaf, prefix):
            async with worker(prefix=prefix) as running, client(running) as http:
                began = time.monotonic()
                answer = await refused(http, "/capture?filter=host+nosuch.example.org")
                assert WALL_SECONDS - 1 < time.monotonic() - began < WALL_SECONDS + 2
                assert "too long to compile" in answer["detail"]
                # And it did ask.
                deaf.setblocking(False)
                assert b"nosuch" in deaf.recv(500)

    async def test_names_of_one_client_keep_no_other_waiting(self, tmp_path):
        with deaf_resolver(tmp_path) as (_, prefix):
            async with (
                worker(prefix=prefix) as running,
                client(running) as http,
                client(running, connector=from_address("127.0.0.2")) as other,
                asyncio.TaskGroup() as tasks,
            ):
                slow = [
                    tasks.create_task(outcome(http, f"host nosuch{number}.example"))
                    for number in range(40)
                ]
                await wait_until(lambda: len(running.children()) >= SHARE)
                for session, expression in ((other, "icmp"), (http, "")):
                    began = time.monotonic()
                    async with session.get(
                        "/capture", params={"filter": expression}
                    ) as response:
                        assert response.status == 200
                    # What it would have waited for a place, in vain.
                    assert time.monotonic() - began < QUEUE_SECONDS
                assert len(running.children()) >= SHARE  # they wait still
            found = [task.result() for task in slow]
            assert [status for status, _ in found].count(400) >= SHARE
            assert {status for status, _ in found} == {400, 503}
            assert max(seconds for _, seconds in found) < WALL_SECONDS + 2


@contextlib.contextmanager
def deaf_resolver(tmp_path):
    """A name server that never answers, in a mount namespace of the worker's own.

    Its port is fixed, so its address is this process's own: others test here too.
    """
    address = f"127.53.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((address, 53))
        resolver = tmp_path / "resolv.conf"
        resolver.write_text(f"nameserver {address}\noptions timeout:30\n")
        hosts = tmp_path / "nsswitch.conf"
        hosts.write_text("hosts: files dns\n")
        script = (
            f"mount --bind {resolver} /etc/resolv.conf && "
            f'mount --bind {hosts} /etc/nsswitch.conf && exec "$@"'
        )
        yield deaf, ("unshare", "-m", "--", "sh", "-c", script, "sh")


def from_address(host: str) -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(local_addr=(host, 0))


async def outcome(http, expression: str) -> tuple[int, float]:
    """Return the status of a capture's answer, and how long it took."""
    began = time.monotonic()
    async with http.get("/capture", params={"filter": expression}) as response:
        return response.status, time.monotonic() - began


async def refused(http, target: str) -> dict:
    url = aiohttp.client.URL(f"{http._base_url.origin()}{target}", encoded=True)
    async with http.get(url) as response:
        assert response.status == 400
        return await response.json(content_type=None)


class TestExclusion:
    async def test_two_workers_that_exclude_each_other_do_not_grow_by_themselves(self):
        with free_ports(2) as (first, second):
            pass
        async with (
            worker(
                "--exclude", f"tcp port {second}", listen=[f"127.0.0.1:{first}"]
            ) as one,
            worker(
                "--exclude", f"tcp port {first}", listen=[f"127.0.0.1:{second}"]
            ) as two,
            client(one) as http1,
            client(two) as http2,
        ):
            with talker() as udp:
                # All that others on this host send meanwhile is none of it.
                services = f"tcp port {first} or tcp port {second}"
                asked = {"filter": f"{udp.filter} or {services}"}
                async with (
                    http1.get("/capture", params=asked) as stream1,
                    http2.get("/capture", params=asked) as stream2,
                ):
                    captures = {stream1: bytearray(), stream2: bytearray()}
                    for _ in range(10):
                        *_, last = udp.send(10)
                        for stream, data in captures.items():
                            await read_until(stream, data, last)
                for data in captures.values():
                    assert len(tcpdump(data, udp.filter)) == 100
                    assert tcpdump(data, services) == []

    async def test_what_the_operator_excludes_is_not_captured(self):
        with talker() as udp, talker() as secret:
            async with (
                worker(
                    "--exclude",
                    f"udp port {secret.port} or udp port 1",
                    "--exclude",
                    "icmp",
                ) as running,
                client(running) as http,
                http.get("/capture", params={"filter": "udp or icmp"}) as response,
            ):
                secret.send(50)
                sent = udp.send(10)
                data = await read_for(response, seconds=0.5)
            assert tcpdump(data, f"udp port {secret.port}") == []
            assert len(tcpdump(data, f"udp port {udp.port}")) == len(sent)

    async def test_other_ports_of_tcp_are_captured(self):
        async with worker() as running, client(running) as http:
            server = await asyncio.start_server(
                lambda _, writer: writer.close(), "127.0.0.1", 0
            )
            port = server.sockets[0].getsockname()[1]
            async with (
                server,
                http.get("/capture", params={"filter": "tcp"}) as response,
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                await reader.read()
                writer.close()
                data = await read_for(response, seconds=0.5)
            assert any("[S]" in line for line in tcpdump(data, f"tcp port {port}"))
            own = urlsplit(running.url).port
            assert tcpdump(data, f"tcp port {own}") == []


@contextlib.contextmanager
def free_ports(count: int):
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        yield [each.getsockname()[1] for each in sockets]


async def read_for(response, *, seconds: float) -> bytes:
    """Return what a stream brings within ``seconds``."""
    data = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for chunk in response.content.iter_any():
                data += chunk
    return bytes(data)


async def read_until(response, data: bytearray, payload: bytes) -> None:
    """Add what a stream brings to ``data``, until it has ``payload``."""
    async with asyncio.timeout(20):
        while payload not in data:
            chunk = await response.content.readany()
            assert chunk
            data += chunk


class TestNamespace:
    """A host with two interfaces, and a client on another."""

    async def test_interfaces_mirror_ports_and_self_exclusion(self):
        with network(1, prefix="ddump-worker") as net:
            (host,) = net.hosts
            async with worker(
                "--allow-plaintext",
                "--promiscuous",
                "eth0",
                listen=["0.0.0.0:8475", "127.0.0.1:9475"],
                prefix=host.command(),
            ) as running:
                url = f"http://{host.address}:8475"

                async def capture(query: str, *ping: str) -> list[str]:
                    """Capture what a ping makes, from the client's side."""
                    command = net.client.command(
                        "curl", "-sSN", "--max-time", "10", f"{url}/capture?{query}"
                    )
                    process = await asyncio.create_subprocess_exec(
                        *command, stdout=asyncio.subprocess.PIPE
                    )
                    header = await process.stdout.readexactly(24)
                    done = await asyncio.create_subprocess_exec(
                        *ping, stdout=asyncio.subprocess.DEVNULL
                    )
                    await done.wait()
                    rest = await process.stdout.read()
                    assert await process.wait() == 0
                    return tcpdump(header + rest)

                over = net.client.command("ping", "-qc", "2", "-i", ".1", host.address)
                within = host.command("ping", "-qc", "2", "-i", ".1", "127.0.0.1")
                for interface, counts in (("lo", (0, 4)), ("eth0", (4, 0))):
                    query = f"filter=icmp&duration=0.8&interface={interface}"
                    found = (
                        len(await capture(query, *over)),
                        len(await capture(query, *within)),
                    )
                    assert found == counts
                both = "filter=icmp&duration=0.8&interface=lo&interface=eth0"
                assert len(await capture(both, *over)) == 4
                # Its own service is not there, over any address; all else is.
                lines = await capture("duration=0.8", *over)
                assert not [line for line in lines if "8475" in line]
                assert len([line for line in lines if "ICMP" in line]) == 4
                shown = host.run("ip", "-d", "link", "show", "eth0").stdout.decode()
                assert "promiscuity 1" in shown
            shown = host.run("ip", "-d", "link", "show", "eth0").stdout.decode()
            assert "promiscuity 0" in shown
            assert running.urls == ["http://0.0.0.0:8475", "http://127.0.0.1:9475"]

    async def test_interfaces_that_vanish_end_the_streams_that_named_them(self):
        with network(1, prefix="ddump-gone") as net:
            (host,) = net.hosts
            for name in ("gone0", "gone1"):
                host.run("ip", "link", "add", name, "type", "veth")
            async with worker(
                "--allow-plaintext",
                listen=["0.0.0.0:8475"],
                prefix=host.command(),
            ) as running:
                url = f"http://{host.address}:8475/capture?filter=udp"
                queries = (
                    "&interface=gone0",
                    "&interface=gone0&interface=eth0&duration=8",
                    "&interface=gone1&duration=1",
                    "&duration=1",
                )
                fetching = [
                    await asyncio.create_subprocess_exec(
                        *net.client.command("curl", "-sSN", url + query),
                        stdout=asyncio.subprocess.PIPE,
                        stderr=asyncio.subprocess.DEVNULL,
                    )
                    for query in queries
                ]
                for process in fetching:
                    await process.stdout.readexactly(24)
                for name in ("gone0", "gone1"):
                    host.run("ip", "link", "delete", name)
                async with asyncio.timeout(12):
                    ends = [await process.wait() for process in fetching]
                assert ends == [18, 0, 18, 0]  # 18: without the final chunk
        assert running.text.count('ended="gone from this host: gone0"') == 1
        assert running.text.count('ended="gone from this host: gone1"') == 1
        # The streams are numbered in the order in which they came.
        told = re.findall(
            r"WARNING stream \d: gone from this host: gone0\n", running.text
        )
        assert len(told) == 1


class TestStart:
    async def test_without_the_capability_it_says_which_and_how_to_give_it(self):
        prefix = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
        code, said = await run(
            "--listen", "127.0.0.1:0", "--allow-anonymous", prefix=prefix
        )
        assert code == 1
        assert "CAP_NET_RAW" in said
        assert "AmbientCapabilities" in said
        assert "Traceback" not in said

    async def test_the_capability_alone_is_enough(self):
        only = "-all,+net_raw"
        prefix = ("setpriv", "--bounding-set", only, "--inh-caps", only)
        with talker() as udp:
            async with (
                worker(prefix=prefix) as running,
                client(running) as http,
                http.get(
                    "/capture", params={"filter": udp.filter, "packets": "2"}
                ) as response,
            ):
                sent = udp.send(2)
                assert payloads(await response.read()) == sent
                assert running.status_field("CapEff") == f"{1 << 13:016x}"

    async def test_root_keeps_no_other_capability(self):
        async with (
            worker() as running,
            client(running) as http,
            http.get("/capture", params={"duration": "0.1"}) as response,
        ):
            await response.read()
            for name in ("CapEff", "CapPrm", "CapBnd"):
                assert running.status_fields(name) == {f"{1 << 13:016x}"}

    async def test_fewer_files_than_it_may_need_are_refused(self):
        prefix = ("prlimit", "--nofile=300:700")
        arguments = ("--listen", "127.0.0.1:0", "--allow-anonymous")
        code, said = await run(*arguments, prefix=prefix)
        assert code == 2
        assert "open files" in said
        async with worker("--max-connections", "200", prefix=prefix) as running:
            assert "200" not in running.text

    @pytest.mark.parametrize(("hard", "most"), [(1024, 560), (4096, 2048)])
    async def test_with_few_files_it_has_fewer_connections(self, hard, most):
        prefix = ("prlimit", f"--nofile=300:{hard}")
        async with worker(prefix=prefix) as running, client(running) as http:
            async with http.get("/api/v1/status") as response:
                assert (await response.json())["max_connections"] == most
            said = f"at most {most} connections, not 2048"
            assert (said in running.text) == (most < 2048)
            soft, _ = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
            assert soft == most + 464

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (["--exclude", "foo bar"], 2, ["foo bar", "syntax error"]),
            (["--exclude", "udp", "--exclude", "vlan"], 2, ["'vlan'", "no VLAN"]),
            (["--promiscuous", "nosuch0"], 2, ["'nosuch0'"]),
            (["--listen", "192.0.2.77:0", "--allow-plaintext"], 2, ["192.0.2.77"]),
        ],
    )
    async def test_what_cannot_be_is_named(self, options, code, words):
        listen = [] if "--listen" in options else ["--listen", "127.0.0.1:0"]
        found, said = await run(*listen, "--allow-anonymous", *options)
        assert found == code
        for word in words:
            assert word in said
        assert "Traceback" not in said
        assert "listening" not in said

    async def test_an_address_that_is_taken_is_named(self):
        with free_ports(1) as (port,):
            code, said = await run("--listen", f"127.0.0.1:{port}", "--allow-anonymous")
        assert code == 2
        assert f"127.0.0.1:{port}" in said
        assert "in use" in said


class TestUnixSocket:
    async def fetch(self, path: Path) -> int:
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get("http://worker/capture?duration=0.1") as response,
        ):
            await response.read()
            return response.status

    async def test_it_serves_and_goes_with_the_worker(self, tmp_path):
        path = tmp_path / "worker.sock"
        async with worker(listen=[f"unix:{path}", "127.0.0.1:0"]) as running:
            assert running.urls[0] == f"unix:{path}"
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o660
            assert await self.fetch(path) == 200
        assert not path.exists()
        assert "identity=anonymous address=unix" in running.text

    async def test_the_file_of_a_dead_worker_is_replaced(self, tmp_path):
        path = tmp_path / "worker.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with worker(listen=[f"unix:{path}"]):
            assert await self.fetch(path) == 200

    async def test_the_socket_of_a_living_worker_is_left_alone(self, tmp_path):
        path = tmp_path / "worker.sock"
        async with worker(listen=[f"unix:{path}"]):
            code, said = await run("--listen", f"unix:{path}")
            assert code == 2
            assert "another process listens" in said
            assert await self.fetch(path) == 200


class TestShutdown:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_streams_end_cleanly_with_all_that_was_captured(self, number):
        with talker() as udp:
            async with worker() as running, client(running) as http:
                async with (
                    http.get("/capture", params={"filter": udp.filter}) as one,
                    http.get("/capture", params={"filter": "udp port 1"}) as quiet,
                ):
                    await one.content.readexactly(24)
                    await quiet.content.readexactly(24)
                    sent = udp.send(20)
                    running.process.send_signal(number)
                    # No error: the final chunk has come.
                    assert payloads(await one.content.read()) == sent
                    assert await quiet.content.read() == b""
                async with asyncio.timeout(2):
                    await running.process.wait()
        assert running.text.count("ended=shutdown") == 2

    async def test_a_stalled_stream_is_cut_and_logged(self):
        with talker() as udp:
            async with worker() as running:
                _, _, writer = await connect(
                    running,
                    f"/capture?filter={udp.filter.replace(' ', '+')}",
                    receive_buffer=4096,
                )
                for _ in range(3):
                    await flood(udp, packets=1000)
                began = time.monotonic()
                await stop(running)
                assert 2.5 < time.monotonic() - began < 5
                writer.transport.abort()
        assert "1 streams were cut" in running.text
        assert "ended=cut" in running.text

    async def test_an_idle_connection_does_not_hold_it_up(self):
        async with worker() as running:
            parts = urlsplit(running.url)
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            began = time.monotonic()
            await stop(running)
            assert time.monotonic() - began < 2
            writer.close()

    async def test_a_signal_during_a_slow_compilation(self):
        async with worker() as running:
            parts = urlsplit(running.url)
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(
                f"GET /capture?filter={SLOW} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            await writer.drain()
            await wait_until(running.children)
            helpers = running.children()
            began = time.monotonic()
            await stop(running)
            assert time.monotonic() - began < 5
            writer.close()
        for pid in helpers:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_while_it_starts(self, number):
        slow = SLOW.replace("+", " ")
        options = [word for _ in range(4) for word in ("--exclude", slow)]
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(
                run("--listen", "127.0.0.1:0", "--allow-anonymous", *options)
            )
            os.kill(await child_that_compiles(), number)
            began = time.monotonic()
        code, said = starting.result()
        assert time.monotonic() - began < 1
        assert code == 0, said
        assert "ending" in said
        assert "Traceback" not in said
        assert "listening" not in said

    async def test_stopped_before_anyone_came(self):
        async with worker() as running:
            pass
        assert running.process.returncode == 0


def children(pid: int) -> list[int]:
    return [
        int(word)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]


async def child_that_compiles() -> int:
    """Wait until a worker that this process started has a helper; return its id."""
    found = []

    def is_there() -> bool:
        found[:] = [pid for pid in children(os.getpid()) if children(pid)]
        return bool(found)

    await wait_until(is_there)
    return found[0]


async def test_the_watch_goes_on_when_counters_cannot_be_taken(monkeypatch, caplog):
    def refuse():
        raise CaptureError("no netlink")

    async def refuse_async():
        raise CaptureError("no helper")

    swept = []
    monkeypatch.setattr(service, "interfaces", refuse)
    monkeypatch.setattr(service, "_WATCH_SECONDS", 0.01)
    streams = Streams()
    streams.open(order=order(), started_ns=0)
    core = SimpleNamespace(
        connections=SimpleNamespace(
            sweep=lambda: swept.append(1), revoke=lambda holds: 0
        ),
        holds=lambda client: True,
        streams=streams,
        recording=SimpleNamespace(refresh=refuse_async),
    )
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(service._watch(core))
        await wait_until(lambda: len(swept) > 2)
        assert not watch.done()
        watch.cancel()
    assert "the counters could not be taken: no netlink" in caplog.text
    assert "what is recorded cannot be adapted: no helper" in caplog.text
