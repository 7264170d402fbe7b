"""The worker over HTTP: what is asked is what is delivered, and errors are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import socket
import struct
import time
from urllib.parse import quote

import aiohttp
import pytest

from ddump_common.pcap import PcapHeader
from support.loopback import payloads, records, talker, tcpdump
from support.programs import worker
from support.workers import wait_until

pytestmark = [pytest.mark.live, pytest.mark.process]

LO = socket.if_nametoindex("lo")


@pytest.fixture(scope="module")
def url():
    """One worker for all tests of this module."""
    with worker("127.0.0.1:0") as started:
        yield started


@pytest.fixture
async def http(url):
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        yield session


@contextlib.asynccontextmanager
async def capturing(http, **parameters):
    """Begin a capture; its header has arrived when the body begins."""
    async with http.get("/capture", params=parameters) as response:
        assert response.status == 200, await response.text()
        yield response


async def captured(http, send, **parameters) -> bytes:
    """Return all of a capture that ends by itself, ``send`` called when it began."""
    async with capturing(http, **parameters) as response:
        send()
        return await response.read()


async def problem(http, query: str, *, method: str = "GET") -> dict:
    url = http._base_url.with_path("/capture", encoded=True)
    async with http.request(
        method, aiohttp.client.URL(f"{url}?{query}", encoded=True)
    ) as response:
        check_headers(response)
        assert response.content_type == "application/problem+json"
        answer = await response.json(content_type=None) if method == "GET" else {}
        if answer:
            assert answer["status"] == response.status
        return answer or {"status": response.status}


def check_headers(response) -> None:
    assert response.headers["Ddump-Host"] == platform.node()
    assert abs(int(response.headers["Ddump-Time"]) - time.time_ns()) < 5 * 10**9


class TestCapture:
    async def test_packets_are_delivered_once_whole_and_in_order(self, http):
        with talker() as udp:
            async with capturing(http, filter=udp.filter, packets="50") as response:
                sent = udp.send(50, size=300)
                data = await response.read()
            check_headers(response)
            assert response.headers["Content-Type"] == "application/vnd.tcpdump.pcap"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert PcapHeader.parse(data) == PcapHeader(link_type=113)
            assert payloads(data) == sent
            assert len(tcpdump(data)) == 50

    async def test_the_header_comes_before_any_packet(self, http):
        async with capturing(http, filter="udp port 1") as response:
            async with asyncio.timeout(1):
                header = await response.content.readexactly(24)
            assert PcapHeader.parse(header).link_type == 113

    async def test_the_first_packet_after_the_header_is_captured(self, http):
        for _ in range(3):
            with talker() as udp:
                data = await captured(
                    http, udp.send, filter=udp.filter, interface="lo", packets="1"
                )
                assert len(payloads(data)) == 1

    async def test_one_packet_arrives_within_200_ms(self, http):
        delays = []
        with talker() as udp:
            async with capturing(http, filter=udp.filter) as response:
                await response.content.readexactly(24)
                for _ in range(20):
                    began = time.monotonic()
                    udp.send()
                    await response.content.readexactly(16 + 16 + 28 + 32)
                    delays.append(time.monotonic() - began)
        assert max(delays) < 0.2, delays

    async def test_the_kernel_filters(self, http):
        with talker() as udp, talker() as noise:
            async with capturing(http, filter=udp.filter, packets="5") as response:
                noise.send(1000)
                sent = udp.send(5)
                data = await response.read()
            assert payloads(data) == sent

    async def test_a_filter_with_or_does_not_disable_the_exclusions(self, http, url):
        port = int(url.rpartition(":")[2])
        data = await captured(
            http, lambda: None, filter=f"tcp port {port} or udp port 1", duration="0.3"
        )
        assert records(data) == []

    async def test_loopback_is_captured_once(self, http):
        with talker() as udp:
            data = await captured(
                http, lambda: udp.send(9), filter=udp.filter, duration="0.3"
            )
            assert len(payloads(data)) == 9

    async def test_ipv6(self, http):
        with talker(socket.AF_INET6, "::1") as udp:
            data = await captured(
                http, udp.send, filter=f"ip6 and {udp.filter}", packets="1"
            )
            (line,) = tcpdump(data)
            assert "IP6 ::1." in line

    async def test_sll2(self, http):
        with talker() as udp:
            data = await captured(
                http, lambda: udp.send(3), filter=udp.filter, link="sll2", packets="3"
            )
            assert PcapHeader.parse(data).link_type == 276
            for _, _, packet in records(data):
                assert struct.unpack_from(">H2xI", packet) == (0x0800, LO)
            assert all(" lo " in line for line in tcpdump(data))

    async def test_nano(self, http):
        with talker() as udp:
            before = time.time_ns()
            data = await captured(
                http, udp.send, filter=udp.filter, precision="nano", packets="1"
            )
            ((stamp, _, _),) = records(data)
            assert before < stamp < time.time_ns()

    async def test_an_interface_named_twice_is_one(self, http):
        with talker() as udp:
            parameters = [("filter", udp.filter), ("packets", "2")]
            both = [*parameters, ("interface", "lo"), ("interface", "lo")]
            async with http.get("/capture", params=both) as response:
                udp.send(2)
                assert len(payloads(await response.read())) == 2

    async def test_snaplen(self, http):
        with talker() as udp:
            data = await captured(
                http,
                lambda: udp.send(1, size=500),
                filter=udp.filter,
                snaplen="50",
                packets="1",
            )
            assert PcapHeader.parse(data).snaplen == 50
            ((_, length, packet),) = records(data)
            assert (length, len(packet)) == (16 + 28 + 500, 50)

    async def test_bytes_stop_after_the_packet_that_reaches_them(self, http):
        with talker() as udp:
            data = await captured(
                http, lambda: udp.send(10, size=100), filter=udp.filter, bytes="145"
            )
            assert len(payloads(data)) == 2

    async def test_duration_stops_with_all_that_was_captured_by_then(self, http):
        with talker() as udp:
            began = time.monotonic()
            async with capturing(http, filter=udp.filter, duration="0.4") as response:
                await asyncio.sleep(0.3)
                sent = udp.send(5)
                data = await response.read()
            assert 0.4 <= time.monotonic() - began < 1.2
            assert payloads(data) == sent

    async def test_idle_stops_when_nothing_comes(self, http):
        with talker() as udp:
            async with capturing(http, filter=udp.filter, idle="0.4") as response:
                for _ in range(4):
                    udp.send()
                    await asyncio.sleep(0.2)
                quiet = time.monotonic()
                data = await response.read()
            assert 0.1 < time.monotonic() - quiet < 1.2
            assert len(payloads(data)) == 4

    async def test_the_end_is_the_final_chunk(self, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /capture?duration=0.1&filter=udp+port+1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert body.startswith(b"18\r\n")
        assert body.endswith(b"\r\n0\r\n\r\n")

    async def test_http_1_0_is_served_without_chunks(self, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with talker() as udp:
            target = f"/capture?packets=40&filter={quote(udp.filter)}"
            writer.write(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            sent = udp.send(40, size=1000)
            body = await reader.read()
            writer.close()
        assert b"chunked" not in head
        assert PcapHeader.parse(body).link_type == 113
        assert payloads(body) == sent

    async def test_head_checks_and_opens_nothing(self, http):
        before = (await status(http))["totals"]["streams"]
        async with http.head("/capture", params={"filter": "udp"}) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/vnd.tcpdump.pcap"
            check_headers(response)
        for query in ("filter=vlan", "interface=nosuch0", "foo=1"):
            assert (await problem(http, query, method="HEAD"))["status"] == 400
        assert (await status(http))["totals"]["streams"] == before

    async def test_input_during_a_capture_is_ignored(self, url):
        host, port = url.removeprefix("http://").split(":")
        with talker() as udp:
            reader, writer = await asyncio.open_connection(host, int(port))
            request = f"GET /capture?packets=1&filter={quote(udp.filter)} HTTP/1.1\r\n"
            writer.write(request.encode() + b"Host: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(50):
                writer.write(
                    b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
                )
                await writer.drain()
            udp.send()
            rest = await reader.read()
            writer.close()
            assert rest.endswith(b"0\r\n\r\n")
            assert b"HTTP/1.1" not in rest


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "parameter", "words"),
        [
            ("filter=foo+bar+baz", "filter", "syntax error"),
            ("filter=vlan", "filter", "no VLAN support"),
            ("filter=ether+host+00:00:00:00:00:01", "filter", "ether"),
            ("filter=broadcast", "filter", "broadcast"),
            ("filter=tcp)+or+(udp", "filter", "syntax error"),
            ("filter=tcp%00", "filter", "NUL"),
            ("filter=%ff", "query", "UTF-8"),
            ("filter=link[4:2]%3D6", "filter", "kernel cannot filter"),
            ("filter=" + "a" * 4097, "filter", "4097 bytes"),
            ("filter=%20" * 1 + "%20" * 4096, "filter", "4097 bytes"),
            ("interface=nosuch0", "interface", "'nosuch0' is not an interface"),
            ("interface=lo&interface=nosuch0", "interface", "nosuch0"),
            ("interface=", "interface", "not an interface"),
            ("snaplen=0", "snaplen", "out of range"),
            ("snaplen=262145", "snaplen", "262144"),
            ("snaplen=12x", "snaplen", "whole number"),
            ("packets=0", "packets", "out of range"),
            ("packets=99999999999999999999", "packets", "whole number"),
            ("bytes=-1", "bytes", "whole number"),
            ("duration=0", "duration", "out of range"),
            ("duration=soon", "duration", "not a duration"),
            ("idle=5fortnights", "idle", "not a duration"),
            ("link=ether", "link", "not one of"),
            ("precision=pico", "precision", "not one of"),
            ("packets=1&packets=2", "packets", "more than once"),
            ("filter=udp&filter=tcp", "filter", "more than once"),
            ("fliter=udp", "fliter", "unknown parameter"),
            ("since=-5m", "since", "unknown parameter"),
            ("&".join(["interface=lo"] * 65), "interface", "more than 64"),
            ("&".join(["interface=lo"] * 257), "query", "more than 256"),
        ],
    )
    async def test_what_is_wrong_is_named_before_the_200(
        self, http, query, parameter, words
    ):
        answer = await problem(http, query)
        assert answer["status"] == 400
        assert answer["parameter"] == parameter
        assert words in answer["detail"]

    async def test_a_filter_that_is_longest_and_all_escaped_is_taken(self, http):
        text = ("udp port 1 or " * 300)[:4082] + "udp  port    1"
        assert len(text) == 4096
        query = "filter=" + "".join(f"%{ord(char):02X}" for char in text)
        answer = await problem(http, query + "&packets=0")
        assert answer["parameter"] == "packets"

    async def test_the_hint_says_that_the_capture_is_cooked(self, http):
        answer = await problem(http, "filter=vlan+5")
        assert "captures the device any, cooked" in answer["hint"]

    async def test_an_unknown_path_is_told_which_there_are(self, http):
        async with http.get("/nosuch") as response:
            check_headers(response)
            assert response.status == 404
            assert response.content_type == "application/problem+json"
            hint = (await response.json(content_type=None))["hint"]
        for path in ("/capture", "/api/v1/status", "/metrics"):
            assert path in hint

    async def test_another_method_is_told_which_there_are(self, http):
        async with http.post("/capture") as response:
            check_headers(response)
            assert response.status == 405
            assert response.headers["Allow"] == "GET, HEAD"
            assert response.content_type == "application/problem+json"

    async def test_a_body_is_refused(self, http):
        async with http.get("/api/v1/health", data=b"x" * 100) as response:
            assert response.status == 400
            assert "body" in (await response.json(content_type=None))["detail"]

    async def test_an_expectation_is_refused_as_all_else_is(self, http):
        for path in ("/capture", "/metrics"):
            async with http.get(path, headers={"Expect": "a\tfoo"}) as response:
                check_headers(response)
                assert response.status == 417
                answer = await response.json(content_type="application/problem+json")
            assert answer["detail"] == "a\\x09foo is not known"

    async def test_a_body_that_waits_for_a_word_is_refused_with_it(self, http):
        headers = {"Expect": "100-continue", "Content-Length": "5"}
        async with http.get("/capture", headers=headers, data=b"12345") as response:
            assert response.status == 400

    @pytest.mark.parametrize(
        ("target", "status"),
        [("/api/v1/status", 200), ("/api/v1/interfaces", 200), ("/nosuch", 404)],
    )
    async def test_a_client_that_closes_its_side_is_answered(self, url, target, status):
        head, _, body = (await half_closed(url, target)).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert json.loads(body)

    async def test_a_client_that_closes_its_side_captures_nothing(self, url, http):
        for _ in range(5):
            answer = await half_closed(url, "/capture?filter=udp+port+1")
            assert not answer.startswith(b"HTTP/1.1 200")
        await wait_until(lambda: no_streams(http))

    async def test_a_client_that_closes_its_side_and_asks_nothing(self, url):
        host, port = url.removeprefix("http://").split(":")
        for words in (b"", b"GET /metr"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(words)
            writer.write_eof()
            async with asyncio.timeout(1):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    @pytest.mark.parametrize(
        "request_",
        [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /capture?filter="
            + b"a" * 50000
            + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        ],
        ids=["nonsense", "version", "too long", "header", "tls", "many"],
    )
    async def test_what_is_not_http_is_answered_and_cut(self, url, request_):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
        assert b"Ddump-Time: " in head
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] in range(400, 500)


async def half_closed(url: str, target: str) -> bytes:
    """Ask, close the sending side, and return what comes until the worker closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    writer.write_eof()
    try:
        async with asyncio.timeout(2):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def no_streams(http) -> bool:
    return not (await status(http))["streams"]


