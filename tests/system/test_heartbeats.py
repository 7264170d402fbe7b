"""Hosts that are idle, slow and bursty at once: nobody is held back, no packet is late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from ddump_common.api import MEDIA_TYPE_PCAPNG
from support import traffic
from support.namespaces import network
from support.pcapng_streams import PcapngStream
from support.relay import relay
from support.runs import generate, run, stopped, streaming, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "1MB")
SECOND = 10**9
STEADY = 30  # packets, 10 a second
BURSTS = 6
BURST = 250
# What is aimed at is half a second, for 99 of 100; here two cores do everything.
LONGEST_SECONDS = 1.0


class Sender:
    """Sends numbered datagrams to a host."""

    def __init__(self, net, host) -> None:
        with net.client.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._address = (host.address, traffic.PORT)
        self.payloads = []

    def send(self) -> None:
        self.payloads.append(b"%8d" % len(self.payloads))
        self._socket.sendto(self.payloads[-1], self._address)

    def close(self) -> None:
        self._socket.close()


async def steadily(sender):
    for _ in range(STEADY):
        sender.send()
        await asyncio.sleep(0.1)  # the rate


async def in_bursts(sender):
    for _ in range(BURSTS):
        for _ in range(BURST):
            sender.send()
        await asyncio.sleep(0.5)  # the silence between them


@pytest.mark.parametrize("ring", [False, True], ids=["live", "ring"])
async def test_nobody_waits_for_an_idle_host(tmp_path, ring):
    with network(3, prefix="ddump-beat") as net, contextlib.ExitStack() as senders:
        async with contextlib.AsyncExitStack() as stack:
            urls = []
            for number, host in enumerate(net.hosts):
                options = [*RING, "--ring-dir", tmp_path / f"{number}"] if ring else []
                started = await stack.enter_async_context(worker(host, *options))
                urls.append(started.url)
            window = ["--since", "-1ms", "--follow"] if ring else []
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, *window, "-f", traffic.FILTER,
                    *map("=".join, zip(("slow", "bursty", "idle"), urls, strict=True)))
            )  # fmt: skip
            await streaming(net.client, urls)
            slow, bursty = (
                senders.enter_context(contextlib.closing(Sender(net, host)))
                for host in net.hosts[:2]
            )
            delays = []
            sent = STEADY + BURSTS * BURST
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(steadily(slow))
                tasks.create_task(in_bursts(bursty))
                for count in range(1, sent + 1):
                    await ddump.until(count)
                    delays.append(time.time_ns() - ddump.records[count - 1][0])
            ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    stamps = [stamp for stamp, _, _ in ended.records]
    assert stamps == sorted(stamps)
    found = [data[16 + 20 + 8 :] for _, _, data in ended.records]
    assert sorted(found) == sorted(slow.payloads + bursty.payloads)
    for name in ("slow", "bursty", "idle"):
        assert ended.target(name)["late"] == 0
    assert max(delays) < LONGEST_SECONDS * 1e9


async def test_a_worker_that_knows_no_heartbeats_is_waited_for_as_long_as_hold(
    tmp_path,
):
    """And not longer; the packets of one that has them are as quick as it allows."""
    hold = 0.7
    with network(2, prefix="ddump-hold") as net:
        busy, plain = net.hosts
        async with (
            worker(busy) as trusted,
            worker(plain) as silent,
            relay(net.client, (plain.address, 8475)) as old,
        ):
            old.plain = True
            async with run(
                net.client, tmp_path, "--hold", f"{hold}s",
                "-f", traffic.FILTER, f"busy={trusted.url}", f"plain={old.url}",
            ) as ddump:  # fmt: skip
                await streaming(net.client, [trusted.url, silent.url])
                with contextlib.closing(Sender(net, busy)) as sender:
                    for number in range(1, 4):
                        sender.send()
                        await ddump.until(number, seconds=hold + LONGEST_SECONDS)
                        delay_ns = time.time_ns() - ddump.records[-1][0]
                        assert hold - 0.05 < delay_ns / 1e9 < hold + LONGEST_SECONDS
                ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    assert len(ended.records) == 3


async def test_promises_are_kept_whatever_stands_still(tmp_path):
    """Under load: first a client that takes nothing, then the worker as a whole."""
    packets, pace, seconds = 120_000, 40_000, 5
    path = {
        "live": "/capture?",
        "stalled": "/capture?",
        "ring": "/ring?last=1ms&follow=1&",
    }
    ring = ("--ring-dir", tmp_path / "segments", *RING)
    with network(1, prefix="ddump-kept") as net, net.feed(1) as feeder:
        (host,) = net.hosts
        async with contextlib.AsyncExitStack() as stack:
            started = await stack.enter_async_context(
                worker(host, "--buffer-size", "4MiB", *ring)
            )
            clients = {
                name: await asyncio.create_subprocess_exec(
                    *host.command("curl", "-sN", "-o", str(tmp_path / name)),
                    "-H", f"Accept: {MEDIA_TYPE_PCAPNG}",
                    f"{started.url}{asked}duration={seconds}s&filter=udp+port+9999",
                )
                for name, asked in path.items()
            }  # fmt: skip
            await streaming(net.client, [started.url], running=len(clients))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    generate(net, feeder, host, packets, pace=pace, size=300)
                )
                with stopped(clients["stalled"]):
                    await asyncio.sleep(1.5)  # the stall
                with stopped(started.process):
                    await asyncio.sleep(0.7)  # the stall
            for client in clients.values():
                assert await client.wait() == 0
    for name in path:
        stream = PcapngStream(keep=False)
        stream.receive_data((tmp_path / name).read_bytes())
        last = stream.last
        assert stream.packets + last.dropped == packets, name
        assert last.note.skipped == 0
        if name != "ring":
            assert last.received == packets
        # It was promised something all the same, while all went well.
        assert len(stream.beats) > (seconds - 3) * 4
        assert stream.beats[-2].time_ns > stream.beats[0].time_ns + SECOND
