"""The audit trail: one line for each request, and what must never be in it."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from ddump_common.answers import Problem
from ddump_common.api import HEALTH_PATH, CaptureQuery, RingQuery
from ddump_worker.audit import Entry, ended_by
from ddump_worker.identity import Identity, IdentityKind
from ddump_worker.streams import Stream, Streams
from support.loopback import talker
from support.orders import client, order
from support.workers import wait_until, worker

CREDENTIAL = "0123456789-secret-token"
HIDDEN = "hunter2-hunter2-hunter2"


def opened(of) -> Stream:
    return Streams().open(order=of, started_ns=0)


def fields(entry: Entry) -> dict:
    return dict(entry._fields())


def test_what_is_not_known_is_not_made_up():
    assert fields(Entry(address="1.2.3.4:5", status=400, ended="x")) == {
        "identity": None,
        "address": "1.2.3.4:5",
        "method": None,
        "path": None,
        "status": 400,
        "ended": "x",
        "seconds": 0.0,
    }


def test_who_asked_for_what_and_what_was_run():
    who = client(Identity(kind=IdentityKind.USER, name="alice"), "9.9.9.9:9")
    query = RingQuery(filter="udp", since_ns=10**9, interfaces=("eth0",), follow=True)
    entry = Entry(address="unix", method="GET", path="/ring", client=who, query=query)
    entry.order = order(query, who=who, filter="not port 22")
    assert fields(entry)["filter_run"] is None  # it was refused
    entry.stream = opened(entry.order).info()
    found = fields(entry)
    assert (found["identity"], found["address"]) == ("user:alice", "9.9.9.9:9")
    assert (found["filter"], found["filter_run"]) == ("udp", "(not port 22) and (udp)")
    assert found["interfaces"] == ["eth0"]
    assert found["since"] == "1970-01-01T00:00:01Z"
    assert (found["until"], found["follow"]) == (None, True)
    entry.query = CaptureQuery()
    assert "since" not in fields(entry)


def test_long_filters_stand_last_and_on_one_line():
    query = CaptureQuery(filter="\n\tudp" + "\n" * 4000 + "or \r\n tcp ")
    entry = Entry(
        address="unix", query=query, order=order(query, filter="not\nport 22")
    )
    assert entry.order is not None
    entry.stream = opened(entry.order).info()
    found = fields(entry)
    assert list(found)[-2:] == ["filter", "filter_run"]
    assert found["filter"] == "udp or tcp"
    assert found["filter_run"] == "(not port 22) and ( udp or tcp )"


def test_what_anybody_may_send_is_cut():
    entry = Entry(address="", method="M" * 999, path="/" * 9999, ended="e" * 9999)
    assert max(len(str(value)) for value in fields(entry).values()) == 512
    assert fields(entry)["path"].endswith("/…")


def test_a_refusal_has_its_reason():
    assert ended_by(Problem(title="No", status=400, detail="why")) == "No: why"
    assert ended_by(Problem(title="No", status=500)) == "No"


async def raw(running, request: bytes) -> bytes:
    """Return what a worker answers to ``request``, and closes the connection after."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def requests(running) -> list[dict]:
    lines = [json.loads(each) for each in running.text.splitlines()]
    return [each for each in lines if each["message"] == "request"]


@pytest.mark.live
@pytest.mark.process
async def test_every_request_is_told_of_and_no_credential(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"backup:{CREDENTIAL}\n")
    tokens.chmod(0o600)
    shown = {"Authorization": f"Bearer {CREDENTIAL}"}
    with talker() as udp:
        async with (
            worker(
                "--token-file", str(tokens), "--log-format", "json", anonymous=False
            ) as running,
            aiohttp.ClientSession(running.url) as http,
        ):

            async def get(path: str, headers=shown, **parameters) -> int:
                async with http.get(
                    path, headers=headers, params=parameters
                ) as response:
                    await response.read()
                    return response.status

            async with http.get(
                "/capture", headers=shown, params={"filter": udp.filter, "packets": "3"}
            ) as response:
                udp.send(3)
                await response.read()
            assert await get("/api/v1/status") == 200
            assert await get("/api/v1/health", {}) == 200
            assert await get("/nosuch") == 404
            assert await get("/capture", {}, password=HIDDEN) == 401
            assert await get("/ring", {"Authorization": f"Bearer {HIDDEN}"}) == 401
            assert await get("/ring", {"Authorization": f"Basic {HIDDEN}"}) == 401
            assert await get("/capture", filter="no filter", duration="1s") == 400
            assert await get("/capture", **{HIDDEN: HIDDEN}) == 400
            assert await get("/capture", shown | {"Expect": HIDDEN}) == 417
            assert await get("/nosuch", shown | {"Expect": HIDDEN}) == 417
            assert await get("/capture", shown | {"Host": "evil.example"}) == 421
            assert b" 400 " in await raw(running, HIDDEN.encode() + b"\r\n\r\n")
            whole = f"GET http://u:{HIDDEN}@localhost/nosuch?{HIDDEN} HTTP/1.1\r\n"
            assert b" 401 " in await raw(
                running, whole.encode() + b"Host: localhost\r\n\r\n"
            )
            async with http.get("/capture", headers=shown) as response:
                response.close()
            await wait_until(lambda: len(requests(running)) == 15)
        found = requests(running)
    assert CREDENTIAL not in running.text
    assert HIDDEN not in running.text
    told = [(each["status"], each["path"], each["identity"]) for each in found]
    backup = "token:backup"
    assert told == [
        (200, "/capture", backup),
        (200, "/api/v1/status", backup),
        (200, "/api/v1/health", "anonymous"),
        (404, "/nosuch", backup),
        (401, "/capture", None),
        (401, "/ring", None),
        (401, "/ring", None),
        (400, "/capture", backup),
        (400, "/capture", backup),
        (417, "/capture", None),
        (417, "/nosuch", None),
        (421, "/capture", None),
        (400, None, None),
        (401, "/nosuch", None),
        (200, "/capture", backup),
    ]
    first, last = found[0], found[-1]
    assert (first["ended"], first["packets"], first["stream"]) == ("packets", 3, 1)
    assert (first["bytes"], first["dropped"]) == (3 * 76, 0)
    assert first["filter"] == first["filter_run"] == udp.filter
    assert first["address"].startswith("127.0.0.1:")
    assert first["method"] == "GET"
    assert 0 <= first["seconds"] < 5
    assert last["ended"] == "the client left"
    assert found[7]["ended"].startswith("The filter does not compile: can't parse")
    assert (found[7]["filter"], found[7]["filter_run"]) == ("no filter", None)
    assert "filter" not in found[4]
    assert "packets" not in found[1]


