"""What interfaces are called: what workers tell of it, and what they do not."""

from __future__ import annotations

import msgspec
import pytest

from ddump_common.answers import (
    InterfaceInfo,
    Memory,
    RingInfo,
    Status,
    Totals,
)
from ddump_merger.names import fetch_names
from ddump_merger.stream import open_session
from ddump_merger.target import parse_target
from support.servers import refusing_port, serving

SECOND = 1_000_000_000


def interface(name, index):
    return InterfaceInfo(
        name=name, index=index, up=True, loopback=False, promiscuous=False, addresses=[]
    )


def status(interfaces):
    ring = RingInfo(
        state="recording", link="sll2", segments=1, packets=1, bytes=1, limit_bytes=1,
        pinned_bytes=0, pinned_limit_bytes=0, dropped=0, lost=0, coverage=[],
        interfaces=interfaces,
    )  # fmt: skip
    return Status(
        host="web1", version="0.1.0", started_ns=1, time_ns=2, connections=1,
        max_connections=1, max_streams=1, memory=Memory(used_bytes=0, limit_bytes=1),
        totals=Totals(packets=0, bytes=0, dropped=0, interface_dropped=0, streams=0,
                      refused=0),
        states={}, streams=[], ring=None if interfaces is None else ring,
    )  # fmt: skip


def worker(present, remembered):
    """Return a script of a worker that tells what is given; ``None`` is a 404."""
    told = {"/api/v1/interfaces": present, "/api/v1/status": remembered}

    async def script(exchange):
        value = told[exchange.request.target]
        if value is None:
            await exchange.answer("404 Not Found")
        else:
            body = value if isinstance(value, bytes) else msgspec.json.encode(value)
            await exchange.answer("200 OK", body)

    return script


async def names(script, *, path=""):
    async with serving(script) as server, open_session(None) as session:
        target = parse_target(f"{server.url}{path}")
        return await fetch_names(target, session, timeout_ns=5 * SECOND)


NOW = [interface("eth0", 2), interface("lo", 1), interface("docker0", 3)]
# Before the host was started anew, 3 was another; 9 has gone.
THEN = {"eth0": [2], "eth1": [3], "docker0": [4, 3], "veth9": [9]}


async def test_of_a_live_capture_they_are_those_of_now():
    assert await names(worker(NOW, status(THEN))) == {
        1: "lo", 2: "eth0", 3: "docker0", 4: "docker0", 9: "veth9",
    }  # fmt: skip


async def test_of_a_window_they_are_those_that_the_ring_knows():
    assert await names(worker(NOW, status(THEN)), path="/ring?last=5m") == {
        1: "lo", 2: "eth0", 3: "docker0|eth1", 4: "docker0", 9: "veth9",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("present", "remembered", "expected"),
    [
        (NOW[:1], status(None), {2: "eth0"}),
        (NOW[:1], status({}), {2: "eth0"}),
        (NOW[:1], None, {2: "eth0"}),
        (NOW[:1], b"<html>", {2: "eth0"}),
        (None, status({"eth1": [3]}), {3: "eth1"}),
        (b'[{"name": 7}]', status({"eth1": [3]}), {3: "eth1"}),
        (b"[" * 10_000, None, {}),
        (b"[" + b" " * (4 << 20) + b"]", None, {}),
    ],
)
async def test_what_is_not_told_is_left_out(present, remembered, expected):
    assert await names(worker(present, remembered)) == expected


async def test_who_does_not_answer_tells_none():
    async with open_session(None) as session:
        target = parse_target(f"http://127.0.0.1:{refusing_port()}")
        assert await fetch_names(target, session, timeout_ns=5 * SECOND) == {}
