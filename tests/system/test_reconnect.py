"""Streams that break and come back: with a ring a broken network costs nothing, without
one what it costs is told."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import signal
import time

import pytest

from support import traffic
from support.namespaces import network
from support.oracles import read
from support.relay import relay
from support.runs import generate, run, streaming, tcpdump, worker
from support.workers import wait_until

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "128MB", "--segment-size", "4MB", "--ring-reserve", "1MB")
PACE = 1000
CUT_SECONDS = 5
NOTICED_SECONDS = 15


def ring(folder, name):
    return (*RING, "--ring-dir", folder / f"ring-{name}")


def counted(*captures):
    """Return the records of captures as a multiset."""
    return collections.Counter(record for records in captures for record in records)


def check_lost(ended, name, records, recorded):
    """All that ``name`` lacks is of its one outage, which is told; return how many."""
    (outage,) = ended.target(name)["outages"]
    assert not outage["filled"]
    missing = counted(recorded) - counted(records)
    for stamp, _, _ in missing:
        assert outage["begin_ns"] <= stamp < outage["end_ns"]
    assert not counted(records) - counted(recorded)
    assert any(
        f": {name}: " in line or line.startswith(f"{name}: ")
        for line in ended.said.splitlines()
    )
    return missing.total()


async def killed(host, ddump):
    """Kill its connection, the next one as soon as there is one, and once it is back."""
    url = f"http://{host.address}:8475"
    host.kill_connections(8475)
    await ddump.until_said(": killed: ")
    await streaming(host, [url])
    host.kill_connections(8475)
    await ddump.until_said(": killed: back")
    host.kill_connections(8475)


async def unplugged(net, number):
    with net.down(number):
        await asyncio.sleep(CUT_SECONDS)  # the cut


async def broken(net, number):
    """As unplugged, but the connection does not outlive it."""
    net.hosts[number - 1].kill_connections(8475)
    await unplugged(net, number)


async def dead(way, ddump):
    """Let its connection go dead; return how long it took to be noticed."""
    began = time.monotonic()
    way.half_open()
    await ddump.until_said(": dead: ", seconds=NOTICED_SECONDS + 5)
    return time.monotonic() - began


async def test_a_broken_network_costs_nothing(tmp_path):
    """Connections killed thrice, links that are down for 5 s, one half open."""
    packets = PACE * 14
    # One that breaks again before it has caught up may still be in the same outage.
    outages = {"killed": {2, 3}, "broken": {1}, "unplugged": {0}, "dead": {1}}
    names = list(outages)
    with network(len(names), prefix="ddump-back") as net:
        async with contextlib.AsyncExitStack() as stack:
            feeders = [
                stack.enter_context(net.feed(number))
                for number, _ in enumerate(names, start=1)
            ]
            urls = {}
            for name, host in zip(names, net.hosts, strict=True):
                started = await stack.enter_async_context(
                    worker(host, *ring(tmp_path, name))
                )
                urls[name] = started.url
            way = await stack.enter_async_context(
                relay(net.client, (net.hosts[-1].address, 8475))
            )
            targets = urls | {"dead": way.url}
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "-f", traffic.FILTER,
                    *map("=".join, targets.items()))
            )  # fmt: skip
            await streaming(net.client, urls.values())
            paths = [tmp_path / f"{name}.pcap" for name in names]
            async with contextlib.AsyncExitStack() as recorders:
                for host, path in zip(net.hosts, paths, strict=True):
                    await recorders.enter_async_context(tcpdump(host, path, packets))
                async with asyncio.TaskGroup() as tasks:
                    for feeder, host in zip(feeders, net.hosts, strict=True):
                        tasks.create_task(
                            generate(net, feeder, host, packets, pace=PACE)
                        )
                    await ddump.until(2 * PACE)
                    tasks.create_task(killed(net.hosts[0], ddump))
                    tasks.create_task(broken(net, 2))
                    tasks.create_task(unplugged(net, 3))
                    noticed = tasks.create_task(dead(way, ddump))
            await ddump.until(len(names) * packets, seconds=30)
            ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    assert noticed.result() < NOTICED_SECONDS
    assert counted(ended.records) == counted(*map(read, paths))
    for name, times in outages.items():
        told = ended.target(name)
        assert told["packets"] == packets
        assert len(told["outages"]) in times
        assert (told["refilled"] > 0) == bool(told["outages"])
        assert told["refilled"] == sum(each["refilled"] for each in told["outages"])
        assert all(outage["filled"] for outage in told["outages"])
        for loss in ("dropped", "missing", "skipped", "late"):
            assert told[loss] == 0, told


@pytest.mark.parametrize("window", [[], ["--since", "-1ms", "--follow"]],
                         ids=["live", "follower"])  # fmt: skip
async def test_a_cut_under_load_costs_nothing(tmp_path, window):
    packets, pace = 150_000, 50_000
    with network(1, prefix="ddump-load") as net, net.feed(1) as feeder:
        (host,) = net.hosts
        path = tmp_path / "recorded.pcap"
        async with (
            worker(host, *ring(tmp_path, "load")) as started,
            run(net.client, tmp_path, *window, "-f", traffic.FILTER, f"load={started.url}")
            as ddump,
        ):  # fmt: skip
            await streaming(net.client, [started.url])
            async with tcpdump(host, path, packets), asyncio.TaskGroup() as tasks:
                tasks.create_task(generate(net, feeder, host, packets, pace=pace))
                await ddump.until(pace // 2)
                host.kill_connections(8475)
            await ddump.until(packets)
            ended = await ddump.interrupted()
    told = ended.target("load")
    assert ended.code == 0, ended.said
    assert told["dropped"] == 0, "more than this machine could take"
    assert counted(ended.records) == counted(read(path))
    (outage,) = told["outages"]
    assert outage["filled"]
    assert told["refilled"] > 0
    assert told["late"] == 0


@pytest.mark.parametrize(
    ("allowed", "code"), [("'stream', 'window'", 0), ("'stream'", 4)]
)
async def test_who_may_look_into_the_ring_needs_no_other_permission(
    tmp_path, allowed, code
):
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[[access]]\nidentity = ['anonymous']\nallow = [{allowed}]\n")
    packets = 2 * PACE
    with network(1, prefix="ddump-rule") as net, net.feed(1) as feeder:
        (host,) = net.hosts
        async with (
            worker(host, *ring(tmp_path, "rule"), "--config", rules) as started,
            run(net.client, tmp_path, "-v", "-f", traffic.FILTER, f"web={started.url}")
            as ddump,
            asyncio.TaskGroup() as tasks,
        ):  # fmt: skip
            await ddump.until_said(": web: opened")
            tasks.create_task(generate(net, feeder, host, packets, pace=PACE))
            await ddump.until(PACE // 2)
            host.kill_connections(8475)
            await ddump.until_said(": web: back")
            if code == 0:
                await ddump.until(packets)
            ended = await ddump.interrupted()
    assert ended.code == code, ended.said
    (outage,) = ended.target("web")["outages"]
    assert outage["filled"] == (code == 0)
    assert ("web: its ring: 403 " in ended.said) == (code != 0), ended.said


async def test_a_window_goes_on_where_it_broke(tmp_path):
    """One breaks twice, the past of the other waits for it; then its worker is gone.

    Who may look into the past needs no other permission for that.
    """
    rules = tmp_path / "rules.toml"
    rules.write_text("[[access]]\nidentity = ['anonymous']\nallow = ['window']\n")
    packets, pace = 16_000, 16_000
    with network(2, prefix="ddump-past") as net:
        async with contextlib.AsyncExitStack() as stack:
            feeders = [stack.enter_context(net.feed(number)) for number in (1, 2)]
            first, second = [
                await stack.enter_async_context(
                    worker(
                        host, *ring(tmp_path, host.address), "--config", rules, **given
                    )
                )
                for host, given in zip(
                    net.hosts, ({}, {"exit_code": -signal.SIGKILL}), strict=True
                )
            ]
            since = f"{time.time():.9f}"
            paths = [tmp_path / name for name in ("h1.pcap", "h2.pcap")]
            async with contextlib.AsyncExitStack() as recorders:
                for host, path in zip(net.hosts, paths, strict=True):
                    await recorders.enter_async_context(tcpdump(host, path, packets))
                async with asyncio.TaskGroup() as tasks:
                    for feeder, host in zip(feeders, net.hosts, strict=True):
                        tasks.create_task(
                            generate(net, feeder, host, packets, pace=pace, size=600)
                        )
            folders = [tmp_path / name for name in ("mended", "cut")]
            for folder in folders:
                folder.mkdir()
            asked = (
                "--since",
                since,
                "-f",
                traffic.FILTER,
                f"h1={first.url}",
                f"h2={second.url}",
            )
            # So that there is a time in which to break them, and more than buffers hold.
            for host in net.hosts:
                stack.enter_context(host.limited("64mbit"))
            async with run(net.client, folders[0], *asked) as ddump:
                for times, seen in enumerate((packets // 2, packets), start=1):
                    await ddump.until(seen)
                    net.hosts[0].kill_connections(8475)
                    await ddump.until_said(": h1: back, and nothing", times=times)
                mended = await ddump.ended()
            async with run(net.client, folders[1], "--timeout", "1s", *asked) as ddump:
                await ddump.until(packets // 2)
                second.process.kill()
                cut = await ddump.ended()
    assert mended.code == 0, mended.said
    stamps = [stamp for stamp, _, _ in mended.records]
    assert stamps == sorted(stamps)
    assert counted(mended.records) == counted(*map(read, paths))
    told = mended.target("h1")
    assert [outage["filled"] for outage in told["outages"]] == [True, True]
    assert told["late"] == told["refilled"] == mended.target("h2")["late"] == 0
    assert cut.code == 4, cut.said
    assert cut.target("h1")["packets"] == packets
    assert cut.target("h2")["packets"] < packets
    assert "ended before" in cut.target("h2")["error"]


async def test_what_a_broken_network_costs_is_told(tmp_path):
    """A worker without a ring; one that is killed, and comes back with the same ring."""
    broken, after = PACE * 3, PACE
    with network(2, prefix="ddump-gap") as net:
        async with contextlib.AsyncExitStack() as stack:
            feeders = [stack.enter_context(net.feed(number)) for number in (1, 2)]
            bare = await stack.enter_async_context(worker(net.hosts[0]))
            options = ring(tmp_path, "restarted")
            first = await stack.enter_async_context(
                worker(net.hosts[1], *options, exit_code=-signal.SIGKILL)
            )
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, "-f", traffic.FILTER,
                    f"bare={bare.url}", f"restarted={first.url}")
            )  # fmt: skip
            await streaming(net.client, [bare.url, first.url])
            paths = [tmp_path / f"{name}.pcap" for name in ("bare", "restarted")]
            async with contextlib.AsyncExitStack() as recorders:
                for host, path, more in zip(
                    net.hosts, paths, (after, 2 * after), strict=True
                ):
                    await recorders.enter_async_context(
                        tcpdump(host, path, broken + more)
                    )
                async with asyncio.TaskGroup() as tasks:
                    for feeder, host in zip(feeders, net.hosts, strict=True):
                        tasks.create_task(
                            generate(net, feeder, host, broken, pace=PACE)
                        )
                    await ddump.until(PACE)
                    net.hosts[0].kill_connections(8475)
                    first.process.kill()
                    await first.process.wait()
                    second = await stack.enter_async_context(
                        worker(net.hosts[1], *options)
                    )
                    # However long that took, there is what only its ring has.
                    await generate(net, feeders[1], net.hosts[1], after, pace=PACE)
                    await streaming(net.client, [bare.url, second.url])
                for feeder, host in zip(feeders, net.hosts, strict=True):
                    await generate(net, feeder, host, after, pace=PACE)
            last = {max(records)[0] for records in map(read, paths)}
            await wait_until(lambda: last <= {each[0] for each in ddump.records})
            ended = await ddump.interrupted()
    assert ended.code == 4, ended.said
    recorded = [read(path) for path in paths]
    sets = [set(each) for each in recorded]
    ours = [[record for record in ended.records if record in each] for each in sets]
    assert counted(*ours) == counted(ended.records)
    assert check_lost(ended, "bare", ours[0], recorded[0]) > 0
    assert check_lost(ended, "restarted", ours[1], recorded[1]) > 0
    assert ended.target("restarted")["refilled"] > 0


async def test_fail_fast_ends_at_the_first_loss(tmp_path):
    with network(2, prefix="ddump-fast") as net:
        async with (
            worker(net.hosts[0]) as first,
            worker(net.hosts[1], *ring(tmp_path, "second")) as second,
            run(
                net.client, tmp_path, "--fail-fast", "-f", traffic.FILTER,
                f"first={first.url}", f"second={second.url}",
            ) as ddump,
        ):  # fmt: skip
            await streaming(net.client, [first.url, second.url])
            await generate(net, "port1", net.hosts[0], 100, pace=1000)
            await ddump.until(100)
            net.hosts[0].kill_connections(8475)
            ended = await ddump.ended(seconds=5)
    assert ended.code == 4
    assert len(ended.records) == 100
    assert ": first: " in ended.said
    assert ": second: " not in ended.said
