"""The command and the rings of two hosts: what is said, and how soon packets come."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from support import traffic
from support.namespaces import network
from support.programs import DDUMP, await_streams, started, worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "1MB")
HOLD = 1.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts with rings and one without; their network, URLs and directories."""
    with network(3, prefix="ddump-command") as net, contextlib.ExitStack() as stack:
        rings = [tmp_path_factory.mktemp("ring") for _ in range(2)]
        options = [[*RING, "--ring-dir", str(ring)] for ring in rings]
        urls = [
            stack.enter_context(
                worker(f"{host.address}:8475", "--allow-plaintext", *more, host=host)
            )
            for host, more in zip(net.hosts, [*options, []], strict=True)
        ]
        yield net, urls, rings


def ddump(net, *arguments):
    return subprocess.run(
        net.client.command(DDUMP, *arguments),
        check=False, capture_output=True, timeout=30,
    )  # fmt: skip


def send(net, host, *payloads):
    with (
        net.client.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for payload in payloads:
            sender.sendto(payload, (host.address, traffic.PORT))


def read_until(pipe, payload, seconds):
    """Read until ``payload`` has come; return how long that took."""
    began = time.monotonic()
    data = b""
    while payload not in data:
        left = began + seconds - time.monotonic()
        assert select.select([pipe], [], [], max(left, 0))[0], data
        data += os.read(pipe.fileno(), 65536)
    return time.monotonic() - began


def test_what_a_ring_has_not_is_said(hosts):
    net, urls, _ = hosts
    send(net, net.hosts[0], b"something to find")
    for quiet in ([], ["-q"]):
        done = ddump(
            net, *quiet, "--last", "1h", "-f", traffic.FILTER, f"web1={urls[0]}"
        )
        assert done.returncode == 4
        assert b"something to find" in done.stdout
        (gap, *rest) = done.stderr.decode().splitlines()
        assert re.fullmatch(
            r"ddump: web1: the ring may lack what came from [-0-9:. ]+ to [-0-9:. ]+ \(59m\d+s\)",
            gap,
        )
        assert [re.split(": | [0-9]", line)[0] for line in rest] == (
            [] if quiet else ["web1", "    gap"]
        )


def test_a_window_outside_the_ring_and_a_worker_without_one(hosts):
    net, urls, _ = hosts
    done = ddump(
        net, "--since", "2020-01-01T00:00Z", "--until", "2020-01-02T00:00Z",
        f"old={urls[0]}", f"none={urls[2]}",
    )  # fmt: skip
    said = done.stderr.decode()
    assert done.returncode == 3
    assert done.stdout == b""
    told = [line for line in said.splitlines() if "old: " in line]
    assert re.fullmatch(
        r"ddump: old: the ring has nothing of the window: 2020-01-01 [0-9:]+ to "
        r"2020-01-02 [0-9:]+ \(1d\) "
        rf"\(ddump segments {re.escape(urls[0])}/ shows what it has\)",
        told[0],
    )
    assert told[1:] == ["old: not captured: the ring has nothing of the window"]
    assert "ddump: none: 404: " in said
    assert "--ring-dir" in said


def test_an_idle_host_that_is_followed_holds_nobody_back(hosts):
    """Its heartbeats say that nothing of it comes any more, well before ``--hold``."""
    net, urls, _ = hosts
    command = net.client.command(
        DDUMP, "--since", "-1ms", "--follow", "-f", f"{traffic.FILTER} and udp[8:4] != 0",
        urls[0], urls[1],
    )  # fmt: skip
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with net.client.entered():
            await_streams(urls[:2])
        send(net, net.hosts[1], b"the first")
        read_until(process.stdout, b"the first", 3 * HOLD)
        for number in range(3):
            payload = b"live %d" % number
            send(net, net.hosts[1], payload)
            assert read_until(process.stdout, payload, 2 * HOLD) < HOLD
        process.terminate()
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0, said
    assert said.count(b", 0 late") == 3


def test_segments_are_what_is_on_the_disk(hosts):
    """The growing one is on the disk as it was when it was asked for, or longer."""
    net, urls, rings = hosts
    done = ddump(
        net, "segments", "--json", f"a={urls[0]}", f"b={urls[1]}", f"c={urls[2]}"
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["target"] for line in lines if "ring" in line] == ["a", "b", "c"]
    assert lines[-1]["ring"] is None
    for target, ring in zip("ab", rings, strict=True):
        mine = [line for line in lines if line["target"] == target]
        whole, segments = mine[0]["ring"], mine[1:]
        assert [each["name"] for each in segments] == sorted(
            path.name for path in ring.glob("*.pcap")
        )
        assert sum(each["packets"] for each in segments) == whole["packets"]
        assert whole["coverage"][0]["begin_ns"] <= segments[0]["begin_ns"]
        assert len(whole["coverage"]) == 1
        for each in segments:
            assert each["packets"] <= count(ring / each["name"])


def count(path: Path) -> int:
    """Return how many packets capinfos finds in a file."""
    told = subprocess.run(
        ["capinfos", "-c", "-M", "-T", "-r", path], check=False, capture_output=True, text=True
    ).stdout  # fmt: skip
    return int(told.split("\t")[-1])


def test_the_status_has_the_rings(hosts):
    net, urls, _ = hosts
    done = ddump(net, "status", f"a={urls[0]}", f"c={urls[2]}")
    assert done.returncode == 0
    rings = done.stdout.decode().split("\n\n")[1].splitlines()
    assert [line.split("\t")[:2] for line in rings[1:]] == [["a", "recording"]]
