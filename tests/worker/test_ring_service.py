"""Workers with a ring: what they record and serve, judged by tcpdump beside them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import resource
import signal
import socket
import subprocess
import time
from collections import Counter
from urllib.parse import quote, urlsplit

import aiohttp
import pytest

from ddump_common.pcap import PcapHeader
from ddump_common.timespec import format_time
from ddump_common.window import WindowReport
from support import programs
from support.loopback import Talker, payloads, records, talker
from support.namespaces import network
from support.workers import run, stop, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

MB = 1_000_000
RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "0")


@pytest.fixture(scope="module", autouse=True)
def own_network():
    """All of this in a namespace of its own: others' traffic would turn the rings."""
    with network(0) as net, net.client.entered():
        yield


@contextlib.asynccontextmanager
async def recording(tmp_path, *options, **given):
    """Run a worker with a ring; yield it and a client of it."""
    async with (
        worker(
            "--ring-dir", str(tmp_path / "ring"), *RING, *options, **given
        ) as running,
        aiohttp.ClientSession(
            running.url, timeout=aiohttp.ClientTimeout(total=40)
        ) as http,
    ):
        yield running, http


async def window(http, **parameters) -> bytes:
    async with http.get("/ring", params={"precision": "nano"} | parameters) as response:
        data = await response.read()
        assert response.status == 200, data
        return data


async def problem(http, **parameters) -> dict:
    async with http.get("/ring", params=parameters) as response:
        assert response.content_type == "application/problem+json"
        answer = await response.json(content_type=None)
        return answer | {"headers": response.headers}


async def ring_info(http) -> dict:
    async with http.get("/api/v1/status") as response:
        return (await response.json())["ring"]


async def streams(http) -> dict:
    async with http.get("/api/v1/status") as response:
        status = await response.json()
        return {each["id"]: each for each in (*status["streams"], *status["ended"])}


