"""pcapng over HTTP, of real traffic: judged by other readers, by the classic streams
beside it, and by what it promised."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import platform
import signal
import statistics
import subprocess
import time
from typing import Self

import aiohttp
import pytest

from ddump_common.note import EndReason
from support import dropping
from support.captures import parse_pcap
from support.load import generate
from support.loopback import talker
from support.namespaces import network
from support.pcapng_streams import Interface, PcapngStream, read_stream
from support.workers import PYTHON, stop, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

PCAPNG = {"Accept": "application/x-pcapng, application/vnd.tcpdump.pcap;q=0.5"}
RING = ("--ring-size", "400MB", "--segment-size", "16MB", "--ring-reserve", "0")
S = 10**9


@pytest.fixture(scope="module", autouse=True)
def own_network():
    """A host of its own, with a link to another: others' traffic would be in the way."""
    with network(1, prefix="ddump-ng") as net, net.hosts[0].entered():
        yield net


@contextlib.asynccontextmanager
async def recording(tmp_path, *options, **given):
    """Run a worker with a ring; yield it and a client of it."""
    async with (
        worker(
            "--ring-dir", str(tmp_path / "ring"), *RING, *options, **given
        ) as running,
        aiohttp.ClientSession(
            running.url, timeout=aiohttp.ClientTimeout(total=50), headers=PCAPNG
        ) as http,
    ):
        yield running, http


class Following:
    """A stream that is read while a test goes on; ``data`` is all of it so far.

    ``stream`` is judged as it comes, unless it is to be ``fast``.
    """

    def __init__(
        self, http, path="/capture", *, headers=None, fast=False, **parameters
    ):
        self.data = bytearray()
        self.stream = PcapngStream()
        self.takes = asyncio.Event()
        self.takes.set()
        self._request = http.get(path, params=parameters, headers=headers)
        self._is_judged = headers is None and not fast

    async def __aenter__(self) -> Self:
        self.response = await self._request.__aenter__()
        assert self.response.status == 200, await self.response.text()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._request.__aexit__(*error)

    async def read(self) -> None:
        """Take the stream until it ends."""
        async for chunk in self.response.content.iter_any():
            self.data += chunk
            if self._is_judged:
                self.stream.receive_data(chunk)
            await self.takes.wait()


def said_by(*command: str) -> list[str]:
    """Return what a program that must succeed says on its stderr."""
    # The sanitizers that may watch this process are not for it: capinfos hangs then.
    done = subprocess.run(
        ["env", "-u", "LD_PRELOAD", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        line
        for line in done.stderr.splitlines()
        if line and "Running as user" not in line  # that is of tests, not of captures
    ]


def check_by_others(path, stream: PcapngStream) -> None:
    """Have tshark, capinfos and tcpdump read the file at ``path``."""
    assert said_by("tshark", "-n", "-r", str(path)) == []
    assert said_by("capinfos", str(path)) == []
    fields = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-T", "fields", "-e", "frame.time_epoch"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [int(each.replace(".", "")) for each in fields] == [
        each.timestamp_ns for each in stream.records
    ]
    # tcpdump warns of every capture of SLL2: the names are those of another host.
    (first, *others) = said_by("tcpdump", "-n", "-r", str(path))
    assert first.startswith("reading from file")
    assert others in ([], ["Warning: interface names might be incorrect"])


