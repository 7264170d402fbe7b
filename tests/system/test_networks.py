"""Networks as they are: lossy, narrow, late, out of order, with pauses. Nothing is lost,
and each target's books balance."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from support import traffic
from support.certificates import Authority
from support.namespaces import network
from support.relay import relay
from support.runs import generate, run, streaming, worker
from support.tunnel import tunnel

pytestmark = [pytest.mark.live, pytest.mark.process]

SECONDS = 3
# Packets a second, of 136 bytes in pcapng. TCP itself is slow where much is lost or
# overtaken; the narrow way is as good as full.
RATES = {
    "lossy": 1000,
    "narrow": 6000,
    "late": 1000,
    "disordered": 500,
    "pausing": 1000,
    "well": 1000,
}
STALLS = 2
STALL_SECONDS = 1.0


async def pausing(way):
    """Stop and go on, as a network does that changes its routes."""
    for _ in range(STALLS):
        way.stall()
        await asyncio.sleep(STALL_SECONDS)
        way.go_on()
        await asyncio.sleep(STALL_SECONDS / 2)


@pytest.mark.parametrize("ring", [False, True], ids=["live", "ring"])
async def test_all_of_it_comes_in_order(tmp_path, ring):
    window = ["--since", "-1ms", "--follow"] if ring else []
    with network(len(RATES), prefix="ddump-net") as net:
        hosts = dict(zip(RATES, net.hosts, strict=True))
        async with contextlib.AsyncExitStack() as stack:
            feeders = [
                stack.enter_context(net.feed(number))
                for number in range(1, len(RATES) + 1)
            ]
            stack.enter_context(hosts["lossy"].losing(2, port=8475))
            stack.enter_context(hosts["narrow"].limited("10mbit"))
            disordered = await stack.enter_async_context(
                tunnel(hosts["disordered"], net.client, number=1)
            )
            urls = {}
            for name, host in hosts.items():
                options = ["--ring-dir", tmp_path / name, "--ring-size", "64MB",
                           "--segment-size", "1MB", "--ring-reserve", "1MB"]  # fmt: skip
                listen = [f"{host.address}:8475"]
                if name == "disordered":
                    listen.append("10.78.1.1:8475")
                started = await stack.enter_async_context(
                    worker(host, *(options if ring else []), listen=listen)
                )
                urls[name] = started.url
            late, pauses = [
                await stack.enter_async_context(
                    relay(net.client, (hosts[name].address, 8475))
                )
                for name in ("late", "pausing")
            ]
            for way in (late.up, late.down):
                way.delay, way.jitter = 0.1, 0.05
            disordered.delay, disordered.jitter = 0.1, 0.05
            targets = urls | {
                "late": late.url,
                "pausing": pauses.url,
                "disordered": "http://10.78.1.1:8475",
            }
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, *window, "-f", traffic.FILTER,
                    *map("=".join, targets.items()))
            )  # fmt: skip
            await streaming(net.client, urls.values())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pausing(pauses))
                for feeder, (name, host) in zip(feeders, hosts.items(), strict=True):
                    pace = RATES[name]
                    tasks.create_task(
                        generate(net, feeder, host, SECONDS * pace, pace=pace)
                    )
            await ddump.until(SECONDS * sum(RATES.values()))
            ended = await ddump.interrupted()
            assert disordered.overtaken > 0
    assert ended.code == 0, ended.said
    for name, pace in RATES.items():
        told = ended.target(name)
        assert told["packets"] == SECONDS * pace, told
        for loss in ("dropped", "missing", "skipped", "late"):
            assert told[loss] == 0, told
        assert told["outages"] == []
    stamps = [stamp for stamp, _, _ in ended.records]
    assert len(stamps) == SECONDS * sum(RATES.values())
    assert stamps == sorted(stamps)


async def test_a_link_local_address_has_a_zone(tmp_path):
    """It is for this end alone: the other one's names, and its certificate, have none."""
    authority = Authority(tmp_path)
    pair = authority.server("fe80::1")
    with network(1, prefix="ddump-zone") as net:
        (host,) = net.hosts
        host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0",
                 "net.ipv6.conf.lo.disable_ipv6=0")  # fmt: skip
        host.run("ip", "-6", "address", "add", "fe80::1/64", "dev", "lo", "nodad")
        listen = ["[::]:8475"]
        for scheme, serving in (
            ("http", []),
            ("https", ["--tls-cert", pair.cert, "--tls-key", pair.key]),
        ):
            folder = tmp_path / scheme
            folder.mkdir()
            async with (
                worker(host, *serving, listen=listen),
                run(host, folder, "--ca", authority.cert, "--duration", "10ms",
                    f"near={scheme}://[fe80::1%25lo]") as ddump,
            ):  # fmt: skip
                ended = await ddump.ended()
            assert ended.code == 0, ended.said
            assert ended.target("near")["outcome"] == "complete"
