"""Hosts whose clocks are wrong: what is estimated of them, and what becomes of order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import skewed, traffic
from support.captures import late_in
from support.namespaces import network
from support.relay import relay
from support.runs import generate, run, streaming, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

MILLISECOND = 10**6
SECOND = 10**9
# "some" is to be warned of however slow this machine makes the estimates. The last one's
# answers take longer than its questions.
OFFSETS = {
    "ahead": 3 * SECOND,
    "behind": -3 * SECOND,
    "some": 25 * MILLISECOND,
    "little": 2 * MILLISECOND,
    "lopsided": 12 * MILLISECOND,
}
RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "1MB")
WARNED = {"ahead", "behind", "some"}
ASYMMETRY = 0.08
ROUNDS = 40  # of one packet to each host
GAP_SECONDS = 0.01  # seldom less than the estimates' errors, but for the last one's
EDGE_SECONDS = 0.25  # from a window's edge to the next packet: always more than them


@contextlib.asynccontextmanager
async def wrong_hosts():
    """Yield the network, the workers' URLs, and the targets."""
    with network(len(OFFSETS), prefix="ddump-clock") as net:
        async with contextlib.AsyncExitStack() as stack:
            urls = {}
            for (name, offset), host in zip(OFFSETS.items(), net.hosts, strict=True):
                program = [sys.executable, str(Path(skewed.__file__)), str(offset)]
                started = await stack.enter_async_context(worker(host, program=program))
                urls[name] = started.url
            way = await stack.enter_async_context(
                relay(net.client, (net.hosts[-1].address, 8475))
            )
            way.down.delay = ASYMMETRY
            targets = urls | {"lopsided": way.url}
            yield net, urls.values(), ["=".join(each) for each in targets.items()]


async def send_in_turn(net):
    """Send numbered packets to one host after the other; return their payloads."""
    sent = []
    with net.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(ROUNDS):
            for host in net.hosts:
                sent.append(b"%8d" % len(sent))
                sender.sendto(sent[-1], (host.address, traffic.PORT))
                await asyncio.sleep(GAP_SECONDS)
    return sent


def check_estimates(ended):
    """Each is as far from the truth as it says at most, and warned of when it is far."""
    for name, offset in OFFSETS.items():
        skew = ended.target(name)["clock"]
        assert abs(skew["offset_ns"] - offset) <= skew["error_ns"], (name, skew)
        warned = [x for x in ended.said.splitlines() if f": {name}: " in x]
        assert any("clock" in line for line in warned) == (name in WARNED), ended.said
    lopsided = ended.target("lopsided")["clock"]
    assert lopsided["error_ns"] >= ASYMMETRY / 2 * SECOND


def check_order(found, ended, names):
    """What is behind another was sent so little later that the estimates allow it."""
    error = max(ended.target(name)["clock"]["error_ns"] for name in names)
    behind = max(
        latest - int(text)
        for latest, text in zip(
            itertools.accumulate(map(int, found), max), found, strict=True
        )
    )
    assert behind * GAP_SECONDS * SECOND <= 2 * error, found


def shown(path):
    """Return which target tshark says brought each packet, and its data."""
    return subprocess.run(
        ["tshark", "-nr", path, "-T", "fields", "-e", "frame.interface_name",
         "-e", "data.data"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip


async def test_wrong_clocks_cost_order_at_most(tmp_path):
    async with (
        wrong_hosts() as (net, urls, targets),
        run(net.client, tmp_path, "-f", traffic.FILTER, *targets) as ddump,
    ):
        await streaming(net.client, urls)
        sent = await send_in_turn(net)
        await ddump.until(len(sent))
        ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    check_estimates(ended)
    assert sorted(data[16 + 20 + 8 :] for _, _, data in ended.records) == sent
    late = late_in(stamp for stamp, _, _ in ended.records)
    assert late == sum(ended.target(name)["late"] for name in OFFSETS)


async def test_a_clock_ahead_of_what_may_be_held_costs_order_at_most(tmp_path):
    """Three seconds of it are twelve times ``--buffer``."""
    packets, pace, size = 4000, 2000, 500
    names = ("ahead", "right")
    with network(len(names), prefix="ddump-full") as net:
        async with contextlib.AsyncExitStack() as stack:
            feeders = [stack.enter_context(net.feed(number)) for number in (1, 2)]
            urls = {}
            for name, host in zip(names, net.hosts, strict=True):
                offset = str(OFFSETS.get(name, 0))
                program = [sys.executable, str(Path(skewed.__file__)), offset]
                started = await stack.enter_async_context(worker(host, program=program))
                urls[name] = started.url
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "--buffer", "256KiB", "--duration", "4s",
                    "-f", traffic.FILTER, *map("=".join, urls.items()))
            )  # fmt: skip
            await streaming(net.client, urls.values())
            async with asyncio.TaskGroup() as tasks:
                for feeder, host in zip(feeders, net.hosts, strict=True):
                    tasks.create_task(
                        generate(net, feeder, host, packets, pace=pace, size=size)
                    )
            ended = await ddump.ended()
    assert ended.code == 0, ended.said
    told = {name: ended.target(name) for name in names}
    for name in names:
        assert told[name]["packets"] == packets
        assert told[name]["dropped"] == told[name]["missing"] == 0
    assert told["ahead"]["late"] == 0
    assert told["right"]["late"] > 0
    late = late_in(stamp for stamp, _, _ in ended.records)
    assert late == told["right"]["late"]