class TestNegotiation:
    @pytest.mark.parametrize("path", ["/capture", "/ring"])
    async def test_the_type_is_the_one_that_was_asked_for(self, tmp_path, path):
        async with recording(tmp_path) as (_, http):
            for headers, expected, begin in (
                ({}, "application/x-pcapng", b"\x0a\x0d\x0d\x0a"),
                (
                    {"Accept": "*/*"},
                    "application/vnd.tcpdump.pcap",
                    b"\xd4\xc3\xb2\xa1",
                ),
                (
                    {"Accept": "application/x-pcapng;q=2"},
                    "application/vnd.tcpdump.pcap",
                    b"\xd4\xc3\xb2\xa1",
                ),
            ):
                parameters = {"filter": "udp port 1", "duration": "100ms"}
                async with http.head(
                    path, params=parameters, headers=headers
                ) as response:
                    assert response.status == 200
                    assert response.content_type == expected
                    assert response.headers["Vary"] == "Accept"
                async with http.get(
                    path, params=parameters, headers=headers
                ) as response:
                    assert response.content_type == expected
                    assert response.headers["Vary"] == "Accept"
                    assert int(response.headers["Ddump-Stream"]) > 0
                    assert (await response.read()).startswith(begin)

    async def test_several_fields_are_one_list(self, tmp_path):
        async with worker() as running:
            reader, writer = await asyncio.open_connection(
                *running.url.removeprefix("http://").split(":")
            )
            writer.write(
                b"GET /capture?duration=100ms HTTP/1.1\r\nHost: localhost\r\n"
                b"Accept: text/html\r\nAccept: application/x-pcapng\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Type: application/x-pcapng\r\n" in head
            writer.close()


@contextlib.asynccontextmanager
async def tcpdump_beside(path, expression: str, link: str, *, packets: int):
    """Record ``packets`` with tcpdump, which is awaited at both ends."""
    process = await asyncio.create_subprocess_exec(
        "tcpdump", "-Z", "root", "-U", "-i", "any", "-y", f"LINUX_{link.upper()}",
        "-B", "32768", "--time-stamp-precision", "nano", "-c", str(packets),
        "-w", str(path), expression,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(10):
            while b"listening on any" not in await process.stderr.readline():
                assert process.returncode is None
        yield
        async with asyncio.timeout(10):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def balance(stream: PcapngStream) -> int:
    """Return how many packets the totals leave without an account."""
    last = stream.last
    return last.received - last.delivered - last.dropped


class TestForm:
    @pytest.mark.parametrize("link", ["sll", "sll2"])
    async def test_it_has_what_the_classic_streams_have(self, tmp_path, link):
        beside = tmp_path / "beside.pcap"
        with talker() as udp:
            # Loopback's packets leave and arrive: what arrives is what is captured.
            expression = f"inbound and {udp.filter}"
            asked = {"link": link, "filter": udp.filter}
            counted = asked | {"packets": "40"}
            async with recording(tmp_path, "--ring-link", link) as (_, http):
                async with (
                    Following(http, **counted) as live,
                    Following(
                        http, "/ring", **counted, since="-1s", follow="1"
                    ) as follower,
                    Following(
                        http, headers={"Accept": "*/*"}, **counted, precision="nano"
                    ) as classic,
                    tcpdump_beside(beside, expression, link, packets=40),
                    asyncio.TaskGroup() as tasks,
                ):
                    for each in (live, follower, classic):
                        tasks.create_task(each.read())
                    for size in range(40):
                        udp.send(1, size=8 + size)
                        await asyncio.sleep(0.005)
                async with Following(http, "/ring", **asked, last="10s") as window:
                    await window.read()
        expected = parse_pcap(bytes(classic.data))
        assert len(expected) == 40
        assert parse_pcap(beside.read_bytes()) == expected
        for number, each in enumerate((live, follower, window)):
            stream = read_stream(each.data)
            assert stream.records == expected
            path = tmp_path / f"{number}.pcapng"
            path.write_bytes(each.data)
            check_by_others(path, stream)
        assert read_stream(live.data).last.received == 40
        assert balance(read_stream(live.data)) == 0

    async def test_it_says_what_it_is(self, tmp_path):
        async with (
            recording(tmp_path) as (_, http),
            Following(
                http,
                filter="udp port 1",
                interface="lo",
                snaplen="77",
                link="sll2",
                precision="micro",
                duration="50ms",
            ) as following,
        ):
            await following.read()
        assert following.stream.section[1] == f"host: {platform.node()}"
        assert following.stream.interface == Interface(
            link_type=276, snaplen=77, name="lo", filter="udp port 1"
        )

    async def test_all_since_its_start_is_there(self, tmp_path):
        """Who has the first block may send: nothing of that is missed."""
        with talker() as udp:
            async with recording(tmp_path) as (_, http):
                for _ in range(5):
                    before = time.time_ns()
                    async with (
                        Following(http, filter=udp.filter, packets="3") as live,
                        asyncio.TaskGroup() as tasks,
                    ):
                        tasks.create_task(live.read())
                        await wait_until(lambda: live.stream.beats)
                        after = time.time_ns()
                        udp.send(3)
                    (first, *_) = live.stream.beats
                    assert before < first.started_ns < after
                    assert first.started_ns - S < first.time_ns < first.started_ns
                    assert live.stream.packets == 3


class TestEnd:
    @pytest.mark.parametrize(
        ("path", "parameters", "expected"),
        [
            ("/capture", {"packets": "5"}, EndReason.PACKETS),
            ("/capture", {"bytes": "300"}, EndReason.BYTES),
            ("/capture", {"duration": "300ms"}, EndReason.DURATION),
            ("/capture", {"idle": "200ms"}, EndReason.IDLE),
            ("/ring", {"last": "1s", "follow": "1", "packets": "5"}, EndReason.PACKETS),
            ("/ring", {"last": "1s", "follow": "1", "bytes": "300"}, EndReason.BYTES),
            (
                "/ring",
                {"last": "1s", "follow": "1", "duration": "300ms"},
                EndReason.DURATION,
            ),
            ("/ring", {"last": "1s", "follow": "1", "idle": "200ms"}, EndReason.IDLE),
            ("/ring", {"last": "1s"}, EndReason.COMPLETE),
        ],
    )
    async def test_the_last_block_says_why(self, tmp_path, path, parameters, expected):
        with talker() as udp:
            async with (
                recording(tmp_path) as (_, http),
                Following(http, path, filter=udp.filter, **parameters) as following,
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(following.read())
                await wait_until(lambda: following.stream.beats)
                before = time.time_ns()
                udp.send(10)
        stream = read_stream(following.data)
        assert stream.last.note.ended is expected
        if expected is not EndReason.COMPLETE:
            assert before < stream.last.ended_ns < time.time_ns()
        if path == "/capture":
            # What a limit left in the ring was received all the same.
            assert stream.last.received <= 10
            assert balance(stream) >= 0
        if expected in {EndReason.DURATION, EndReason.IDLE}:
            assert stream.packets == 10

    @pytest.mark.parametrize("path", ["/capture", "/ring"])
    async def test_a_worker_that_is_told_to_end_says_so(self, tmp_path, path):
        with talker() as udp:
            parameters = {"since": "-1s", "follow": "1"} if path == "/ring" else {}
            async with (
                recording(tmp_path) as (running, http),
                Following(http, path, filter=udp.filter, **parameters) as following,
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(following.read())
                await wait_until(lambda: following.stream.beats)
                udp.send(10)
                await stop(running)
        stream = read_stream(following.data)
        assert stream.packets == 10
        assert stream.last.note.ended is EndReason.SHUTDOWN

    async def test_a_worker_that_is_killed_leaves_no_last_block(self, tmp_path):
        async with (
            recording(tmp_path, exit_code=-signal.SIGKILL) as (running, http),
            Following(http) as following,
        ):
            os.kill(running.pid, signal.SIGKILL)
            with pytest.raises(aiohttp.ClientPayloadError):
                await following.read()
        assert following.stream.ended is None

    async def test_a_stream_that_fails_leaves_no_last_block(
        self, tmp_path, own_network
    ):
        with contextlib.suppress(OSError), own_network.feed(1):
            async with (
                recording(tmp_path) as (_, http),
                Following(http, interface="feed", filter="udp port 1") as following,
                asyncio.TaskGroup() as tasks,
            ):

                async def fail():
                    with pytest.raises(aiohttp.ClientPayloadError):
                        await following.read()

                tasks.create_task(fail())
                await wait_until(lambda: following.stream.beats)
                remove = ["ip", "link", "delete", "feed"]
                await asyncio.to_thread(subprocess.run, remove, check=True)
        assert following.stream.ended is None


class TestHeartbeats:
    @pytest.mark.parametrize("path", ["/capture", "/ring"])
    async def test_an_idle_stream_has_them_four_times_a_second(self, tmp_path, path):
        parameters = {"since": "-1s", "follow": "1"} if path == "/ring" else {}
        async with (
            recording(tmp_path) as (_, http),
            Following(
                http, path, filter="udp port 1", duration="2.1s", **parameters
            ) as following,
        ):
            await following.read()
        beats = following.stream.beats[:-1]
        assert 8 <= len(beats) <= 10
        steps = [b.arrived - a.arrived for a, b in itertools.pairwise(beats)]
        assert all(0.1 < step < 0.4 for step in steps), steps
        # An idle host promises nearly the present: it holds nobody back.
        began, ended = beats[1].time_ns, beats[-1].time_ns
        assert abs((ended - began) / S - (beats[-1].arrived - beats[1].arrived)) < 0.2
        assert (
            0 < following.stream.last.ended_ns - following.stream.promised_ns < S // 2
        )

    async def test_a_long_scan_has_them_as_well(self, tmp_path):
        """A window of which nothing matches is silent, and says how far it is."""
        with talker() as udp:
            async with recording(tmp_path) as (_, http):
                for _ in range(100):
                    udp.send(40, size=60_000)
                    await asyncio.sleep(0)
                async with Following(
                    http, "/ring", last="1m", filter="udp port 1"
                ) as following:
                    await following.read()
        stream = following.stream
        assert stream.packets == 0
        steps = [b.arrived - a.arrived for a, b in itertools.pairwise(stream.beats)]
        assert all(step < 0.5 for step in steps), steps
        times = [beat.time_ns for beat in stream.beats]
        assert times == sorted(times)


class TestInterfaceDrops:
    async def test_frames_that_an_interface_drops_are_counted_from_then_on(
        self, tmp_path, own_network
    ):
        asked = {"filter": dropping.FILTER}
        follow = {"since": "-1s", "follow": "1"}
        with dropping.losing_link(own_network) as link:
            async with (
                recording(
                    tmp_path,
                    "--ring-link",
                    "sll2",
                    program=(PYTHON, dropping.__file__),
                ) as (running, http),
                contextlib.AsyncExitStack() as stack,
            ):
                link.lose(5)
                streams = [
                    await stack.enter_async_context(Following(http, path, **parameters))
                    for path, parameters in (
                        ("/capture", asked),
                        ("/capture", asked | {"interface": "feed"}),
                        ("/capture", {"interface": "lo"}),
                        ("/ring", asked | follow),
                        ("/ring", asked | follow | {"interface": "feed"}),
                        ("/ring", follow | {"interface": "lo"}),
                        ("/ring", asked | {"last": "1m"}),
                    )
                ]
                async with asyncio.TaskGroup() as tasks:
                    for each in streams:
                        tasks.create_task(each.read())
                    await wait_until(lambda: all(each.stream.beats for each in streams))
                    link.lose(12)
                    link.send(7)
                    await wait_until(
                        lambda: all(
                            streams[number].stream.packets == 7
                            for number in (0, 1, 3, 4)
                        )
                    )
                    await stop(running)
        told = [each.stream.last.interface_dropped for each in streams]
        assert told == [12, 12, 0, 12, 12, 0, None]


class TestPromises:
    """No record comes from before an earlier promise: the reader checks each one."""

    PACKETS = 300_000

    async def load(self, net, pace=None) -> None:
        await asyncio.to_thread(generate, net, self.PACKETS, pace, payload=100)

    async def test_at_full_speed_stalled_and_stopped(self, tmp_path, own_network):
        async with (
            recording(tmp_path, "--buffer-size", "8MiB") as (running, http),
            contextlib.AsyncExitStack() as stack,
        ):
            streams = {}
            for name, path, parameters in (
                ("live", "/capture", {"idle": "2s"}),
                ("stalled", "/capture", {"idle": "2s"}),
                (
                    "sparse",
                    "/capture",
                    {"filter": "udp[8:4] & 1 = 2", "duration": "5s"},
                ),
                ("follower", "/ring", {"since": "-1s", "follow": "1", "idle": "2s"}),
            ):
                streams[name] = await stack.enter_async_context(
                    Following(http, path, fast=True, **parameters)
                )
            async with asyncio.TaskGroup() as tasks:
                for each in streams.values():
                    tasks.create_task(each.read())
                loading = tasks.create_task(self.load(own_network))
                await wait_until(lambda: len(streams["live"].data) > 1_000_000)
                streams["stalled"].takes.clear()
                running.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(1)
                running.process.send_signal(signal.SIGCONT)
                await loading
                streams["stalled"].takes.set()
        for name, each in streams.items():
            stream = read_stream(each.data, keep=False)
            if name == "follower":
                assert stream.packets + stream.last.dropped >= self.PACKETS
            else:
                assert balance(stream) == 0, name
            if name in ("live", "stalled"):
                assert stream.last.received >= self.PACKETS
                assert stream.packets > 0

    async def test_they_come_between_packets_that_never_end(
        self, tmp_path, own_network
    ):
        async with (
            recording(tmp_path) as (_, http),
            Following(http, fast=True, idle="1s") as live,
            Following(
                http, "/ring", fast=True, idle="1s", since="-1s", follow="1"
            ) as follower,
            asyncio.TaskGroup() as tasks,
        ):
            for each in (live, follower):
                tasks.create_task(each.read())
            await self.load(own_network, pace=100_000)
        for each in (live, follower):
            stream = read_stream(each.data, keep=False)
            assert stream.packets >= self.PACKETS
            # The stream itself has them that often, whenever they are read.
            times = [beat.time_ns for beat in stream.beats[1:-1]]
            assert len(times) >= 12
            steps = [b - a for a, b in itertools.pairwise(times)]
            assert statistics.median(steps) < 0.3 * S, steps
