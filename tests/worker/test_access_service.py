"""Who may do what, with a real worker, real packets, and clients known by tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from ddump_common.note import EndReason
from ddump_common.timespec import format_time
from ddump_common.units import SECONDS
from ddump_common.window import WindowReport
from support.loopback import payloads, records, talker, tcpdump
from support.namespaces import network
from support.pcapng_streams import read_stream
from support.workers import PYTHON, wait_until, worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "16MB", "--segment-size", "1MB", "--ring-reserve", "0")
NAMES = ("alice", "bob", "carol")
PCAPNG = {"Accept": "application/x-pcapng"}


def token(name: str) -> str:
    return f"{name}-0123456789abcdef"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(name)}"}


@pytest.fixture(scope="module", autouse=True)
def own_network():
    """All of this in a namespace of its own: what others send would be captured."""
    with network(0) as net, net.client.entered():
        yield


class Serving:
    """A worker whose rules a test writes, and a client of it."""

    def __init__(self, running, http, rules: Path):
        self.running, self.http, self._rules = running, http, rules

    def get(self, path: str, name: str | None = "alice", headers=None, **parameters):
        shown = {} if name is None else bearer(name)
        return self.http.get(path, params=parameters, headers=shown | (headers or {}))

    async def refusal(self, path: str, name: str | None = "alice", **parameters):
        """Return the problem that a request is answered with, and its headers."""
        async with self.get(path, name, **parameters) as response:
            assert response.content_type == "application/problem+json"
            problem = await response.json(content_type=None)
            assert problem["status"] == response.status
            return problem, response.headers

    async def stream(self, path: str, name: str = "alice", **parameters):
        """Return a whole stream."""
        async with self.get(path, name, PCAPNG, **parameters) as response:
            assert response.status == 200, await response.text()
            return read_stream(await response.read())

    async def reload(self, rules: str | None) -> None:
        """Have the worker read other rules, and wait until it has told of it.

        ``None`` takes the file away.
        """
        if rules is None:
            self._rules.unlink()
        else:
            self._rules.write_text(rules)
        told = self._told()
        self.running.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: self._told() > told)

    def _told(self) -> int:
        said = self.running.text
        return said.count("read all files again") + said.count("nothing is changed")

    def requests(self) -> list[dict]:
        """Return what the log has of requests so far; it is JSON."""
        lines = [json.loads(each) for each in self.running.text.splitlines()]
        return [each for each in lines if each["message"] == "request"]


@contextlib.asynccontextmanager
async def serving(tmp_path, rules: str, *options: str, **given):
    path, tokens = tmp_path / "worker.toml", tmp_path / "tokens"
    path.write_text(rules)
    tokens.write_text("".join(f"{name}:{token(name)}\n" for name in NAMES))
    tokens.chmod(0o600)
    async with (
        worker(
            "--config", str(path), "--token-file", str(tokens),
            "--log-format", "json", *options, **given,
        ) as running,
        aiohttp.ClientSession(
            running.url, timeout=aiohttp.ClientTimeout(total=20)
        ) as http,
    ):  # fmt: skip
        yield Serving(running, http, path)


def recorded(tmp_path) -> tuple[str, ...]:
    return ("--ring-dir", str(tmp_path / "ring"), *RING)


ALL = '["stream", "window", "status"]'


def table(*identities: str, allow: str = ALL, more: str = "") -> str:
    return f"[[access]]\nidentity = {json.dumps(identities)}\nallow = {allow}\n{more}\n"


async def test_a_rule_for_nobody_known_is_for_nobody_else(tmp_path):
    rules = table("anonymous", allow='["stream"]', more='filter = "not port 22"')
    async with serving(tmp_path, rules) as to:
        asked = {"filter": "udp port 9", "duration": "1ms"}
        async with to.get("/capture", None, **asked) as response:
            assert response.status == 200
            await response.read()
        problem, _ = await to.refusal("/api/v1/status", None)
        assert problem["status"] == 403
        assert "anonymous does not have the permission status" in problem["detail"]
        problem, _ = await to.refusal("/capture", "alice", **asked)
        assert problem["status"] == 403
        assert "no rule of this worker is for token:alice" in problem["detail"]
        # And without one who shows nothing is told to show something.
        await to.reload(table("token:alice"))
        problem, _ = await to.refusal("/capture", None, **asked)
        assert problem["status"] == 401
        await wait_until(lambda: len(to.requests()) == 4)
    first, *others = to.requests()
    assert first["identity"] == "anonymous"
    assert first["filter_run"] == "(not port 22) and (udp port 9)"
    assert not any("stream" in each for each in others)


class TestFilter:
    """What a rule leaves out stays out, whatever is asked for."""

    async def test_live(self, tmp_path):
        with talker() as udp, talker() as secret:
            asked = [
                (text.format(secret=secret.port), link)
                for text in (
                    "",
                    "not pppoes",
                    "not (pppoes 1 or pppoes 2)",
                    "udp or port {secret}",
                    "port {secret}",
                )
                for link in ("sll", "sll2")
            ]
            rule = f'filter = "not port {secret.port}"'
            async with (
                serving(
                    tmp_path,
                    table("token:alice", more=rule),
                    *("--max-streams", "20", "--capture-memory", "1GB"),
                ) as to,
                contextlib.AsyncExitStack() as stack,
            ):
                responses = [
                    await stack.enter_async_context(
                        to.get("/capture", filter=text, link=link)
                    )
                    for text, link in asked
                ]
                secret.send(5)
                udp.send(5)
                to.running.terminate()  # what is captured by then is still sent
                streams = [await each.read() for each in responses]
        for (text, _), data in zip(asked, streams, strict=True):
            assert tcpdump(data, f"port {secret.port}") == []
            found = tcpdump(data, f"udp port {udp.port}")
            assert len(found) == (0 if text.startswith("port") else 5), text

    async def test_of_the_ring(self, tmp_path):
        with talker() as udp, talker() as secret:
            rule = f'filter = "not port {secret.port}"'
            rules = table("token:alice", more=rule) + table("token:bob")
            async with serving(tmp_path, rules, *recorded(tmp_path)) as to:
                secret.send(5)
                sent = udp.send(5)
                for asked in ("", "udp", "not pppoes", "not geneve"):
                    async with to.get("/ring", last="1m", filter=asked) as response:
                        data = await response.read()
                    assert tcpdump(data, f"port {secret.port}") == []
                    assert [each for each in payloads(data) if each in sent] == sent
                async with to.get("/ring", "bob", last="1m") as response:
                    data = await response.read()
                assert len(tcpdump(data, f"port {secret.port}")) == 5

    async def test_of_a_follower(self, tmp_path):
        with talker() as udp, talker() as secret:
            rule = f'filter = "not port {secret.port}"'
            async with serving(
                tmp_path, table("token:alice", more=rule), *recorded(tmp_path)
            ) as to:
                secret.send(5)
                first = udp.send(2)
                async with to.get(
                    "/ring", last="1m", follow="1", filter="not pppoes", packets="5"
                ) as response:
                    secret.send(5)
                    second = udp.send(3)
                    assert payloads(await response.read()) == first + second

    async def test_the_stream_names_the_filter_that_was_run(self, tmp_path):
        rules = table("token:alice", more='filter = "not port 22"') + table("token:*")
        async with serving(tmp_path, rules) as to:
            for name, run in (("alice", "(not port 22) and (udp)"), ("bob", "udp")):
                stream = await to.stream("/capture", name, filter="udp", duration="0.1")
                assert stream.interface.filter == run

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ("vlan", "access table 1: filter 'vlan': no VLAN support"),
            ("ifindex 3", "for the ring: stored packets do not tell"),
            ("no filter", "access table 1: filter 'no filter': can't parse"),
        ],
    )
    async def test_one_that_does_not_compile_is_refused_at_the_start(
        self, tmp_path, rule, words
    ):
        rules = table("token:alice", more=f'filter = "{rule}"')
        with pytest.raises(BaseExceptionGroup) as failed:
            async with serving(tmp_path, rules, *recorded(tmp_path)):
                raise AssertionError("it has started")
        assert words in str(failed.value.exceptions[0])


class TestCaps:
    async def test_they_end_what_sets_no_limit_of_its_own(self, tmp_path):
        caps = {
            "alice": "max-packets = 5\nmax-bytes = 100000",
            "bob": "max-bytes = 300",
            "carol": 'max-duration = "300ms"',
        }
        rules = "".join(table(f"token:{name}", more=cap) for name, cap in caps.items())
        # One that asks for a part of what it may have is stopped by the rest.
        asked = [(name, {}, EndReason.CAP) for name in caps]
        asked += [
            ("alice", {"bytes": "99999"}, EndReason.CAP),
            ("alice", {"packets": "5"}, EndReason.PACKETS),
            ("bob", {"bytes": "300"}, EndReason.BYTES),
            ("carol", {"duration": "0.3"}, EndReason.DURATION),
        ]
        with talker() as udp:
            async with serving(tmp_path, rules, *recorded(tmp_path)) as to:
                for path, more in (
                    ("/capture", {}),
                    ("/ring", {"last": "100ms", "follow": "1"}),
                ):
                    for name, limits, expected in asked:
                        parameters = {"filter": udp.filter} | more | limits
                        async with to.get(path, name, PCAPNG, **parameters) as response:
                            udp.send(10)
                            stream = read_stream(await response.read())
                        assert stream.ended is expected, (path, name, limits)
                        assert (stream.packets == 5) == (name == "alice")
                await wait_until(lambda: len(to.requests()) == 2 * len(asked))
                told = [each["ended"] for each in to.requests()]
                assert told == 2 * [str(reason) for _, _, reason in asked]

    async def test_more_is_refused_by_name_and_costs_nothing(self, tmp_path):
        more = 'max-duration = "1m"\nmax-packets = 5\nmax-bytes = "1kB"'
        async with serving(
            tmp_path, table("token:alice", more=more), *recorded(tmp_path)
        ) as to:
            before = to.running.packet_sockets()
            # A filter that would not compile: it is never looked at.
            for name, value in (
                ("duration", "2m"),
                ("packets", "6"),
                ("bytes", "1001"),
            ):
                for path in ("/capture", "/ring"):
                    problem, _ = await to.refusal(
                        path, filter="no filter", **{name: value}
                    )
                    assert problem["status"] == 403
                    assert f"max-{name} = " in problem["detail"]
            assert to.running.packet_sockets() == before
            assert to.running.children() == []
            async with to.get("/api/v1/status") as response:
                status = await response.json()
            assert status["totals"]["streams"] == 0
            assert status["totals"]["refused"] == 6

    async def test_one_identity_has_so_many_streams_at_once(self, tmp_path):
        rules = table("token:*", more="max-streams = 2")
        async with (
            serving(tmp_path, rules, "--max-streams", "20", *recorded(tmp_path)) as to,
            contextlib.AsyncExitStack() as open_streams,
        ):

            async def begin(name: str) -> int:
                response = await open_streams.enter_async_context(
                    to.get("/capture", name, filter="udp port 1")
                )
                return response.status

            async with asyncio.TaskGroup() as tasks:
                # All at once: none may slip through while another is being opened.
                asked = [tasks.create_task(begin("alice")) for _ in range(6)]
            assert sorted(each.result() for each in asked) == [200] * 2 + [403] * 4
            problem, headers = await to.refusal("/ring", follow="1")
            assert "max-streams = 2" in problem["detail"]
            assert int(headers["Retry-After"]) > 0
            assert await begin("bob") == 200

    async def test_room_that_is_given_back_can_be_had_again(self, tmp_path):
        rules = table("token:*", more="max-streams = 1")
        async with serving(tmp_path, rules) as to:
            for _ in range(3):
                await to.stream("/capture", filter="udp port 1", duration="0.1")


# The worker, with less time for what a capped stream still has to deliver.
HASTY = (
    PYTHON,
    "-c",
    "from ddump_worker import cli, handlers\n"
    "handlers.CAP_GRACE_SECONDS = 0.3\n"
    "cli.main()",
)


class TestStalled:
    """Who takes nothing keeps a stream no longer than its rule allows, and a grace."""

    @pytest.mark.parametrize(
        ("path", "limits"),
        [
            ("/capture", {}),
            ("/capture", {"duration": "0.2"}),
            ("/ring", {"last": "1m"}),
            ("/ring", {"last": "1m", "follow": "1"}),
        ],
    )
    async def test_a_capped_stream_is_cut(self, tmp_path, path, limits):
        rules = table("token:alice", more='max-duration = "200ms"') + table("token:*")
        with talker() as udp:
            async with serving(
                tmp_path, rules, *recorded(tmp_path), program=HASTY
            ) as to:
                query = "&".join(f"{name}={value}" for name, value in limits.items())
                udp.send(150, size=60_000)
                await to.stream("/ring", "bob", last="1m")  # all of that is recorded
                with stalled(to.running.url, f"{path}?{query}") as client:
                    assert client.recv(15) == b"HTTP/1.1 200 OK"
                    udp.send(150, size=60_000)
                    await wait_until(lambda: len(to.requests()) == 2, seconds=2)
                    # The recorder's handle is left.
                    await wait_until(lambda: to.running.packet_sockets() == 1)
                    told = to.requests()[-1]
                    assert (told["ended"], told["status"]) == ("cap", 200)
                    assert 0.4 < told["seconds"] < 1.5
                    assert not await asyncio.to_thread(rest, client)

    async def test_what_sets_a_limit_of_its_own_and_has_no_rule_goes_on(self, tmp_path):
        with talker() as udp:
            async with serving(tmp_path, table("token:alice"), program=HASTY) as to:
                with stalled(to.running.url, "/capture?duration=0.2") as client:
                    assert client.recv(15) == b"HTTP/1.1 200 OK"
                    udp.send(150, size=60_000)
                    await wait_until(lambda: draining(to))
                    await asyncio.sleep(0.6)
                    assert await draining(to)
                    assert await asyncio.to_thread(rest, client)


@contextlib.contextmanager
def stalled(url: str, target: str):
    """A client of alice that has little room for what comes, and reads nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        client.connect((host, int(port)))
        client.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\n"
            f"Authorization: Bearer {token('alice')}\r\n\r\n".encode()
        )
        yield client


