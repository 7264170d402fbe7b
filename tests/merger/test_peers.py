"""Targets that fail in every way there is: each is named with its reason, the others
go on, and what had come before is in the output."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import shlex
import socket
import struct

import pytest

from support.captures import Record, parse_pcap, pcap, pcap_header, pcap_record, pcapng
from support.commands import COMMAND, environment, run, started
from support.servers import answer, capture, refusing_port, serving

pytestmark = pytest.mark.process

START = 1_700_000_000_000_000_000
GOOD = [Record(START + n * 2000, f"good {n}".encode()) for n in range(50)]
BAD = [Record(START + n * 2000 + 1000, f"bad {n}".encode()) for n in range(50)]


async def beside_a_good_one(target, *options, env=None):
    """Run with a good target beside ``target``; return the result and its records.

    What breaks is not tried again.
    """
    async with serving(capture([pcap(GOOD)])) as good:
        result = await run(
            "--no-reconnect", *options, f"good={good.url}", f"bad={target}", env=env
        )
    records = parse_pcap(result.out)
    assert [record for record in records if record.data.startswith(b"good")] == GOOD
    assert "good: 50 packets received, - dropped by kernel, 0 late" in result.err
    return result, [record for record in records if record not in GOOD]


async def beside_a_good_one_serving(script, *options):
    async with serving(script) as server:
        return await beside_a_good_one(server.url, *options)


def complaint(result):
    """Return what was said about the bad target when it failed, once."""
    (line,) = [x for x in result.err.splitlines() if x.startswith("ddump: bad: ")]
    return line.removeprefix("ddump: bad: ")


async def test_it_refuses():
    result, _ = await beside_a_good_one(f"http://127.0.0.1:{refusing_port()}")
    assert result.code == 4
    assert complaint(result) == "connection refused"
    assert "\nbad: not captured: connection refused\n" in result.err


async def test_its_name_does_not_exist():
    result, _ = await beside_a_good_one("http://no-such-host.invalid")
    assert result.code == 4
    assert complaint(result).startswith("cannot look up no-such-host.invalid: ")


async def test_a_dead_name_server_keeps_nobody_waiting(tmp_path):
    """Neither the others, nor the end of the command."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.77\n")
    script = f"mount --bind {resolv} /etc/resolv.conf && exec " + shlex.join(
        [*COMMAND, "--connect-timeout", "300ms", "http://slow.example"]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as never_answers:
        never_answers.bind(("127.0.0.77", 53))
        process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", script,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )  # fmt: skip
        async with asyncio.timeout(4):  # the system's own patience is 10 s and more
            _, err = await process.communicate()
    assert process.returncode == 3
    assert err.startswith(b"ddump: slow.example: no answer within 300ms\n")


async def test_it_never_answers():
    async def script(exchange):
        await exchange.gone()

    result, _ = await beside_a_good_one_serving(script, "--connect-timeout", "300ms")
    assert result.code == 4
    assert complaint(result) == "no answer within 300ms"


async def test_it_never_stops_to_say_continue():
    async def script(exchange):
        while True:
            await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.01)

    result, _ = await beside_a_good_one_serving(script, "--connect-timeout", "300ms")
    assert result.code == 4
    assert complaint(result) == "no answer within 300ms"