async def status(http) -> dict:
    async with http.get("/api/v1/status") as response:
        check_headers(response)
        assert response.status == 200
        assert response.content_type == "application/json"
        return await response.json()


async def metric(http, name: str) -> float:
    async with http.get("/metrics") as response:
        check_headers(response)
        text = await response.text()
    (value,) = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(f"{name} ")
    ]
    return value


class TestAccounts:
    async def test_health(self, http):
        async with http.get("/api/v1/health") as response:
            check_headers(response)
            assert await response.json() == {"status": "ok", "version": "0.1.0"}

    async def test_status_and_metrics_agree_with_what_was_sent(self, http):
        before = (await status(http))["totals"]
        packets = await metric(http, "ddump_worker_packets_total")
        data_bytes = await metric(http, "ddump_worker_bytes_total")
        with talker() as udp:
            async with capturing(http, filter=udp.filter) as response:
                await response.content.readexactly(24)
                udp.send(25, size=100)
                await response.content.readexactly(25 * (16 + 144))
                now = await status(http)
                (stream,) = [
                    each for each in now["streams"] if each["filter"] == udp.filter
                ]
                assert stream["state"] == "running"
                assert stream["packets"] == 25
                assert stream["bytes"] == 25 * 144
                assert stream["dropped"] == stream["interface_dropped"] == 0
                assert stream["buffer_bytes"] == 32 << 20
                assert stream["client"].startswith("127.0.0.1:")
                assert now["states"]["running"] >= 1
                assert now["memory"] == {
                    "used_bytes": 32 << 20,
                    "limit_bytes": 256 << 20,
                }
                assert now["started_ns"] < stream["started_ns"] < now["time_ns"]
        after = (await status(http))["totals"]
        assert after["packets"] - before["packets"] == 25
        assert after["bytes"] - before["bytes"] == 25 * 144
        assert after["streams"] - before["streams"] == 1
        assert await metric(http, "ddump_worker_packets_total") - packets == 25
        assert await metric(http, "ddump_worker_bytes_total") - data_bytes == 25 * 144

    async def test_refusals_are_counted_by_reason(self, http):
        name = 'ddump_worker_refused_total{reason="filter"}'
        await problem(http, "filter=vlan")
        before = await metric(http, name), (await status(http))["totals"]["refused"]
        await problem(http, "filter=vlan")
        await problem(http, "nosuch=1")
        assert await metric(http, name) == before[0] + 1
        assert (await status(http))["totals"]["refused"] == before[1] + 2

    async def test_memory_is_given_back(self, http):
        async def free() -> bool:
            return (await status(http))["memory"]["used_bytes"] == 0

        async with capturing(http, filter="udp port 1"):
            assert not await free()
        await wait_until(free)

    async def test_interfaces(self, http):
        async with http.get("/api/v1/interfaces") as response:
            check_headers(response)
            found = {each["name"]: each for each in await response.json()}
        assert found["lo"]["index"] == LO
        assert found["lo"]["loopback"]
        assert found["lo"]["up"]
        assert "127.0.0.1/8" in found["lo"]["addresses"]
        assert set(found) == {name for _, name in socket.if_nameindex()}