def rest(client: socket.socket) -> bool:
    """Return whether the stream ends as a whole one does."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while got := client.recv(1 << 20):
            data = data[-5:] + got
    return data.endswith(b"0\r\n\r\n")


async def draining(to) -> bool:
    async with to.get("/api/v1/status") as response:
        return (await response.json())["states"]["draining"] == 1


class TestOptions:
    async def test_what_a_reload_does_not_change_is_named(self, tmp_path):
        async with serving(tmp_path, table("token:*")) as to:
            await to.reload("max-streams = 3\nexclude = ['arp']\n" + table("token:*"))
            words = "worker.toml says something else than at the start"
            (line,) = [each for each in to.running.text.splitlines() if words in each]
            assert "of exclude, max-streams" in line
            await to.reload(table("token:*"))
            assert to.running.text.count(words) == 1


class TestAge:
    async def test_the_ring_begins_so_far_back(self, tmp_path):
        with talker() as udp:
            rules = table("token:alice", more='max-age = "2s"') + table("token:*")
            async with serving(tmp_path, rules, *recorded(tmp_path)) as to:
                old = udp.send(3)
                began = time.time_ns()
                # Until what was sent is older than that.
                await asyncio.sleep(2.3)
                new = udp.send(3)
                for asked in ({}, {"last": "1h"}, {"since": format_time(began)}):
                    now_ns = time.time_ns()
                    async with to.get("/ring", filter=udp.filter, **asked) as response:
                        assert payloads(await response.read()) == new
                        report = WindowReport.parse(response.headers["Ddump-Window"])
                    begin_ns = report.covered.begin_ns
                    assert abs(now_ns - 2 * SECONDS - begin_ns) < SECONDS
                    # Of a window that begins before it is said what is missing.
                    assert bool(report.gaps) == bool(asked)
                async with to.get("/ring", "bob", filter=udp.filter) as response:
                    assert payloads(await response.read()) == old + new
                problem, _ = await to.refusal("/ring", until=format_time(began))
                assert problem["status"] == 403
                assert "max-age" in problem["detail"]
                async with to.get(
                    "/ring", since=format_time(began), follow="1", filter=udp.filter,
                    packets="4",
                ) as response:  # fmt: skip
                    newest = udp.send(1)
                    assert payloads(await response.read()) == new + newest


class TestPermissions:
    async def test_each_path_asks_for_its_own(self, tmp_path):
        rules = (
            table("token:alice", allow='["stream"]')
            + table("token:bob", allow='["window"]')
            + table("token:carol", allow='["status"]')
        )
        paths = {
            "/capture?duration=0.1": {"alice"},
            "/ring": {"bob"},
            "/ring?follow=1&duration=0.1": set(),
            "/api/v1/status": {"carol"},
            "/api/v1/segments": {"carol"},
            "/api/v1/interfaces": {"carol"},
            "/metrics": {"carol"},
            "/api/v1/health": {*NAMES, None},
        }
        async with serving(tmp_path, rules, *recorded(tmp_path), anonymous=False) as to:
            for path, whose in paths.items():
                for name in (*NAMES, None):
                    expected = 200 if name in whose else 403 if name else 401
                    for method in ("GET", "HEAD"):
                        async with to.http.request(
                            method, path, headers=bearer(name) if name else {}
                        ) as response:
                            assert response.status == expected, (method, path, name)
                            assert (response.status == 401) == (
                                "WWW-Authenticate" in response.headers
                            )

    async def test_who_is_in_no_rule(self, tmp_path):
        async with serving(tmp_path, table("token:alice")) as to:
            problem, _ = await to.refusal("/capture", "bob", filter="no filter")
            assert problem["status"] == 403
            assert "token:bob" in problem["detail"]
            problem, headers = await to.refusal("/capture", None)
            assert problem["status"] == 401
            assert headers["WWW-Authenticate"] == "Bearer"


class TestReload:
    async def test_streams_of_who_has_lost_its_rule_end_and_no_others(self, tmp_path):
        rules = table("token:alice", "token:bob")
        async with (
            serving(tmp_path, rules, *recorded(tmp_path)) as to,
            to.get("/capture", "alice", filter="udp port 1") as first,
            to.get("/ring", "alice", follow="1", filter="udp port 1") as second,
            to.get("/capture", "bob", filter="udp port 1", duration="3") as third,
        ):
            began = time.monotonic()
            await to.reload(table("token:bob"))
            for response in (first, second):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            assert time.monotonic() - began < 1.5
            await wait_until(
                lambda: [each["ended"] for each in to.requests()] == ["revoked"] * 2
            )
            assert {each["identity"] for each in to.requests()} == {"token:alice"}
            problem, _ = await to.refusal("/capture", "alice")
            assert problem["status"] == 403
            await third.read()
        assert to.requests()[-1]["ended"] == "duration"

    async def test_a_stalled_stream_ends_as_well(self, tmp_path):
        with talker() as udp:
            async with serving(tmp_path, table("token:*")) as to:
                host, port = to.running.url.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, port, limit=1024)
                writer.write(
                    f"GET /capture?filter=udp HTTP/1.1\r\nHost: {host}\r\n"
                    f"Authorization: {bearer('alice')['Authorization']}\r\n\r\n".encode()
                )
                await reader.readuntil(b"\r\n\r\n")
                writer.transport.pause_reading()
                for _ in range(200):
                    udp.send(100, size=1400)
                await to.reload(table("token:bob"))
                await wait_until(
                    lambda: [each["ended"] for each in to.requests()] == ["revoked"]
                )
                assert to.running.packet_sockets() == 0
                writer.close()

    async def test_a_rule_that_is_another_ends_what_the_old_one_gave(self, tmp_path):
        async with serving(tmp_path, table("token:alice")) as to:
            for changed in (
                table("token:alice", more='filter = "not port 22"'),
                table("token:alice", more="max-packets = 5"),
                table("token:alice", allow='["status"]'),
            ):
                async with to.get("/capture", filter="udp port 1") as response:
                    await to.reload(changed)
                    with pytest.raises(aiohttp.ClientPayloadError):
                        await response.read()
                await to.reload(table("token:alice"))

    async def test_what_cannot_be_changes_nothing(self, tmp_path):
        async with (
            serving(tmp_path, table("token:alice")) as to,
            to.get("/capture", filter="udp port 1", duration="2") as response,
        ):
            for broken in (
                "",  # an editor that is not done: not "everybody may do everything"
                "max-streams = [",
                table("alice"),
                table("token:bob", more='filter = "no filter"'),
                table("token:bob", more='filter = "vlan"'),
                None,
            ):
                await to.reload(broken)
                assert '"nothing is changed: ' in to.running.said[-1]
                problem, _ = await to.refusal("/capture", "bob")
                assert problem["status"] == 403
                await to.stream(
                    "/capture", filter="udp port 1", packets="1", idle="10ms"
                )
            assert len(records(await response.read())) == 0

    async def test_rules_and_tokens_change_together_or_not_at_all(self, tmp_path):
        async with serving(tmp_path, table("token:alice")) as to:
            (tmp_path / "tokens").write_text("no token at all\n")
            await to.reload(table("token:bob"))
            assert '"nothing is changed: ' in to.running.said[-1]
            await to.stream("/capture", filter="udp port 1", packets="1", idle="10ms")
            problem, _ = await to.refusal("/capture", "bob")
            assert problem["status"] == 403
