"""How old a packet is when it can be read from ``ddump``, with one of three hosts idle.

Two hosts are sent packets, the third none, slowly and then fast. Each time ``ddump`` has
streams with heartbeats once, and once, as the relay that is always between them has the
workers answer in classic pcap, nothing but ``--hold``. The age is from a packet's
timestamp, which is the kernel's, to the moment at which a reader of the standard output
has its record. The generators take one of the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import commands
from support.namespaces import network
from support.relay import relay
from support.runs import generate, streaming, worker
from support.traffic import FILTER

GOAL_SECONDS = 0.5
PAYLOAD = 58
HEADER = 24
RECORD = 16 + 16 + 28 + PAYLOAD  # the record's header, SLL, IP and UDP
SAMPLED = 50  # one record of so many, where there are many
# Packets a second at each of two hosts -> packets. The slow ones send one each.
LOADS = {5: 50, 50_000: 300_000}
DRAIN_SECONDS = 20


class Ages:
    """How old records were when they were read, in seconds."""

    def __init__(self, step: int) -> None:
        self.count = 0
        self.ages: list[float] = []
        self._step = step
        self._rest = b""
        self._left = HEADER

    def receive_data(self, data: bytes, now_ns: int) -> None:
        """Take output that was read at ``now_ns``."""
        skipped = min(self._left, len(data))
        self._left -= skipped
        data = self._rest + data[skipped:]
        records = len(data) // RECORD
        for number in range(-self.count % self._step, records, self._step):
            at = number * RECORD
            seconds = int.from_bytes(data[at : at + 4], "little")
            fraction = int.from_bytes(data[at + 4 : at + 8], "little")
            self.ages.append((now_ns - seconds * 10**9 - fraction) / 1e9)
        self.count += records
        self._rest = data[records * RECORD :]

    def at(self, part: float) -> float:
        """Return the age that ``part`` of the records were not above."""
        ordered = sorted(self.ages)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


async def read(pipe: int, ages: Ages, packets: int) -> None:
    """Read a pipe as it fills, until all packets have come."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        while ages.count < packets:
            readable.clear()
            try:
                data = os.read(pipe, 1 << 20)
            except BlockingIOError:
                await readable.wait()
                continue
            now_ns = time.time_ns()
            if not data:
                raise EOFError
            ages.receive_data(data, now_ns)
            await asyncio.sleep(0)  # the relays' turn
    finally:
        loop.remove_reader(pipe)


def count_late(report: Path) -> int:
    return sum(each["late"] for each in json.loads(report.read_bytes())["targets"])


async def measure(net, urls, relays, *, pace: int, packets: int, plain: bool) -> bool:
    """Print one line; return whether it is as good as is aimed at."""
    for way in relays:
        way.plain = plain
    ages = Ages(SAMPLED if pace > SAMPLED else 1)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        report = Path(folder, "report.json")
        process = await asyncio.create_subprocess_exec(
            *net.client.command(
                *commands.COMMAND, "--precision", "nano", "--report", str(report),
                "-f", FILTER, *(way.url for way in relays),
            ),
            stdout=writing, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        os.close(writing)
        try:
            await streaming(net.client, urls)
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(read(reading, ages, 2 * packets))
                async with asyncio.TaskGroup() as senders:
                    for number, host in enumerate(net.hosts[:2], start=1):
                        senders.create_task(
                            generate(net, f"port{number}", host, packets, pace=pace,
                                     size=PAYLOAD)
                        )  # fmt: skip
                rate = packets / (time.monotonic() - began)
                async with asyncio.timeout(DRAIN_SECONDS):
                    await reader
        finally:
            process.send_signal(signal.SIGINT)
            await process.communicate()
        await streaming(net.client, urls, running=0)
        late = count_late(report)
    good = plain or ages.at(0.99) < GOAL_SECONDS
    print(
        f"{2 * pace:>9,} {2 * rate:>9,.0f}  {'--hold' if plain else 'heartbeats':<10} "
        f"{ages.at(0.5) * 1e3:>8.0f} {ages.at(0.99) * 1e3:>8.0f} "
        f"{ages.at(1) * 1e3:>8.0f} {late:>9,}{'' if good else '  too old'}"
    )
    return good


async def compare() -> bool:
    """Print the table; return whether all is as good as is aimed at."""
    with network(3, prefix="bench-delay") as net:
        async with contextlib.AsyncExitStack() as stack:
            urls = [
                (await stack.enter_async_context(worker(host))).url
                for host in net.hosts
            ]
            relays = [
                await stack.enter_async_context(relay(net.client, (host.address, 8475)))
                for host in net.hosts
            ]
            print(
                f"packets' ages when read, ms (aim: p99 below {GOAL_SECONDS * 1e3:.0f})"
            )
            print(
                "  asked/s reached/s  order by        p50      p99      max      late"
            )
            return all(
                [
                    await measure(
                        net, urls, relays, pace=pace, packets=packets, plain=plain
                    )
                    for pace, packets in LOADS.items()
                    for plain in (False, True)
                ]
            )


if __name__ == "__main__":
    sys.exit(not asyncio.run(compare()))