async def flood(udp, *, packets: int, size: int = 1000) -> list[bytes]:
    """Send packets, as fast as others get their turn."""
    sent = []
    for _ in range(packets // 50):
        sent += udp.send(50, size=size)
        await asyncio.sleep(0)
    return sent


@contextlib.asynccontextmanager
async def tcpdump_beside(path, udp, *, packets: int, size: int):
    """Record what ``udp`` sends until it is all there; the kernel stamps once for both."""
    process = await asyncio.create_subprocess_exec(
        "tcpdump", "-Z", "root", "-U", "-i", "any", "-y", "LINUX_SLL", "-B", "32768",
        "--time-stamp-precision", "nano", "-w", str(path), udp.filter,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    whole = 24 + packets * (16 + 16 + 28 + size)
    try:
        async with asyncio.timeout(10):
            while b"listening on any" not in await process.stderr.readline():
                assert process.returncode is None
        yield
        await wait_until(lambda: path.stat().st_size == whole)
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()


async def connect(running, request: str, *, receive_buffer: int | None = None):
    """Ask for packets over a connection of which little is taken by itself."""
    parts = urlsplit(running.url)
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect((parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    writer.write(f"GET {request} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


class TestWindow:
    async def test_it_is_exact_to_the_packet(self, tmp_path):
        """Any window has what tcpdump has of it, in time order."""
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                async with tcpdump_beside(
                    tmp_path / "oracle", udp, packets=2000, size=700
                ):
                    for _ in range(20):
                        udp.send(100, size=700)
                        await asyncio.sleep(0.005)
                theirs = records((tmp_path / "oracle").read_bytes())
                assert len(theirs) == 2000
                stamps = sorted(stamp for stamp, _, _ in theirs)
                for since, until in (
                    (stamps[0], stamps[-1] + 1),
                    (stamps[0], stamps[-1]),
                    (stamps[3], stamps[4]),
                    (stamps[500] + 1, stamps[1500]),
                ):
                    data = await window(
                        http,
                        filter=udp.filter,
                        since=format_time(since),
                        until=format_time(until),
                    )
                    ours = records(data)
                    assert [each[0] for each in ours] == sorted(
                        stamp for stamp in stamps if since <= stamp < until
                    )
                    assert Counter(ours) == Counter(
                        each for each in theirs if since <= each[0] < until
                    )

    async def test_the_last_minute_ends_now(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                for _ in range(5):
                    sent = udp.send(3)
                    found = payloads(await window(http, last="1m", filter=udp.filter))
                    assert found[-3:] == sent

    async def test_what_it_says_of_itself(self, tmp_path):
        async with recording(tmp_path) as (running, http):
            with talker() as udp:
                udp.send(5)
                now = time.time_ns()
                async with http.get(
                    "/ring", params={"last": "1h", "filter": udp.filter}
                ) as response:
                    data = await response.read()
            assert response.headers["Content-Type"] == "application/vnd.tcpdump.pcap"
            assert PcapHeader.parse(data) == PcapHeader(link_type=113)
            report = WindowReport.parse(response.headers["Ddump-Window"])
            (gap,) = report.gaps
            assert abs(gap.begin_ns - (now - 3600 * 10**9)) < 10**9
            assert gap.end_ns == report.covered.begin_ns
            assert abs(report.covered.end_ns - now) < 10**9
            info = (await streams(http))[int(response.headers["Ddump-Stream"])]
            assert (info["window"], info["state"]) == (True, "closed")
            assert (info["packets"], info["dropped"], info["skipped"]) == (5, 0, 0)
            assert info["position_ns"] > now
            await stop(running)
        assert re.search(r"address=127\.0\.0\.1:\d+ .* stream=1 ", running.text)
        assert "ended=complete" in running.text
        assert " packets=5 bytes=380 dropped=0 " in running.text
        assert " skipped=0 " in running.text
        assert f"since={format_time(now)[:13]}" not in running.text  # an hour before
        assert re.search(
            r"since=20\S+Z until=null .* filter=\"udp dst port ", running.text
        )

    async def test_conversions(self, tmp_path):
        lo = socket.if_nametoindex("lo")
        for link in ("sll", "sll2"):
            options = ("--ring-link", link)
            async with recording(tmp_path / link, *options) as (_, http):
                with talker() as udp:
                    sent = udp.send(3)
                    ask = {"filter": udp.filter, "last": "1m"}
                    sll = await window(http, link="sll", **ask)
                    sll2 = await window(http, link="sll2", **ask)
                    cut = await window(http, snaplen="30", **ask)
                    micro = await window(http, precision="micro", **ask)
                assert PcapHeader.parse(sll).link_type == 113
                assert PcapHeader.parse(sll2).link_type == 276
                assert payloads(sll) == payloads(sll2, cooked=20) == sent
                index = lo if link == "sll2" else 0
                assert {data[4:8] for _, _, data in records(sll2)} == {
                    index.to_bytes(4, "big")
                }
                assert PcapHeader.parse(cut).snaplen == 30
                assert [data for _, _, data in records(cut)] == [
                    data[:30] for _, _, data in records(sll)
                ]
                assert [stamp for stamp, _, _ in records(micro)] == [
                    stamp // 1000 for stamp, _, _ in records(sll)
                ]

    async def test_limits(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                sent = udp.send(10)
                ask = {"filter": udp.filter, "last": "1m"}
                data = await window(http, packets="4", **ask)
                assert payloads(data) == sent[:4]
                data = await window(http, bytes="100", **ask)
                assert payloads(data) == sent[:2]
                data = await window(http, follow="1", duration="0.3", **ask)
                assert payloads(data) == sent
                data = await window(http, follow="1", idle="0.1", **ask)
                assert payloads(data) == sent
                data = await window(http, follow="1", packets="10", **ask)
                assert payloads(data) == sent

    async def test_few_among_many(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp, talker() as noise:
                sent = []
                for _ in range(10):
                    await flood(noise, packets=1000)
                    sent += udp.send(1)
                data = await window(http, last="1m", filter=udp.filter)
                assert payloads(data) == sent

    async def test_head_makes_the_same_checks_and_opens_nothing(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            async with http.head("/ring", params={"last": "1m"}) as response:
                assert response.status == 200
                assert "covered=" in response.headers["Ddump-Window"]
                assert "Ddump-Stream" not in response.headers
            for parameters, status in (
                ({"filter": "nonsense of a filter"}, 400),
                ({"until": "1000000000"}, 416),
                ({"interface": "lo"}, 400),
            ):
                async with http.head("/ring", params=parameters) as response:
                    assert response.status == status
            assert await streams(http) == {}


class TestInterfaces:
    async def test_they_are_chosen_by_the_stored_index(self, tmp_path):
        async with recording(tmp_path, "--ring-link", "sll2") as (_, http):
            with talker() as udp:
                sent = udp.send(3)
                ask = {"filter": udp.filter, "last": "1m"}
                data = await window(http, interface="lo", **ask)
                assert payloads(data) == sent
                others = {name for _, name in socket.if_nameindex()} - {"lo"}
                for name in others:
                    assert records(await window(http, interface=name, **ask)) == []
                    both = [*ask.items(), ("interface", "lo"), ("interface", name)]
                    async with http.get("/ring", params=both) as response:
                        assert len(payloads(await response.read())) == 3
            answer = await problem(http, interface="nosuch0")
            assert (answer["status"], answer["parameter"]) == (400, "interface")
            assert answer["detail"] == "'nosuch0' is not an interface of this ring"
            assert "lo" in answer["hint"]

    async def test_where_they_are_not_stored_that_is_said(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            answer = await problem(http, interface="lo")
            assert (answer["status"], answer["parameter"]) == (400, "interface")
            assert "does not keep the interface" in answer["detail"]
            assert "--ring-link sll2" in answer["hint"]
            answer = await problem(http, filter="ifindex 1")
            assert answer["status"] == 400
            assert "needs a ring of sll2" in answer["detail"]


class TestRefusals:
    async def test_a_worker_without_a_ring(self):
        async with worker() as running, aiohttp.ClientSession(running.url) as http:
            answer = await problem(http, last="5m")
            assert answer["status"] == 404
            assert answer["detail"] == "this worker keeps no ring"
            assert "--ring-dir" in answer["hint"]
            assert await ring_info(http) is None
            async with http.get("/api/v1/segments") as response:
                answer = await response.json()
            assert (answer["ring"], answer["segments"]) == (None, [])
            async with http.get("/metrics") as response:
                assert 'refused_total{reason="ring"} 1.0' in await response.text()

    async def test_a_window_outside(self, tmp_path):
        async with recording(tmp_path) as (running, http):
            await window(http)
            answer = await problem(http, since="0", until="1000000000")
            assert answer["status"] == 416
            report = WindowReport.parse(answer["headers"]["Ddump-Window"])
            assert report.covered is None
            (gap,) = report.gaps
            assert (gap.begin_ns, gap.end_ns) == (0, 10**9 * 10**9)
            assert "it covers 20" in answer["detail"]
            answer = await problem(http, since="4000000000")
            assert answer["status"] == 416
            async with http.get("/metrics") as response:
                assert 'refused_total{reason="window"} 2.0' in await response.text()
            await stop(running)
        assert running.text.count('status=416 ended="The window is outside') == 2

    @pytest.mark.parametrize(
        ("parameters", "parameter"),
        [
            ({"since": "yesterday"}, "since"),
            ({"since": "14:03"}, "since"),
            ({"last": "5m", "since": "-5m"}, "last"),
            ({"since": "-5m", "until": "-6m"}, "until"),
            ({"follow": "perhaps"}, "follow"),
            ({"filter": "vlan 7"}, "filter"),
            ({"tomorrow": "1"}, "tomorrow"),
        ],
    )
    async def test_what_makes_no_sense(self, shared, parameters, parameter):
        async with aiohttp.ClientSession(shared) as http:
            answer = await problem(http, **parameters)
            assert (answer["status"], answer["parameter"]) == (400, parameter)

    async def test_more_than_may_be(self, tmp_path):
        async with recording(tmp_path, "--max-windows", "2") as (running, http):
            ask = "/ring?follow=1&last=1m&filter=udp+port+1"
            taken = [await connect(running, ask) for _ in range(2)]
            answer = await problem(http, last="1m")
            assert answer["status"] == 503
            assert answer["detail"] == "all 2 windows are in use"
            assert int(answer["headers"]["Retry-After"]) > 0
            info = await ring_info(http)
            assert (info["windows"], info["max_windows"]) == (2, 2)
            async with http.get("/metrics") as response:
                text = await response.text()
            assert 'refused_total{reason="windows"} 1.0' in text
            assert "ddump_worker_windows 2.0" in text
            for _, writer in taken:
                writer.close()

            async def free():
                return (await ring_info(http))["windows"] == 0

            # Within a second, though nothing flows.
            await wait_until(free, seconds=1)
            await window(http, last="1m")


@pytest.fixture(scope="module")
def shared(own_network, tmp_path_factory):
    """One worker for tests that only ask."""
    path = tmp_path_factory.mktemp("shared") / "ring"
    with programs.worker("127.0.0.1:0", "--ring-dir", str(path), *RING) as url:
        yield url


class TestFollow:
    async def test_no_gap_and_no_duplicate_across_segments(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                sent = await flood(udp, packets=2000)
                async with http.get(
                    "/ring", params={"filter": udp.filter, "last": "1m", "follow": "1"}
                ) as response:
                    size = 24 + 20_000 * (16 + 16 + 28 + 1000)

                    async def read():
                        return await response.content.readexactly(size)

                    async with asyncio.TaskGroup() as tasks:
                        reading = tasks.create_task(read())
                        sent += await flood(udp, packets=18_000)
                    assert payloads(reading.result()) == sent
            info = await ring_info(http)
            assert info["segments"] >= 20
            assert (info["dropped"], info["lost"]) == (0, 0)

    async def test_a_packet_comes_within_300_ms(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                async with http.get(
                    "/ring", params={"filter": udp.filter, "last": "1s", "follow": "1"}
                ) as response:
                    await response.content.readexactly(24)
                    delays = []
                    for _ in range(20):
                        began = time.monotonic()
                        udp.send()
                        await response.content.readexactly(16 + 16 + 28 + 32)
                        delays.append(time.monotonic() - began)
            assert max(delays) < 0.3, delays

    async def test_until_ends_it(self, tmp_path):
        async with recording(tmp_path) as (_, http):
            with talker() as udp:
                sent = udp.send(3)
                until = time.time_ns() + 10**9
                async with asyncio.TaskGroup() as tasks:
                    pull = tasks.create_task(
                        window(http, filter=udp.filter, last="1m", follow="1",
                               until=format_time(until))
                    )  # fmt: skip
                    while time.time_ns() < until + 10**8:
                        if time.time_ns() < until - 10**8:
                            sent += udp.send(1)
                        await asyncio.sleep(0.02)
                found = records(pull.result())
                assert payloads(pull.result())[: len(sent)] == sent
                assert all(stamp < until for stamp, _, _ in found)


class TestTheRecorder:
    """What clients do costs it nothing."""

    async def test_the_worker_s_own_service_is_not_recorded(self, tmp_path):
        async with recording(tmp_path, "--exclude", "udp port 7") as (running, http):
            with talker() as udp:
                sent = udp.send(3)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as excluded:
                    excluded.sendto(b"x", ("127.0.0.1", 7))
                for _ in range(5):
                    data = await window(http, last="1m", filter=udp.filter)
                    assert payloads(data) == sent
                for expression in (
                    f"tcp port {urlsplit(running.url).port}",
                    "udp port 7",
                ):
                    data = await window(http, last="1m", filter=expression)
                    assert records(data) == []

    async def test_a_stalled_client(self, tmp_path):
        options = ("--ring-pinned", "0")
        async with recording(tmp_path, *options) as (running, http):
            with talker() as udp:
                sent = await flood(udp, packets=5000)
                ask = f"/ring?last=1m&filter={udp.filter.replace(' ', '+')}"
                stalled = [
                    await connect(running, ask + more, receive_buffer=4096)
                    for more in ("", "&follow=1")
                ]
                async with tcpdump_beside(
                    tmp_path / "oracle", udp, packets=30_000, size=1000
                ):
                    sent += await flood(udp, packets=30_000)
                theirs = records((tmp_path / "oracle").read_bytes())
                since = format_time(min(stamp for stamp, _, _ in theirs))
                data = await window(http, since=since, filter=udp.filter)
                ours = records(data)
                assert Counter(ours) == Counter(theirs)
                assert payloads(data) == sent[5000:]
                assert (await ring_info(http))["dropped"] == 0
                # They hold nothing in memory but a slice, and a socket's buffer.
                assert int(running.status_field("RssAnon")) < 150 << 10  # KiB
                for _, writer in stalled:
                    writer.close()

    async def test_sixty_pulls_and_all_streams(self, tmp_path):
        options = ("--max-streams", "2")
        async with recording(tmp_path, *options) as (running, http):
            with talker() as udp:
                before = await flood(udp, packets=5000)
                ask = {"filter": udp.filter, "last": "1m"}
                streams_ = [
                    await connect(running, "/capture?filter=udp+port+1")
                    for _ in range(2)
                ]
                async with http.get("/capture") as response:
                    assert response.status == 503
                async with (
                    tcpdump_beside(tmp_path / "oracle", udp, packets=20_000, size=1000),
                    asyncio.TaskGroup() as tasks,
                ):
                    pulls = [
                        tasks.create_task(window(http, last="1m")) for _ in range(60)
                    ]
                    sent = await flood(udp, packets=20_000)
                for pull in pulls:
                    # Nothing but these packets flows here, beside clients' own.
                    found = payloads(pull.result())
                    assert found == (before + sent)[: len(found)]
                    assert len(found) >= len(before)
                data = await window(http, **ask)
                assert payloads(data) == before + sent
                info = await ring_info(http)
                assert (info["dropped"], info["lost"], info["windows"]) == (0, 0, 0)
                for _, writer in streams_:
                    writer.close()

    async def test_twenty_readers_of_a_ring_that_rotates_under_them(self, tmp_path):
        options = ("--ring-size", "20MB", "--ring-pinned", "100%")
        async with recording(tmp_path, *options) as (running, http):
            with talker() as udp:
                async with tcpdump_beside(
                    tmp_path / "oracle", udp, packets=15_000, size=1000
                ):
                    await flood(udp, packets=15_000)
                ask = f"filter={udp.filter.replace(' ', '+')}&last=1m&precision=nano"
                readers = [
                    await connect(running, f"/ring?{ask}", receive_buffer=4096)
                    for _ in range(20)
                ]
                evicted = await evicted_segments(http)
                await flood(udp, packets=14_000)

                async def rotated():
                    return await evicted_segments(http) > evicted + 8

                await wait_until(rotated)
                assert 0 < (await ring_info(http))["pinned_bytes"] <= 20 * MB
                theirs = Counter(records((tmp_path / "oracle").read_bytes()))
                assert theirs.total() == 15_000

                async def read(reader, writer):
                    data = await reader.read(-1)
                    writer.close()
                    assert Counter(records(data)) == theirs

                async with asyncio.TaskGroup() as tasks:
                    for reader, writer in readers:
                        tasks.create_task(read(reader, writer))
                infos = await streams(http)
                assert [each["skipped"] for each in infos.values()] == [0] * 20

                async def unpinned():
                    return (await ring_info(http))["pinned_bytes"] == 0

                await wait_until(unpinned)

    async def test_readers_that_are_too_slow_get_a_counted_gap(self, tmp_path):
        options = ("--ring-size", "20MB", "--ring-pinned", "2MB")
        async with recording(tmp_path, *options) as (running, http):
            with talker() as udp:
                sent = await flood(udp, packets=15_000)
                ask = f"filter={udp.filter.replace(' ', '+')}&last=1m&precision=nano"
                reader, writer = await connect(
                    running, f"/ring?{ask}", receive_buffer=4096
                )
                await flood(udp, packets=30_000)
                assert (await ring_info(http))["pinned_bytes"] <= 2 * MB
                found = payloads(await reader.read(-1))
                writer.close()
                (info,) = (await streams(http)).values()
                assert 0 < info["skipped"] <= 15_000
                assert len(found) == 15_000 - info["skipped"]
                position = {payload: number for number, payload in enumerate(sent)}
                numbers = [position[payload] for payload in found]
                assert numbers == sorted(numbers)
                jumps = [b - a for a, b in itertools.pairwise(numbers) if b - a > 1]
                assert len(jumps) <= 1
            await stop(running)
            assert f" skipped={info['skipped']} " in running.text


async def evicted_segments(http) -> float:
    async with http.get("/metrics") as response:
        (line,) = [
            line
            for line in (await response.text()).splitlines()
            if line.startswith("ddump_worker_ring_evicted_segments_total ")
        ]
        return float(line.split()[1])


class TestDamage:
    """Files of the ring that a stranger writes to."""

    @staticmethod
    def damage(tmp_path, number) -> str:
        """Overwrite some of a segment in its middle; return its name."""
        path = sorted((tmp_path / "ring").glob("ddump-*.pcap"))[number]
        with path.open("r+b") as file:
            file.seek(500_000)
            file.write(b"\xff" * 4096)
        return path.name

    async def test_it_costs_what_is_behind_it_in_its_segment(self, tmp_path):
        async with recording(tmp_path) as (running, http):
            with talker() as udp:
                sent = await flood(udp, packets=4000)
                whole = payloads(await window(http, last="1m", filter=udp.filter))
                assert whole == sent
                names = [self.damage(tmp_path, number) for number in (1, 3)]
                found = payloads(await window(http, last="1m", filter=udp.filter))
                again = payloads(await window(http, last="1m", filter=udp.filter))
            ended = list((await streams(http)).values())
            for name in names:
                assert running.text.count(name) == 1, running.text
        # In order, with two gaps that are counted. What is not read is not judged.
        places = [sent.index(each) for each in found]
        assert places == sorted(set(places))
        assert sum(y - x > 1 for x, y in itertools.pairwise(places)) == 2
        missing = len(sent) - len(found)
        assert 0 < missing <= ended[1]["skipped"] < 2000
        assert set(again) <= set(found)
        assert running.text.count("ended=complete") == 3

    async def test_a_worker_ends_while_it_is_met(self, tmp_path):
        async with recording(tmp_path) as (running, http):
            with talker() as udp:
                ask = f"/ring?follow=1&filter={quote(udp.filter)}"
                reader, writer = await connect(running, ask, receive_buffer=4096)
                sent = await flood(udp, packets=8000)

                async def is_there():
                    return (await ring_info(http))["packets"] >= len(sent)

                await wait_until(is_there)
                for number in (1, 2, 3):
                    self.damage(tmp_path, number)
                running.terminate()
                data = await reader.read()
                writer.close()
            await stop(running)
        assert payloads(data)[0] == sent[0]
        assert re.search("ended=shutdown .* stream=1 ", running.text)

    async def test_one_that_fails_lets_go_of_all_and_is_told_of(self, tmp_path):
        async with recording(tmp_path) as (running, http):
            with talker() as udp:
                ask = f"/ring?follow=1&filter={quote(udp.filter)}"
                reader, writer = await connect(running, ask)
                limit = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
                resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
                udp.send(1)
                await wait_until(lambda: "Too many open files" in running.text)
                resource.prlimit(running.pid, resource.RLIMIT_NOFILE, limit)
                await reader.read()
                writer.close()
                info = await ring_info(http)
                assert (info["windows"], info["pinned_bytes"]) == (0, 0)
                assert await window(http, last="1m", filter=udp.filter)
        assert re.search(
            r'ended="cannot open ddump-\S+: Too many open files" .* packets=0 .* '
            r"skipped=0 ",
            running.text,
        )


class TestTheHost:
    """Its addresses and interfaces come and go."""

    async def test_a_new_address_is_the_worker_s_own_and_nothing_is_lost(
        self, tmp_path
    ):
        with network(1, prefix="ddump-moving") as net:
            (host,) = net.hosts
            async with worker(
                "--ring-dir", str(tmp_path / "ring"), *RING, "--allow-plaintext",
                listen=["0.0.0.0:8475"], prefix=host.command(),
            ) as running:  # fmt: skip
                with host.entered():
                    udp = Talker()
                    asking = socket.create_connection(("127.0.0.1", 8475))
                asking.close()
                await asyncio.to_thread(
                    host.run, "ip", "addr", "add", "10.78.0.1/24", "dev", "eth0"
                )
                sent = []

                def adapted():
                    sent.extend(udp.send(20))
                    return "have changed" in running.text

                await wait_until(adapted, seconds=10)
                sent += udp.send(100)
                udp.close()
                done = await asyncio.to_thread(
                    host.run, "curl", "-sS",
                    f"http://10.78.0.1:8475/ring?last=1m&filter={udp.filter.replace(' ', '+')}",
                )  # fmt: skip
                assert payloads(done.stdout) == sent
                done = await asyncio.to_thread(
                    host.run, "curl", "-sS",
                    "http://127.0.0.1:8475/ring?last=1m&filter=tcp",
                )  # fmt: skip
                assert records(done.stdout) == []


class TestEnd:
    async def test_what_was_captured_is_recorded_and_followers_end_cleanly(
        self, tmp_path
    ):
        async with recording(tmp_path) as (running, http):
            with talker() as udp:
                async with http.get(
                    "/ring", params={"filter": udp.filter, "last": "1m", "follow": "1"}
                ) as response:
                    await response.content.readexactly(24)
                    sent = udp.send(50)
                    running.terminate()
                    data = await response.read()
                assert payloads(data) == sent
                udp_filter = udp.filter
            await running.process.wait()
        assert re.search(r"ended=shutdown .* since=20\S+Z until=null", running.text)
        (segment,) = (tmp_path / "ring").glob("*.pcap")
        done = await asyncio.to_thread(
            subprocess.run,
            ["tcpdump", "-nr", segment, "-w", "-", udp_filter],
            check=True,
            capture_output=True,
        )
        assert payloads(done.stdout) == sent

    async def test_a_client_that_takes_nothing_is_cut(self, tmp_path):
        async with recording(tmp_path) as (running, _):
            with talker() as udp:
                await flood(udp, packets=20_000)
                _, writer = await connect(
                    running,
                    f"/ring?last=1m&filter={udp.filter.replace(' ', '+')}",
                    receive_buffer=4096,
                )
            began = time.monotonic()
            await stop(running)
            assert time.monotonic() - began < 5
            writer.close()
        assert "1 streams were cut" in running.text
        assert "ended=cut" in running.text

    async def test_it_goes_on_where_it_was(self, tmp_path):
        with talker() as udp:
            async with recording(tmp_path) as (_, http):
                sent = udp.send(5)
                await window(http)
            async with recording(tmp_path) as (_, http):
                sent += udp.send(5)

                async def adopted():
                    return not (await ring_info(http))["adopting"]

                await wait_until(adopted)
                async with http.get("/ring", params={"last": "1m"}) as response:
                    await response.read()
                    report = WindowReport.parse(response.headers["Ddump-Window"])
                data = await window(http, last="1m", filter=udp.filter)
                assert payloads(data) == sent
                assert len(report.gaps) == 2  # before all, and between both
                async with http.get("/api/v1/segments") as response:
                    answer = await response.json()
                assert [each["growing"] for each in answer["segments"]] == [False, True]
                assert len(answer["ring"]["coverage"]) == 2


class TestStart:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--ring-filter", "nonsense of it"), "--ring-filter 'nonsense of it'"),
            (("--ring-filter", "tcp and udp"), "rejects all packets"),
            (("--ring-interface", "nosuch0"), "'nosuch0' is not an interface"),
            (("--ring-reserve", "100%"), "a reserve of 100%"),
            (("--ring-size", "1.5MB"), "less than 2 segments"),
        ],
    )
    async def test_what_cannot_be_is_refused(self, tmp_path, options, words):
        code, said = await run(
            "--listen", "127.0.0.1:0", "--allow-anonymous",
            "--ring-dir", str(tmp_path / "ring"), *RING, *options,
        )  # fmt: skip
        assert code == 2, said
        assert words in said
        assert "Traceback" not in said

    async def test_a_second_worker_is_refused_with_the_pid_of_the_first(self, tmp_path):
        async with recording(tmp_path) as (running, _):
            code, said = await run(
                "--listen", "127.0.0.1:0", "--allow-anonymous",
                "--ring-dir", str(tmp_path / "ring"), *RING,
            )  # fmt: skip
            assert code == 2
            assert f"process {running.pid} records in {tmp_path}/ring" in said

    async def test_what_is_recorded_may_be_narrowed(self, tmp_path):
        with talker() as udp, talker() as other:
            async with recording(
                tmp_path, "--ring-filter", udp.filter, "--ring-interface", "lo",
                "--ring-snaplen", "50",
            ) as (_, http):  # fmt: skip
                udp.send(3, size=100)
                other.send(3)
                found = records(await window(http))
                assert [length for _, length, _ in found] == [16 + 28 + 100] * 3
                assert {len(data) for _, _, data in found} == {50}

    async def test_privileges_are_given_up_before_any_thread(self, tmp_path):
        async with recording(tmp_path) as (running, _):
            assert running.status_fields("CapEff") == {"0000000000002000"}

    async def test_it_records_within_a_second(self, tmp_path):
        began_ns = time.time_ns()
        async with (
            recording(tmp_path) as (_, http),
            http.get("/api/v1/segments") as response,
        ):
            (segment,) = (await response.json())["segments"]
        assert segment["begin_ns"] - began_ns < 1.5e9


async def test_segments_status_and_metrics(tmp_path):
    async with recording(tmp_path) as (_, http):
        with talker() as udp:
            await flood(udp, packets=3000)
            await window(http, last="1m")
        async with http.get("/api/v1/segments") as response:
            answer = await response.json()
        infos = answer["segments"]
        assert len(infos) == answer["ring"]["segments"] >= 3
        assert [each["growing"] for each in infos].count(True) == 1
        assert sum(each["packets"] for each in infos) >= 3000
        for each in infos:
            assert each["bytes"] <= MB
            assert each["begin_ns"] <= each["end_ns"]
            assert each["begin_ns"] - 10**8 < each["least_ns"] <= each["greatest_ns"]
            file = tmp_path / "ring" / each["name"]
            assert file.stat().st_mode & 0o777 == 0o640
        info = answer["ring"]
        assert (info["state"], info["link"]) == ("recording", "sll")
        assert info["limit_bytes"] == 64 * MB
        assert info["pinned_limit_bytes"] == 64 * MB // 5
        assert len(info["coverage"]) == 1
        async with http.get("/metrics") as response:
            text = await response.text()
        values = dict(
            line.split(" ") for line in text.splitlines() if not line.startswith("#")
        )
        assert values["ddump_worker_ring_recording"] == "1.0"
        assert float(values["ddump_worker_ring_recorded_packets_total"]) >= 3000
        assert float(values["ddump_worker_ring_segments"]) == len(infos)
        oldest = float(values["ddump_worker_ring_oldest_timestamp_seconds"])
        assert abs(oldest - info["coverage"][0]["begin_ns"] / 1e9) < 1e-3
