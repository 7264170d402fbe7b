"""pcapng output of the interfaces of several hosts, as tshark and capinfos read it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import struct
import subprocess

import pytest

from support import traffic
from support.namespaces import network
from support.runs import delivered, generate, run, stopped, streaming, tcpdump, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

COUNTS = {("web", "eth0"): 300, ("web", "feed"): 200,
          ("db", "eth0"): 150, ("db", "feed"): 250}  # fmt: skip
STATISTICS = 5  # the type of the block; of the options in it,
DROPPED = 7
DELIVERED = 8
NUMBER_OF_STATISTICS = "statistics"
LOAD = 10_000


def shown(path):
    """Return the names and times of packets, as tshark has them."""
    lines = subprocess.run(
        ["tshark", "-nr", path, "-T", "fields", "-e", "frame.interface_name",
         "-e", "frame.time_epoch"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    return [line.split("\t") for line in lines]


def blocks(path, kind):
    """Return the bodies of a little-endian pcapng file's blocks of one kind."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        this, length = struct.unpack_from("<II", data, at)
        if this == kind:
            found.append(data[at + 8 : at + length - 4])
        at += length
    return found


def statistics(path):
    """Return the counters of each interface's one statistics block, by option code."""
    found = {}
    for body in blocks(path, STATISTICS):
        (interface,) = struct.unpack_from("<I", body)
        assert interface not in found
        found[interface], at = {}, 12
        while at < len(body):
            code, length = struct.unpack_from("<HH", body, at)
            if length == 8:
                value = struct.unpack_from("<Q", body, at + 4)
                (found[interface][code],) = value
            at += 4 + (length + 3) // 4 * 4
    return found


def interfaces(path):
    """Return the counters of the file's interfaces, by the names that capinfos finds."""
    told = subprocess.run(
        ["capinfos", path], check=True, capture_output=True, text=True
    )
    assert told.stderr == ""
    names = re.findall(r"^ +Name = (.+)$", told.stdout, re.MULTILINE)
    entries = re.findall(
        r"^ +Number of stat entries = (\d+)$", told.stdout, re.MULTILINE
    )
    counters = statistics(path)
    return {
        name: counters[number] | {NUMBER_OF_STATISTICS: int(entry)}
        for number, (name, entry) in enumerate(zip(names, entries, strict=True))
    }


@pytest.mark.parametrize("ring", [False, True], ids=["live", "ring"])
async def test_each_interface_of_each_target_is_one_of_the_file(tmp_path, ring):
    names = ("web", "db", "small")
    options = ["--ring-size", "8MB", "--segment-size", "1MB", "--ring-reserve", "1MB",
               "--ring-link", "sll2"]  # fmt: skip
    window = ["--since", "-1ms", "--follow"] if ring else []
    paths = {key: tmp_path / f"{'-'.join(key)}.pcap" for key in COUNTS}
    with network(3, prefix="ddump-face") as net:
        hosts = dict(zip(names, net.hosts, strict=True))
        async with contextlib.AsyncExitStack() as stack:
            devices, urls = {}, {}
            for number, (name, host) in enumerate(hosts.items(), start=1):
                devices[name, "eth0"] = f"port{number}"
                devices[name, "feed"] = stack.enter_context(net.feed(number))
                more = [*options, "--ring-dir", tmp_path / name] if ring else []
                if name == "small":
                    more += ["--ring-buffer-size" if ring else "--buffer-size", "1MiB"]
                started = await stack.enter_async_context(worker(host, *more))
                urls[name] = started.url
            ddump = await stack.enter_async_context(
                run(net.client, tmp_path, *window, "--link", "sll2",
                    "-f", traffic.FILTER, *map("=".join, urls.items()), pcapng=True)
            )  # fmt: skip
            await streaming(net.client, urls.values())
            async with contextlib.AsyncExitStack() as recorders:
                for (name, interface), count in COUNTS.items():
                    path = paths[name, interface]
                    await recorders.enter_async_context(
                        tcpdump(hosts[name], path, count, interface=interface)
                    )
                async with asyncio.TaskGroup() as tasks:
                    for (name, interface), count in COUNTS.items():
                        tasks.create_task(
                            generate(net, devices[name, interface], hosts[name],
                                     count, pace=500)
                        )  # fmt: skip
                    with stopped(started.process):  # the small one's
                        await generate(net, devices["small", "feed"], hosts["small"],
                                       LOAD, pace=LOAD, size=1000)  # fmt: skip
            came = await delivered(net.client, urls["small"], LOAD)
            # When one more is there, a heartbeat has told of what was lost before.
            await generate(net, devices["small", "feed"], hosts["small"], 1, pace=1)
            await ddump.until(sum(COUNTS.values()) + came + 1)
            ended = await ddump.interrupted()
    assert ended.code == 0, ended.said
    found = collections.defaultdict(list)
    for name, time in shown(ddump.output):
        found[name].append(time)
    small = len(found.pop("small/feed"))
    recorded = {
        "/".join(key): [time for _, time in shown(path)] for key, path in paths.items()
    }
    assert found == recorded
    told = interfaces(ddump.output)
    assert set(told) == {*recorded, "small/feed"}
    assert {each[NUMBER_OF_STATISTICS] for each in told.values()} == {1}
    for name in names:
        mine = [each for key, each in told.items() if key.startswith(f"{name}/")]
        dropped = sum(each.get(DROPPED, 0) for each in mine)
        written = sum(each.get(DELIVERED, 0) for each in mine)
        sent = sum(count for (key, _), count in COUNTS.items() if key == name)
        assert ended.target(name)["dropped"] == dropped
        assert written + dropped == (sent or LOAD + 1)
        assert (dropped > 0) == (name == "small")
    assert ended.target("small")["packets"] == small