async def test_corrected_clocks_give_the_true_order(tmp_path):
    async with (
        wrong_hosts() as (net, urls, targets),
        run(
            net.client, tmp_path, "--clock", "correct", "-f", traffic.FILTER,
            "-c", ROUNDS * len(OFFSETS), *targets, pcapng=True,
        ) as ddump,
    ):  # fmt: skip
        await streaming(net.client, urls)
        sent = await send_in_turn(net)
        ended = await ddump.ended()
    assert ended.code == 0, ended.said
    check_estimates(ended)
    found = [line.split("\t") for line in shown(ddump.output)]
    texts = [bytes.fromhex(data) for name, data in found]
    assert sorted(texts) == sent
    near = [bytes.fromhex(data) for name, data in found if name != "lopsided"]
    check_order(near, ended, OFFSETS.keys() - {"lopsided"})
    for name, offset in OFFSETS.items():
        told = ended.target(name)
        assert told["late"] == 0
        # What may be no offset at all is left alone.
        assert told["clock"]["corrected"] == (name != "lopsided")
        if name == "lopsided":
            continue
        shift = b"%d ns were added to all times" % -told["clock"]["offset_ns"]
        assert shift in ddump.output.read_bytes(), offset


@pytest.mark.parametrize("clock", ["report", "correct"])
async def test_a_broken_network_costs_nothing_whatever_the_clocks(tmp_path, clock):
    """What is asked for again is asked for by the clock of who is asked."""
    names = ("ahead", "behind", "right")
    with network(len(names), prefix="ddump-tick") as net:
        async with contextlib.AsyncExitStack() as stack:
            urls = {}
            for name, host in zip(names, net.hosts, strict=True):
                offset = str(OFFSETS.get(name, 0))
                started = await stack.enter_async_context(
                    worker(
                        host, "--ring-dir", tmp_path / name, *RING,
                        program=[sys.executable, str(Path(skewed.__file__)), offset],
                    )
                )  # fmt: skip
                urls[name] = started.url
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "--clock", clock, "-f", traffic.FILTER,
                    *map("=".join, urls.items()))
            )  # fmt: skip
            await streaming(net.client, urls.values())
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(send_in_turn(net))
                await asyncio.sleep(0.5)  # so long it goes well
                for host in net.hosts:
                    host.kill_connections(8475)
            await ddump.until(len(sending.result()))
            ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    found = [data[16 + 20 + 8 :] for _, _, data in ended.records]
    assert sorted(found) == sending.result()
    for name in names:
        told = ended.target(name)
        assert told["packets"] == ROUNDS
        assert [outage["filled"] for outage in told["outages"]] == [True]
        # While nobody was waited for, one clock had the output go ahead of the others.
        assert told["late"] == 0 or clock == "report"


async def test_a_corrected_window_is_the_same_time_on_all_hosts(tmp_path):
    names = ("ahead", "behind", "right")
    with network(len(names), prefix="ddump-wind") as net:
        async with contextlib.AsyncExitStack() as stack:
            urls = {}
            for name, host in zip(names, net.hosts, strict=True):
                started = await stack.enter_async_context(
                    worker(
                        host, "--ring-dir", tmp_path / name, *RING,
                        program=[
                            sys.executable, str(Path(skewed.__file__)),
                            str(OFFSETS.get(name, 0)),
                        ],
                    )
                )  # fmt: skip
                urls[name] = started.url
            await send_in_turn(net)  # before it
            await asyncio.sleep(EDGE_SECONDS)
            since = time.time()
            await asyncio.sleep(EDGE_SECONDS)
            sent = await send_in_turn(net)
            await asyncio.sleep(EDGE_SECONDS)
            until = time.time()
            await asyncio.sleep(EDGE_SECONDS)
            await send_in_turn(net)  # and after
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "--clock", "correct", "-f", traffic.FILTER,
                    "--since", f"{since:.6f}", "--until", f"{until:.6f}",
                    *map("=".join, urls.items()))
            )  # fmt: skip
            ended = await ddump.ended()
    assert ended.code == 0, ended.said
    found = [data[16 + 20 + 8 :] for _, _, data in ended.records]
    assert sorted(found) == sent
    check_order(found, ended, names)
    for name in names:
        assert ended.target(name)["clock"]["error_ns"] < EDGE_SECONDS * SECOND
