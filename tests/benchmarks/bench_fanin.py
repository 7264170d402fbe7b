"""Two live workers through one client to /dev/null, beside the two curls that could.

Each host is sent packets at the same pace while the client fetches both streams: first
``ddump``, which merges them, then two ``curl`` processes, which do not. Printed are the
rate that the generators reached, what was lost, and the client's CPU per packet; a last
run into a file shows that everything is there and in order.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.load import cpu_seconds
from support.namespaces import network
from support.programs import DDUMP, await_streams, status, worker
from support.traffic import FILTER, PORT

PACKETS = 600_000
RATE = 100_000
ROUNDS = 3
DRAIN_SECONDS = 20


def generate(net) -> float:
    """Send ``PACKETS`` to each host at ``RATE``; return the rate really reached."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number, host in enumerate(net.hosts, start=1):
            config = Path(folder, f"{number}.cfg")
            config.write_text(
                f"{{ eth(da={host.hardware_address}, sa={net.client.hardware_address}), "
                f"ipv4(saddr={net.client.address}, daddr={host.address}), "
                f"udp(sp={PORT}, dp={PORT}), fill(0x41, 58) }}"
            )
            stack.enter_context(
                subprocess.Popen(
                    net.client.command(
                        "trafgen", "--dev", f"port{number}", "--conf", str(config),
                        "--num", str(PACKETS), "-b", f"{RATE}pps", "--cpus", "1",
                    ),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
    return PACKETS / (time.monotonic() - began)


def fetch(net, urls, commands) -> tuple[float, float, list[str]]:
    """Run the client ``commands`` while packets are sent.

    Returns the CPU seconds that the clients took from when their streams were open until
    all was delivered, the rate of each generator, and what the clients said.
    """
    with net.client.entered():
        clients = [
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        await_streams(urls)
        before = [dropped(url) for url in urls]
        idle = sum(cpu_seconds(client.pid) for client in clients)
        rate = generate(net)
        await_delivered(urls)
        cpu = sum(cpu_seconds(client.pid) for client in clients) - idle
        lost = sum(dropped(url) - then for url, then in zip(urls, before, strict=True))
    said = []
    for client in clients:
        client.terminate()
        said.append(client.communicate(timeout=DRAIN_SECONDS)[1])
    with net.client.entered():
        await_streams(urls, running=0)
    if lost:
        print(f"    the kernel dropped {lost}")
    return cpu, rate, said


def dropped(url: str) -> int:
    return status(url)["totals"]["dropped"]


def await_delivered(urls) -> None:
    """Wait until each worker's one stream has sent every packet, or no longer grows."""
    deadline = time.monotonic() + DRAIN_SECONDS
    for url in urls:
        while True:
            (stream,) = status(url)["streams"]
            if stream["packets"] + stream["dropped"] >= PACKETS:
                break
            if time.monotonic() > deadline:
                sys.exit(f"{url}: only {stream['packets']} of {PACKETS} came")
            time.sleep(0.05)


def main() -> None:
    with network(2, prefix="ddump-bench") as net, contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(
                worker(f"{host.address}:8475", "--allow-plaintext", host=host)
            )
            for host in net.hosts
        ]
        ours = [[DDUMP, "-f", FILTER, "-w", "/dev/null", *urls]]
        curls = [
            ["curl", "-sN", "-o", "/dev/null", "-G", "--data-urlencode",
             f"filter={FILTER}", f"{url}/capture"]
            for url in urls
        ]  # fmt: skip
        ratios = []
        for _ in range(ROUNDS):
            figures = []
            for name, commands in (("ddump", ours), ("two curls", curls)):
                cpu, rate, _ = fetch(net, urls, commands)
                figures.append(cpu)
                print(
                    f"{name:>10}: {rate:,.0f} packets/s a host, "
                    f"{cpu / (2 * PACKETS) * 1e6:.2f} µs CPU a packet"
                )
            ratios.append(figures[0] / figures[1])
        print(
            f"client CPU, ddump / two curls: {statistics.median(ratios):.2f} (aim: 1.5)"
        )

        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            path = Path(folder, "merged.pcap")
            _, _, (summary,) = fetch(
                net, urls, [[DDUMP, "-f", FILTER, "-w", str(path), *urls]]
            )
            told = subprocess.check_output(
                ["capinfos", "-M", "-c", "-o", path], text=True
            )
        count = int(re.search(r"Number of packets:\s+(\d+)", told)[1])
        ordered = "Strict time order:   True" in told
        print(f"{count:,} of {2 * PACKETS:,} packets in the file, in order: {ordered}")
        print(summary)


if __name__ == "__main__":
    main()