async def test_it_closes_without_an_answer():
    async def script(exchange):
        pass

    result, _ = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result).startswith("the connection was closed without an answer")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("401 Unauthorized", "401 Unauthorized (see --user and --token-file)"),
        ("403 Forbidden", "403 Forbidden (the credentials are not enough)"),
        (
            "404 Not Found",
            "404 Not Found (is the path right? a worker has /capture and /ring)",
        ),
        ("502 Bad Gateway", "502 Bad Gateway"),
        ("204 No Content", "204 No Content"),
        ("599 What\x1b[31mever", r"599 What\x1b[31mever"),
    ],
)
async def test_it_refuses_by_status(status, expected):
    result, _ = await beside_a_good_one_serving(answer(status))
    assert result.code == 4
    assert complaint(result) == expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_named_and_not_followed(status):
    async with serving(capture([pcap(BAD)])) as other:
        moved = f"http://eve:evil@127.0.0.1:{other.port}/x"
        script = answer(f"{status} Moved", location=moved)
        async with serving(script) as server:
            target = server.url.replace("//", "//alice:topsecret@")
            result, records = await beside_a_good_one(target)
        assert other.connections == 0
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    assert result.code == 4
    assert f"redirects to http://127.0.0.1:{other.port}/x, which is not f" in result.err
    assert "secret" not in result.err
    assert "evil" not in result.err
    assert records == []


@pytest.mark.parametrize(
    "content_type", ["text/html; charset=utf-8", "application/json"]
)
async def test_it_answers_with_another_type(content_type):
    script = answer("200 OK", pcap(BAD), content_type=content_type)
    result, records = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result).startswith(
        f"the answer is {content_type.partition(';')[0]}, not a capture"
    )
    assert records == []


@pytest.mark.parametrize(
    "content_type",
    ["", "application/vnd.tcpdump.pcap", "Application/Octet-Stream; x=y",
     "application/x-pcapng"],
)  # fmt: skip
async def test_types_that_captures_have(content_type):
    body = pcapng(BAD) if content_type.endswith("ng") else pcap(BAD)

    async def script(exchange):
        await exchange.begin(content_type)
        await exchange.chunk(body)
        await exchange.end()

    result, records = await beside_a_good_one_serving(script)
    assert result.code == 0
    assert records == BAD


async def test_a_capture_with_its_length_and_one_that_ends_with_the_connection():
    async def script(exchange):
        if exchange.request.target == "/length":
            await exchange.answer("200 OK", pcap(BAD), content_type="")
        else:
            await exchange.send(b"HTTP/1.0 200 OK\r\n\r\n" + pcap(GOOD))

    async with serving(script) as server:
        result = await run(f"{server.url}/length", f"{server.url}/old")
    assert result.code == 0
    assert parse_pcap(result.out) == sorted(GOOD + BAD, key=lambda r: r.timestamp_ns)


async def test_a_problem_is_told_in_its_own_words():
    problem = {
        "title": "Invalid filter",
        "status": 400,
        "detail": "filter: can't parse filter expression: syntax error",
        "hint": "this worker captures 'any', so there is no Ethernet header",
        "parameter": "filter",
        "extra": [1],
    }
    script = answer(
        "400 Bad Request",
        json.dumps(problem).encode(),
        content_type="application/problem+json",
    )
    result, _ = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result) == (
        "400: Invalid filter: filter: can't parse filter expression: syntax error "
        "(this worker captures 'any', so there is no Ethernet header)"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"title": "No\\u001b[31m", "status": 400}', r"400: No\x1b[31m"),
        (
            b'{"title": "No", "status": 400, "parameter": "snaplen", "detail": "bad"}',
            "400: snaplen: No: bad",
        ),
        (b'{"title": "", "status": 400}', "400: 400 Bad Request"),
        (b'{"status": 400}', "400 Bad Request"),
        (b"{", "400 Bad Request"),
        (b"\xff", "400 Bad Request"),
        (b'{"title": "' + b"x" * 70_000 + b'", "status": 400}', "400 Bad Request"),
    ],
)
async def test_a_problem_may_be_one_itself(body, expected):
    script = answer("400 Bad Request", body, content_type="application/problem+json")
    result, _ = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result) == expected


async def test_an_error_that_does_not_end():
    async def script(exchange):
        await exchange.head("500 Oops", {"Transfer-Encoding": "chunked"})
        while True:
            await exchange.chunk(b"x" * 1000)

    result, _ = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result) == "500 Internal Server Error"