@pytest.mark.live
@pytest.mark.process
async def test_what_is_no_http_cannot_fill_the_log_and_is_counted():
    async with worker("--log-format", "json") as running:
        for _ in range(40):
            assert b" 400 " in await raw(running, b"GXX\r\n\r\n")
        asking = b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
        answer = await raw(running, asking)
        assert b"ddump_worker_malformed_requests_total 40.0\n" in answer
        await wait_until(lambda: len(requests(running)) == 31)
    assert [each["status"] for each in requests(running)] == [400] * 30 + [200]


@pytest.mark.live
@pytest.mark.process
async def test_strangers_cannot_fill_the_log(tmp_path):
    """Of whom somebody knows each request is told, beside however many others."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice:{CREDENTIAL}\n")
    tokens.chmod(0o600)
    options = ("--token-file", str(tokens), "--log-format", "json")
    async with worker(*options, anonymous=False) as running:

        def get(path: str, *fields: str) -> bytes:
            lines = (f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", "")
            return "\r\n".join(lines).encode()

        last = get("/capture", "Connection: close")
        answered = 0
        while answered <= 620:
            strange = (get("/capture") + get(HEALTH_PATH)) * 50 + last
            answered += (await raw(running, strange)).count(b"HTTP/1.1 ")
        shown = f"Authorization: Bearer {CREDENTIAL}"
        await raw(running, get("/metrics", "Connection: close", shown))
        await wait_until(lambda: requests(running)[-1]["identity"] == "token:alice")
    *strangers, known = (each["identity"] for each in requests(running))
    assert (len(strangers), set(strangers)) == (600, {None, "anonymous"})
    assert known == "token:alice"


@pytest.mark.live
@pytest.mark.process
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_what_cannot_be_parsed_tells_no_credential_either(log_format):
    shown = f"Authorization: Bearer {HIDDEN}"
    get = "GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n"
    broken = [
        f"{get}{shown}{'x' * 9000}\r\n\r\n",  # over-long, at either end
        f"{get}{shown} {' ' * 9000}{HIDDEN}\r\n\r\n",
        f"{get}{shown.replace(':', '')}\r\n\r\n",
        f"{get}{HIDDEN} {shown}\r\n\r\n",  # in a name that is none
        f"{get}{HIDDEN * 500}: x\r\n\r\n",
        f"{get}{shown}\0\r\n\r\n",
        f"{get}{shown}\x01\r\n\r\n",
        f"{get}{shown}\r\n {HIDDEN}\x02\r\n\r\n",  # a folded line
        f"{get}{shown}\r\nContent-Length: {HIDDEN}\r\n\r\n",
        f"{get}{shown}\r\nTransfer-Encoding: {HIDDEN}\r\n\r\n",
        f"{get}{shown}\r\nTransfer-Encoding: chunked\r\n\r\n{HIDDEN}\r\n",
        f"{get}{shown}\r\n{shown}\r\n\r\n",
        f"{get}{'X: y' * 3}\r\n{shown}\r\nHost: {HIDDEN}\r\n\r\n",
        f"{shown}\r\n\r\n",
        f"{HIDDEN} / HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET {HIDDEN} HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET / {HIDDEN}\r\n{shown}\r\n\r\n",
        f"GET /?{HIDDEN * 1000} HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET http://u:{HIDDEN}@[::x/ HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET http://u:{HIDDEN}@[::1/x HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET http://u:{HIDDEN}@localhost:x/ HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET *?token={HIDDEN}&a HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET {HIDDEN}:x?a HTTP/1.1\r\n{shown}\r\n\r\n",
        f"CONNECT {HIDDEN}?x HTTP/1.1\r\n{shown}\r\n\r\n",
        f"CONNECT u:{HIDDEN}@x:y HTTP/1.1\r\n{shown}\r\n\r\n",
        f"OPTIONS *{HIDDEN} HTTP/1.1\r\n{shown}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: u:{HIDDEN}@127.0.0.1\r\n{shown}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: localhost?{HIDDEN}\r\n{shown}\r\n\r\n",
        f"{get}Origin: http://u:{HIDDEN}@evil.example?{HIDDEN}\r\n{shown}\r\n\r\n",
    ]
    async with worker("--log-format", log_format) as running:
        for number, each in enumerate(broken):
            answer = await raw(running, each.encode())
            assert (number, answer[:10]) == (number, answer[:8] + b" 4")
            assert HIDDEN[:12].encode() not in answer
        await wait_until(lambda: running.text.count("request") >= len(broken))
        assert HIDDEN[:12] not in running.text
