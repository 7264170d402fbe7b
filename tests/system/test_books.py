"""Every packet that is sent is in the output or counted as lost, once.

What is counted comes with heartbeats, and a packet leaves when one that is later has come:
when that which is sent last is there, all that was lost before is known.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import signal

import pytest

from support import traffic
from support.namespaces import network
from support.relay import relay
from support.runs import delivered, generate, run, stopped, streaming, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "1MB")
SMALL_RING = ("--ring-size", "8MB", *RING[2:])
PACKETS = 4000
RATE = 4000
LOAD = 30_000
PACE = 60_000
SIZE = 1000
OTHERS = 10  # that the filter does not take: a ring counts them among the skipped


def check(ended, name, sent):
    """Check the books of one target; return its account."""
    told = ended.target(name)
    told_of = told["packets"] + told["dropped"] + told["skipped"]
    assert sent <= told_of <= sent + (OTHERS if told["skipped"] else 0), told
    assert told["missing"] == 0, told
    assert told["late"] == 0, told
    return told


async def replayed(net, folder, number):
    """Send packets that differ to host ``number``; return their payloads."""
    host = net.hosts[number - 1]
    frames = traffic.frames(net.client, host, PACKETS, seed=number)
    path = folder / f"sent{number}.pcap"
    traffic.write_capture(path, frames)
    sender = traffic.replay(net.client, f"port{number}", path, packets_per_second=RATE)
    _, complaint = await asyncio.to_thread(sender.communicate, timeout=30)
    assert sender.returncode == 0, complaint
    return [frame[14 + 20 + 8 :] for frame in frames]


def payloads(ended, number):
    """Return what came of that which was sent to host ``number``, in order."""
    seed = number.to_bytes(2, "big")
    found = [data[16 + 20 + 8 :] for _, _, data in ended.records]
    return [payload for payload in found if payload[:2] == seed]


@pytest.mark.parametrize("ring", [False, True], ids=["live", "ring"])
async def test_a_worker_that_stands_still_loses_what_it_says(tmp_path, ring):
    """The kernel drops for it meanwhile; the others lose nothing."""
    with network(3, prefix="ddump-books") as net, net.feed(3) as feeder:
        async with contextlib.AsyncExitStack() as stack:
            workers = []
            for number, host in enumerate(net.hosts):
                options = [*RING, "--ring-dir", tmp_path / f"{number}"] if ring else []
                if number == 2:
                    options += [
                        "--ring-buffer-size" if ring else "--buffer-size",
                        "1MiB",
                    ]
                workers.append(await stack.enter_async_context(worker(host, *options)))
            targets = [f"{n}={each.url}" for n, each in enumerate(workers, start=1)]
            window = ["--since", "-1ms", "--follow"] if ring else []
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, *window, "-f", traffic.FILTER, *targets)
            )  # fmt: skip
            await streaming(net.client, [each.url for each in workers])
            async with asyncio.TaskGroup() as tasks:
                sent = [
                    tasks.create_task(replayed(net, tmp_path, number))
                    for number in (1, 2)
                ]
                with stopped(workers[2].process):
                    await generate(
                        net, feeder, net.hosts[2], LOAD, pace=PACE, size=SIZE
                    )
            came = await delivered(net.client, workers[2].url, LOAD)
            await generate(net, feeder, net.hosts[2], 1, pace=1)
            await ddump.until(2 * PACKETS + came + 1)
            ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    assert check(ended, "3", LOAD + 1)["dropped"] > 0
    for number, task in enumerate(sent, start=1):
        check(ended, str(number), PACKETS)
        assert payloads(ended, number) == task.result()
    stamps = [stamp for stamp, _, _ in ended.records]
    assert len(stamps) == sum(ended.target(name)["packets"] for name in "123")
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("source", ["live", "ring", "small ring"])
async def test_a_client_that_stands_still_loses_what_is_said(tmp_path, source):
    """Live the kernel drops for it; a ring keeps it, until it has gone round."""
    sizes = {"live": (), "ring": RING, "small ring": SMALL_RING}[source]
    options = [*sizes, "--ring-dir", tmp_path / "ring"] if sizes else []
    window = ["--since", "-1ms", "--follow"] if sizes else []
    with network(1, prefix="ddump-stall") as net, net.feed(1) as feeder:
        (host,) = net.hosts
        async with (
            worker(host, "--buffer-size", "1MiB", *options) as started,
            run(
                net.client, tmp_path, *window, "--buffer", "1MiB",
                "-f", traffic.FILTER, f"web={started.url}",
            ) as ddump,
        ):  # fmt: skip
            await streaming(net.client, [started.url])
            with stopped(ddump.process):
                await generate(net, feeder, host, LOAD, pace=PACE // 2, size=SIZE)
            came = await delivered(net.client, started.url, LOAD)
            await generate(net, feeder, host, 1, pace=1)
            await ddump.until(came + 1)
            ended = await ddump.interrupted()
    told = check(ended, "web", LOAD + 1)
    assert len(ended.records) == told["packets"]
    assert (told["dropped"] > 0) == (source == "live")
    assert (told["skipped"] > 0) == (source == "small ring")
    assert ended.code == (4 if source == "small ring" else 0), ended.said


async def test_who_ended_early_is_named_and_what_came_is_there(tmp_path):
    """One is asked to end, one is killed, one is cut off; one ends as it should."""
    names = ("term", "kill", "cut", "well")
    with network(4, prefix="ddump-early") as net:
        async with contextlib.AsyncExitStack() as stack:
            workers = {
                name: await stack.enter_async_context(
                    worker(host, exit_code=-signal.SIGKILL if name == "kill" else 0)
                )
                for name, host in zip(names, net.hosts, strict=True)
            }
            way = await stack.enter_async_context(
                relay(net.client, (net.hosts[2].address, 8475))
            )
            urls = {name: each.url for name, each in workers.items()}
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "--no-reconnect", "-f", traffic.FILTER,
                    *map("=".join, (urls | {"cut": way.url}).items()))
            )  # fmt: skip
            await streaming(net.client, urls.values())
            async with asyncio.TaskGroup() as tasks:
                sent = [
                    tasks.create_task(replayed(net, tmp_path, number))
                    for number in range(1, 5)
                ]
            await ddump.until(4 * PACKETS)
            workers["term"].terminate()
            workers["kill"].process.kill()
            way.cut()
            await workers["kill"].process.wait()
            for name in names[:3]:
                await ddump.until_said(f": {name}: ")
            ended = await ddump.interrupted()
    assert ended.code == 4
    for number, (name, task) in enumerate(zip(names, sent, strict=True), start=1):
        assert payloads(ended, number) == task.result()
        told = ended.target(name)
        assert bool(told["error"]) == (name != "well"), told
        lines = [line for line in ended.said.splitlines() if f": {name}: " in line]
        assert bool(lines) == (name != "well"), ended.said
    counts = collections.Counter(data for _, _, data in ended.records)
    assert len(counts) == 4 * PACKETS