async def test_an_error_that_trickles():
    async def script(exchange):
        await exchange.head("500 Oops", {"Transfer-Encoding": "chunked"})
        await exchange.gone()

    result, _ = await beside_a_good_one_serving(script, "--connect-timeout", "300ms")
    assert result.code == 4
    assert complaint(result) == "no answer within 300ms"


def streams(data, *, end):
    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(data)
        if end == "clean":
            await exchange.end()
        elif end == "reset":
            await asyncio.sleep(0.1)  # what was sent is to arrive: a reset overtakes it
            exchange.reset()

    return script


@pytest.mark.parametrize("end", ["clean", "close", "reset"])
@pytest.mark.parametrize("cut", [1, 15, 16, 17])
async def test_it_ends_in_the_middle_of_a_record(end, cut):
    data = pcap(BAD) + pcap_record(BAD[0])[:cut]
    result, records = await beside_a_good_one_serving(streams(data, end=end))
    assert result.code == 4
    assert records == BAD
    assert complaint(result)
    assert "\nbad: 50 packets received, - dropped by kernel, 0 late, truncated: " in (
        result.err
    )


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_it_ends_between_records_but_not_as_it_should(end):
    result, records = await beside_a_good_one_serving(streams(pcap(BAD), end=end))
    assert result.code == 4
    assert records == BAD
    assert complaint(result) == "the connection ended before the stream did"


@pytest.mark.parametrize(
    "nonsense", [b"zz\r\n", b"-5\r\n", b"f" * 25 + b"\r\n", b"0x4\r\n"]
)
async def test_it_sends_a_chunk_that_cannot_be_understood(nonsense):
    whole = pcap(BAD)

    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(whole[:500])
        await asyncio.sleep(0.2)  # the head is understood before the rest arrives
        rest = whole[500:]
        await exchange.send(b"%x\r\n%b\r\n%b" % (len(rest), rest, nonsense))
        await exchange.gone()

    result, records = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert records == BAD
    assert complaint(result).startswith("the answer is not HTTP: ")


async def test_what_came_before_the_end_is_read_however_much_it_is():
    """The connection is lost while more is unread than a single read brings."""
    many = [Record(START + n * 1000, bytes(1400)) for n in range(2000)]

    result, records = await beside_a_good_one_serving(streams(pcap(many), end="close"))
    assert result.code == 4
    assert records == many


@pytest.mark.parametrize("length", range(24))
async def test_it_ends_within_the_header(length):
    script = streams(pcap_header()[:length], end="clean") if length else capture([])
    result, records = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert records == []
    assert "\nbad: not captured: " in result.err


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>502</body></html>" * 3,
        bytes(100),
        b"\xff" * 100,
        hashlib.sha512(b"noise").digest() * 100,
    ],
)
async def test_it_sends_no_capture(data):
    result, records = await beside_a_good_one_serving(streams(data, end="clean"))
    assert result.code == 4
    assert records == []
    assert "at byte 0" in complaint(result)


@pytest.mark.parametrize("caplen", [0xFFFF_FFFF, 0x7FFF_FFFF, 262_145])
async def test_a_record_that_is_too_long_to_be_one(caplen):
    record = struct.pack("<IIII", 1_700_000_001, 0, caplen, caplen)
    script = streams(pcap(BAD) + record + bytes(1000), end="clean")
    result, records = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert records == BAD
    assert f"at byte {len(pcap(BAD))}" in complaint(result)
    assert "bad: 50 packets received, - dropped by kernel, 0 late, trunc" in result.err


async def test_another_link_type():
    script = streams(pcap(BAD, link_type=1), end="clean")
    result, records = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert records == []
    assert "link type" in complaint(result)


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 17 + b"\r\n",
        b"\0" * 1000,
    ],
)
async def test_it_does_not_speak_http(head):
    async def script(exchange):
        await exchange.send(head)
        await exchange.gone()

    result, records = await beside_a_good_one_serving(script, "--connect-timeout", "1s")
    assert result.code == 4
    assert records == []
    assert complaint(result)


