"""One worker, live, to ``curl -o /dev/null``, beside tcpdump to /dev/null.

trafgen sends small packets over a veth into the worker's namespace, paced and then as
fast as it can; both capture ``any`` in the same run. curl asks for classic pcap, and for
pcapng, which is what ``ddump`` asks for. Printed are the rate reached, what
was lost, the CPU of each per packet and their ratio. trafgen takes one of the cores.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

from ddump_common.api import MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.load import cpu_seconds, generate
from support.namespaces import network
from support.programs import DDUMP_WORKER, await_streams, started, status
from support.traffic import FILTER

PACE = 150_000
PACED_PACKETS = 600_000
UNPACED_PACKETS = 1_200_000
MAX_RATIO = 3.0
PAYLOAD = 100  # 142 bytes on the wire
DRAIN_SECONDS = 10


def await_packets(url: str, packets: int) -> dict:
    """Wait until the worker has delivered or lost ``packets``; return its stream."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        (stream,) = status(url)["streams"]
        if (
            stream["packets"] + stream["dropped"] >= packets
            or time.monotonic() > deadline
        ):
            return stream
        time.sleep(0.05)


def measure(
    net, url: str, worker_pid: int, packets: int, pace: int | None, media_type: str
) -> float:
    """Print one run; return how much more CPU the worker took than tcpdump."""
    (host,) = net.hosts
    command = host.command(
        "tcpdump", "-Z", "root", "-n", "-i", "any", "-B", "32768", "-w", "/dev/null",
        FILTER,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        tcpdump = stack.enter_context(
            started(command, stderr=subprocess.PIPE, text=True)
        )
        while "listening on" not in tcpdump.stderr.readline():
            pass
        stack.enter_context(
            started(
                host.command("curl", "-sN", "-o", "/dev/null", "-H", f"Accept: {media_type}",
                             f"{url}/capture?filter={FILTER}".replace(" ", "%20"))
            )
        )  # fmt: skip
        with host.entered():
            await_streams([url])
        before = cpu_seconds(worker_pid), cpu_seconds(tcpdump.pid)
        rate = generate(net, packets, pace, payload=PAYLOAD)
        with host.entered():
            stream = await_packets(url, packets)
        ours = cpu_seconds(worker_pid) - before[0]
        theirs = cpu_seconds(tcpdump.pid) - before[1]
        tcpdump.terminate()
        words = tcpdump.stderr.read()
    with host.entered():
        await_streams([url], running=0)
    taken = int(re.search(r"(\d+) packets captured", words)[1])
    ratio = (ours / stream["packets"]) / (theirs / taken)
    print(
        f"{f'paced {pace}' if pace else 'unpaced':>13} pps, reached {rate:7.0f}, "
        f"{'pcapng' if media_type == MEDIA_TYPE_PCAPNG else 'pcap':>6}: "
        f"worker {stream['packets']} of {packets}, {stream['dropped']} dropped, "
        f"{ours:.2f} s CPU, {ours / stream['packets'] * 1e6:.3f} µs a packet; "
        f"tcpdump {taken}, {theirs:.2f} s, {theirs / taken * 1e6:.3f} µs; "
        f"ratio {ratio:.2f} (at most {MAX_RATIO})"
    )
    return ratio


def main() -> None:
    """Print the figures; fail when the worker takes more than it may."""
    with network(1, prefix="bench-live") as net:
        (host,) = net.hosts
        command = host.command(
            DDUMP_WORKER, "--listen", "127.0.0.1:8475", "--allow-anonymous"
        )
        with started(command, stderr=subprocess.PIPE, text=True) as process:
            while "listening on" not in process.stderr.readline():
                pass
            url = "http://127.0.0.1:8475"
            # "ip netns exec" becomes the program: the pid is the worker's.
            ratios = [
                measure(net, url, process.pid, packets, pace, media_type)
                for packets, pace in ((PACED_PACKETS, PACE), (UNPACED_PACKETS, None))
                for media_type in (MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG)
            ]
    sys.exit(max(ratios) > MAX_RATIO)


if __name__ == "__main__":
    main()
