"""One request, in this process: what is raised for what a server does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time

import aiohttp
import pytest

from ddump_common.errors import (
    BrokenStreamError,
    RefusedError,
    UnreachableError,
    UntrustedError,
)
from ddump_merger.credentials import Keyring
from ddump_merger.failure import _told_parser, explain
from ddump_merger.stream import HttpSource, fetch, open_session
from ddump_merger.target import parse_target
from ddump_merger.trust import Trust
from support.certificates import Authority
from support.servers import answer, capture, refusing_port, serving, tls

SECOND = 1_000_000_000


@contextlib.asynccontextmanager
async def source(url, *, context=None, timeout_ns=5 * SECOND):
    trust = None if context is None else Trust(context=context)
    async with open_session(trust) as session:
        target = parse_target(url, keyring=Keyring())
        source = HttpSource(target, session, connect_timeout_ns=timeout_ns)
        try:
            yield source
        finally:
            source.close()
            source.close()


async def read_all(source):
    pieces = []
    while piece := await source.read():
        pieces.append(piece)
    return b"".join(pieces)


async def eventually(ask):
    """Ask until there is an answer, and return it."""
    async with asyncio.timeout(5):
        while not (answer := ask()):  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
    return answer


async def refused(script, error=RefusedError):
    """Return the error that opening a target raises."""
    async with serving(script) as server, source(server.url) as one:
        with pytest.raises(error) as caught:
            await one.open()
        assert await one.read() == b""
        assert one.arrived() == b""
    return caught.value


async def test_a_capture():
    async with serving(capture([b"abc", b"def"])) as server, source(server.url) as one:
        await one.open()
        assert await read_all(one) == b"abcdef"
        assert await one.read() == b""
        assert one.arrived() == b""


async def test_reading_can_be_given_up_and_loses_nothing():
    go = asyncio.Event()

    async def script(exchange):
        await exchange.begin()
        for piece in (b"abc", b"def"):
            await go.wait()
            go.clear()
            await exchange.chunk(piece)
        await exchange.end()

    async with serving(script) as server, source(server.url) as one:
        await one.open()
        for expected in (b"abc", b"def"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await one.read()
            assert one.arrived() == b""
            go.set()
            assert await one.read() == expected
        assert await one.read() == b""


async def test_what_has_arrived_is_there_without_waiting():
    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(b"abc")
        sent.set()
        await exchange.gone()

    sent = asyncio.Event()
    async with serving(script) as server, source(server.url) as one:
        await one.open()
        await sent.wait()
        assert await eventually(one.arrived) == b"abc"
        assert one.arrived() == b""


async def test_a_broken_stream_is_read_to_its_last_byte():
    """Also when the connection was lost long before anyone read."""

    async def script(exchange):
        await exchange.begin()
        for _ in range(20):
            await exchange.chunk(b"abc")

    async with serving(script) as server, source(server.url) as one:
        await one.open()
        assert await eventually(one._response.content.exception)
        assert await one.read() == b"abc" * 20
        with pytest.raises(BrokenStreamError, match="ended before the stream did"):
            await one.read()


async def test_a_stream_that_breaks_while_it_is_waited_for():
    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(b"abc")
        await go.wait()
        exchange.reset()

    go = asyncio.Event()
    async with serving(script) as server, source(server.url) as one:
        await one.open()
        assert await one.read() == b"abc"
        asyncio.get_running_loop().call_later(0.05, go.set)
        with pytest.raises(BrokenStreamError):
            await one.read()


async def test_a_connection_that_is_closed_under_it():
    async def script(exchange):
        await exchange.begin()
        await exchange.gone()

    async with serving(script) as server, source(server.url) as one:
        await one.open()
        one._response.close()
        with pytest.raises(BrokenStreamError):
            await one.read()


@pytest.mark.parametrize(
    ("lines", "gaps", "said"),
    [
        ({}, None, []),
        ({"Ddump-Window": "gaps=()"}, 0, []),
        ({"Ddump-Window": 'gaps=("1970-01-01T00:00:00Z/1970-01-01T00:00:01Z")'}, 1, []),
        # Two lines are one field.
        ({"Ddump-Window": "omitted=1", "ddump-window": "gaps=()"}, 0, []),
        ({"Ddump-Window": "soon"}, None, [
            "127.0.0.1: whether the ring has all is not known: its Ddump-Window is wrong: "
            "a header that names no gaps"]),
    ],
)  # fmt: skip
async def test_what_is_said_of_a_window(caplog, lines, gaps, said):
    async def script(exchange):
        headers = {
            "Content-Type": "application/vnd.tcpdump.pcap",
            "Content-Length": "0",
        }
        await exchange.head("200 OK", {**headers, **lines})

    async with serving(script) as server, source(f"{server.url}/ring") as one:
        assert one.window is None
        await one.open()
        assert (one.window and len(one.window.gaps)) == gaps
    assert caplog.messages == said


async def test_a_port_that_refuses():
    async with source(f"http://127.0.0.1:{refusing_port()}") as one:
        with pytest.raises(UnreachableError) as caught:
            await one.open()
    assert str(caught.value) == "connection refused"
    assert isinstance(caught.value.__cause__, aiohttp.ClientError)


async def test_a_name_that_does_not_exist():
    async with source("http://no-such-host.invalid") as one:
        with pytest.raises(
            UnreachableError, match=r"cannot look up no-such-host\.invalid: "
        ):
            await one.open()


async def test_a_stream_may_last_for_ever():
    """aiohttp would end it after 300 s, and open no more than 100."""
    async with open_session(None) as session:
        assert session.timeout == aiohttp.ClientTimeout(
            total=None, connect=None, sock_read=None, sock_connect=None
        )
        assert session.connector.limit == session.connector.limit_per_host == 0


async def test_who_is_gone_without_a_word_is_noticed():
    """By the kernel: its timer is set on the connection."""

    async def script(exchange):
        await exchange.begin()
        await exchange.gone()

    async with serving(script) as server, source(server.url) as one:
        await one.open()
        connection = one._response.connection.transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        tcp = socket.IPPROTO_TCP
        idle = connection.getsockopt(tcp, socket.TCP_KEEPIDLE)
        interval = connection.getsockopt(tcp, socket.TCP_KEEPINTVL)
        count = connection.getsockopt(tcp, socket.TCP_KEEPCNT)
    assert idle + interval * count <= 60


async def test_a_system_with_fewer_options(monkeypatch):
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    async with serving(capture([b"abc"])) as server, source(server.url) as one:
        await one.open()
        assert await read_all(one) == b"abc"


async def test_no_answer_in_time():
    async def script(exchange):
        await exchange.gone()

    async with (
        serving(script) as server,
        source(server.url, timeout_ns=SECOND // 10) as one,
    ):
        with pytest.raises(UnreachableError, match="no answer within 100ms"):
            await one.open()


async def test_the_body_of_an_error_is_bounded():
    async def script(exchange):
        await exchange.head("500 Oops", {"Transfer-Encoding": "chunked"})
        while True:
            await exchange.chunk(b"x" * 10_000)

    error = await refused(script)
    assert (error.status, str(error)) == (500, "500 Internal Server Error")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "see --user"), (403, "not enough"), (404, "is the path right"), (503, "")],
)
async def test_hints(status, expected):
    error = await refused(answer(f"{status} x"))
    assert error.status == status
    assert expected in error.hint


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("", "see --user and --token-file"),
        ('Basic realm="x"', "see --user"),
        ("Bearer", "see --token-file"),
        ('bearer, basic realm="y"', "see --user and --token-file"),
        ("Negotiate", ""),
    ],
)
async def test_what_a_server_asks_for(asked, hint):
    headers = {"www_authenticate": asked} if asked else {}
    assert (await refused(answer("401 x", **headers))).hint == hint


@pytest.mark.parametrize("kind", ["password", "token"])
async def test_what_was_shown_is_not_right(kind):
    async with serving(answer("401 x", www_authenticate="Bearer")) as server:
        user = Keyring(user="a", password="b")  # noqa: S106  # of no account
        target = parse_target(
            server.url,
            keyring=user if kind == "password" else Keyring(token="t"),  # noqa: S106
        )
        async with open_session(None) as session:
            one = HttpSource(target, session, connect_timeout_ns=SECOND)
            with pytest.raises(RefusedError) as caught:
                await one.open()
    assert caught.value.hint == f"is the {kind} right?"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "redirects to nowhere,"),
        ({"location": "https://u:p@h/x"}, "redirects to https://h/x,"),
        ({"location": "//u:p@h/x@y"}, "redirects to //h/x@y,"),
        ({"location": "/x"}, "redirects to /x,"),
    ],
)
async def test_redirects(headers, expected):
    error = await refused(answer("302 Found", **headers))
    assert expected in str(error)
    assert error.hint == "name that URL instead, if it is trusted"


async def test_a_prefix_without_its_slash():
    """So nginx answers then, whatever it takes for its own name."""
    script = answer("301 Moved", location="https://u:p@other:1/hosts/web1/?filter=icmp")
    async with serving(script) as server:
        target = parse_target(f"{server.url}/hosts/web1?filter=icmp")
        async with open_session(None) as session:
            one = HttpSource(target, session, connect_timeout_ns=SECOND)
            with pytest.raises(RefusedError) as caught:
                await one.open()
    assert caught.value.hint == f"a proxy's prefix ends in /: {server.url}/hosts/web1/"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {"content_type": "text/html; charset=utf-8"},
            "the answer is text/html, not a",
        ),
        ({"content_type": "text/\x85x"}, r"the answer is text/\x85x, not a"),
        ({"content_encoding": "gzip"}, "the answer is encoded as gzip"),
    ],
)
async def test_what_is_no_capture(headers, expected):
    error = await refused(answer("200 OK", b"<html>", **headers))
    assert error.status == 200
    assert expected in str(error)


async def test_encodings_that_are_none():
    script = answer("200 OK", b"abc", content_encoding="Identity ")
    async with serving(script) as server, source(server.url) as one:
        await one.open()
        assert await read_all(one) == b"abc"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"title": "T", "status": 400, "detail": "d", "hint": "h"}', "400: T: d (h)"),
        (b'{"title": "T", "status": 400, "parameter": "p"}', "400: p: T"),
        (b'{"title": "T", "status": 400, "parameter": "p", "detail": "p: d"}',
         "400: T: p: d"),
        (b'{"title": "", "status": 400}', "400: 400 Bad Request"),
        (b"[]", "400 Bad Request"),
    ],
)  # fmt: skip
async def test_problems(body, expected):
    problem = "application/problem+json; charset=utf-8"
    error = await refused(answer("400 Bad", body, content_type=problem))
    assert str(error) == expected


async def test_a_status_that_nobody_knows():
    assert str(await refused(answer("599 Wh\x07at"))) == r"599 Wh\x07at"


async def test_what_is_no_http():
    async def script(exchange):
        await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        await exchange.gone()

    error = await refused(script, UnreachableError)
    assert str(error).startswith("the answer is not HTTP: ")


async def test_a_line_that_is_too_long():
    script = answer("200 OK", ddump_window="gaps=()," + "x" * 9000)
    assert str(await refused(script, UnreachableError)) == (
        "the answer is not HTTP: a line of its header has more than 8190 bytes"
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Invalid HTTP header: b'a: \\x00'", "Invalid HTTP header"),
        ("Bad status line \"b'SSH'\"", "Bad status line"),
        ("Bad status line 'SSH'", "Bad status line 'SSH'"),
        ("Expected HTTP/:\n\n  b'SSH'\n  ^", "Expected HTTP/"),
    ],
)
def test_what_a_parser_says_has_no_bytes_of_python(message, told):
    assert _told_parser(message) == told


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_answer_at_all(scheme, tmp_path):
    async def script(exchange):
        pass

    authority = Authority(tmp_path)
    context = tls(authority.server("127.0.0.1")) if scheme == "https" else None
    trusting = ssl.create_default_context(cafile=authority.cert)
    async with (
        serving(script, context=context) as server,
        source(server.url, context=trusting) as one,
    ):
        with pytest.raises(
            UnreachableError, match="closed without an answer"
        ) as caught:
            await one.open()
    assert ("https" if scheme == "http" else "--cert") in caught.value.hint


async def test_a_server_without_tls():
    async def script(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        url = f"https://127.0.0.1:{port}"
        async with source(url, context=ssl.create_default_context()) as one:
            with pytest.raises(UnreachableError) as caught:
                await one.open()
    assert caught.value.message in {
        "TLS: record layer failure",
        "TLS: wrong version number",
    }
    assert caught.value.hint == "the server may not speak https"


async def test_a_certificate(tmp_path):
    authority = Authority(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.cert)
    context = tls(authority.server("127.0.0.1"))
    async with serving(capture([b"abc"]), context=context) as server:
        async with source(server.url, context=trusting) as one:
            await one.open()
            assert await read_all(one) == b"abc"
        async with source(server.url, context=ssl.create_default_context()) as one:
            with pytest.raises(UntrustedError) as caught:
                await one.open()
    assert caught.value.message == (
        "the certificate of 127.0.0.1 (CN=127.0.0.1) is of an unknown authority, "
        "CN=authority"
    )
    assert caught.value.hint == "see --ca"


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (OSError(errno.EHOSTUNREACH, "whatever"), ("no route to host", "")),
        (OSError(-2, "Name or service\n"), (r"[Errno -2] Name or service", "")),
        (TimeoutError(), ("TimeoutError", "")),
        (ValueError("a\nb"), (r"a\x0ab", "")),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            ("TLS: wrong version number", "the server may not speak https"),
        ),
        (ssl.SSLError(1, "strange"), ("TLS: strange", "")),
    ],
)
def test_what_is_said_of_exceptions(exc, expected):
    if isinstance(exc, ssl.SSLError) and "WRONG" in exc.strerror:
        exc.reason = "WRONG_VERSION_NUMBER"
    assert explain(exc, parse_target("http://h")) == expected


def test_a_cause_may_be_of_tls():
    exc = aiohttp.ClientOSError(1, "x")
    exc.__cause__ = ssl.SSLError(1, "y")
    exc.__cause__.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    reason, hint = explain(exc, parse_target("https://h"))
    assert reason == "it wants a client's certificate"
    assert "--cert" in hint


# --- Documents ---


async def fetched(url, *, max_bytes=1000):
    async with open_session(None) as session:
        target = parse_target(url, keyring=Keyring())
        return await fetch(
            target, target.url, session,
            accept="application/json", max_bytes=max_bytes, timeout_ns=SECOND // 5,
        )  # fmt: skip


async def test_a_document():
    async with serving(answer("200 OK", b"x" * 1000)) as server:
        assert await fetched(server.url.replace("//", "//a:b@")) == b"x" * 1000
    assert server.requests[0].headers["Accept"] == "application/json"
    assert server.requests[0].headers["Authorization"] == "Basic YTpi"


async def test_a_document_that_is_too_long():
    async with serving(answer("200 OK", b"x" * 1001)) as server:
        with pytest.raises(RefusedError, match="the answer is too long"):
            await fetched(server.url)


async def test_a_document_that_does_not_come():
    async def script(exchange):
        await exchange.head("200 OK", {"Content-Length": "10"})
        await exchange.gone()

    async with serving(script) as server:
        with pytest.raises(UnreachableError, match="no answer within 200ms"):
            await fetched(server.url)


async def test_a_document_that_breaks_off():
    async def script(exchange):
        await exchange.head("200 OK", {"Content-Length": "10"})
        await exchange.send(b"x")

    async with serving(script) as server:
        with pytest.raises(UnreachableError, match="ended before the stream did"):
            await fetched(server.url)


async def test_no_document():
    async with serving(answer("404 Not Found")) as server:
        with pytest.raises(RefusedError, match="404"):
            await fetched(server.url)


async def test_a_connection_that_the_system_gives_up(monkeypatch):
    """ETIMEDOUT is a TimeoutError as well, and not ours."""

    async def given_up(*_, **__):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(aiohttp.ClientSession, "request", given_up)
    async with source("http://127.0.0.1") as one:
        with pytest.raises(UnreachableError, match="connection timed out"):
            await one.open()


# --- What an answer tells ---


async def told(headers, body=b"", *, bounded=False):
    """Return an open source whose answer has these headers."""

    async def script(exchange):
        length = {"Content-Length": str(len(body))}
        chunked = {"Transfer-Encoding": "chunked"}
        await exchange.head("200 OK", headers | (length if bounded else chunked))
        await exchange.send(body)
        await exchange.gone()

    async with serving(script) as server, source(server.url) as one:
        await one.open()
        return one


@pytest.mark.parametrize(
    ("media_type", "number", "expected"),
    [
        ("application/x-pcapng", "7", True),
        ("Application/X-PcapNG; charset=x", "0", True),
        ("application/x-pcapng", "", False),
        ("application/x-pcapng", "-7", False),
        ("application/x-pcapng", "٣", False),
        ("application/x-pcapng", "9" * 30, False),
        ("application/vnd.tcpdump.pcap", "7", False),
        ("application/octet-stream", "7", False),
    ],
)
async def test_who_is_trusted(media_type, number, expected):
    headers = {"Content-Type": media_type, "Ddump-Stream": number}
    one = await told({k: v.encode().decode("latin-1") for k, v in headers.items()})
    assert one.trusted is expected


async def test_what_the_host_is_called_is_printable():
    one = await told(
        {"Content-Type": "application/x-pcapng", "Ddump-Host": "a\x1b[1mb"}
    )
    assert one.host == r"a\x1b[1mb"


@pytest.mark.parametrize("bounded", [True, False])
async def test_an_answer_that_says_how_long_it_is(bounded):
    one = await told({"Content-Type": "application/x-pcapng"}, bounded=bounded)
    assert one.bounded is bounded


async def test_what_the_answer_tells_of_its_clock():
    ahead = time.time_ns() + 5 * SECOND
    one = await told({"Content-Type": "", "Ddump-Time": str(ahead)})
    assert abs(one.sample.offset_ns - 5 * SECOND) < SECOND
    assert (await told({"Content-Type": "", "Ddump-Time": "soon"})).sample is None
    assert (await told({"Content-Type": ""})).sample is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), (" 7 ", 7), ("0", 0), ("-7", 0), ("soon", 0), ("9" * 40, 0),
     ("Wed, 21 Oct 2026 07:28:00 GMT", 0)],
)  # fmt: skip
async def test_how_long_a_server_asks_to_be_left_alone(value, seconds):
    error = await refused(answer("503 Service Unavailable", retry_after=value))
    assert error.status == 503
    assert error.retry_after_ns == seconds * SECOND