@pytest.mark.parametrize("line", [b"X: " + b"y" * 100, b"z"])
async def test_a_head_that_does_not_end(line):
    async def script(exchange):
        await exchange.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await exchange.send(line if line == b"z" else line + b"\r\n")

    result, _ = await beside_a_good_one_serving(script, "--connect-timeout", "10s")
    assert result.code == 4
    assert complaint(result).startswith("the answer is not HTTP: ")


async def test_a_compressed_answer_is_never_inflated():
    bomb = gzip.compress(bytes(50_000_000))
    script = answer(
        "200 OK", bomb, content_encoding="gzip",
        content_type="application/vnd.tcpdump.pcap",
    )  # fmt: skip
    result, _ = await beside_a_good_one_serving(script)
    assert result.code == 4
    assert complaint(result) == (
        "the answer is encoded as gzip, which was not asked for"
    )


async def test_a_compressed_error_is_never_inflated():
    bomb = gzip.compress(bytes(50_000_000))
    script = answer(
        "500 Oops", bomb, content_encoding="gzip",
        content_type="application/problem+json",
    )  # fmt: skip
    result, _ = await beside_a_good_one_serving(script)
    assert complaint(result) == "500 Internal Server Error"


async def test_a_trickle():
    async def script(exchange):
        await exchange.begin()
        data = pcap(BAD)
        for at in range(0, len(data), 3):
            await exchange.chunk(data[at : at + 3])
            await asyncio.sleep(0)
        await exchange.end()

    result, records = await beside_a_good_one_serving(script)
    assert result.code == 0
    assert records == BAD


async def test_all_that_is_asked():
    async with serving(capture([pcap(GOOD)])) as server:
        result = await run(
            "-f", "tcp", "-i", "eth0", "-s", "96", "--duration", "5",
            f"{server.url}/p/?filter=port 80 or port 81",
        )  # fmt: skip
        assert result.code == 0
        (request,) = server.requests
    assert request.method == "GET"
    assert request.target == (
        "/p/capture?interface=eth0&filter=%28port%2080%20or%20port%2081%29%20and%20"
        "%28tcp%29&snaplen=96&duration=5s"
    )
    assert request.headers["Accept"] == (
        "application/x-pcapng, application/vnd.tcpdump.pcap;q=0.5"
    )
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("ddump/")
    assert "Authorization" not in request.headers


async def test_no_target_is_left():
    async with serving(answer("404 Not Found")) as server:
        result = await run(
            server.url, f"http://127.0.0.1:{refusing_port()}", "none.pcap"
        )
    assert result.code == 3
    assert result.out == b""
    assert "ddump: 127.0.0.1: 404" in result.err
    assert "ddump: 127.0.0.1#2: connection refused" in result.err
    assert "ddump: none.pcap: no such file" in result.err
    assert "none.pcap: not captured: " in result.err


async def test_quiet_says_errors_alone():
    async with serving(capture([pcap(GOOD)])) as good:
        bad = f"bad=http://127.0.0.1:{refusing_port()}"
        result = await run("-q", good.url, bad)
    assert result.code == 4
    assert result.err == "ddump: bad: connection refused\n"


async def test_verbose_says_more():
    async with serving(capture([pcap(GOOD)])) as good:
        result = await run("-vv", f"good={good.url}")
    assert result.code == 0
    assert "ddump: good: opened\n" in result.err


async def test_a_stream_is_not_held_by_one_that_connects():
    """The good one's packets come out while the other never answers."""

    async def silent(exchange):
        await exchange.gone()

    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(pcap(GOOD))
        await exchange.gone()

    async with (
        serving(silent) as never,
        serving(script) as good,
        started("--hold", "200ms", good.url, never.url) as process,
    ):
        async with asyncio.timeout(5):
            data = await process.stdout.readexactly(len(pcap(GOOD)))
        assert parse_pcap(data) == GOOD
        assert process.returncode is None
