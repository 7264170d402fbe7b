"""The ring: its recorder beside tcpdump and dumpcap, its windows beside tcpdump -r.

The recorder's part sends packets over a veth, paced and as fast as trafgen can, to a
worker that only records, to ``tcpdump -w`` and to ``dumpcap -b``, all in the same run.
The windows' part writes a full ring of 100 s of small packets, starts a worker on it,
and pulls one second, and a few packets out of all, beside tcpdump and tcpslice over the
same files. trafgen takes one of the cores, and three writers the other.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.captures import SLL, Cooked, pcap_header
from support.load import cpu_seconds, generate
from support.namespaces import network
from support.programs import DDUMP_WORKER, started, status
from support.traffic import PORT

PACE = 150_000
PACED_PACKETS = 900_000
UNPACED_PACKETS = 1_500_000
PAYLOAD = 100  # 142 bytes on the wire
GOALS = {"tcpdump": 0.9, "dumpcap": 0.3}
DRAIN_SECONDS = 10

RING_BYTES = 2_000_000_000
SEGMENT_BYTES = 64_000_000
SECONDS = 100
ROUNDS = 5
WANTED = bytes([192, 0, 2, 99])


# The recorder


def record(net, folder: Path, packets: int, pace: int | None) -> None:
    """Print one run of all three recorders."""
    (host,) = net.hosts
    url = "http://127.0.0.1:8475"
    with contextlib.ExitStack() as stack:
        ring = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        ours = stack.enter_context(
            started(
                host.command(
                    DDUMP_WORKER, "--listen", "127.0.0.1:8475", "--allow-anonymous",
                    "--ring-dir", str(ring), "--ring-size", "1GB",
                ),
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        await_line(ours, "listening on")
        tcpdump = stack.enter_context(
            started(
                host.command(
                    "tcpdump", "-Z", "root", "-n", "-i", "any", "-B", "32768",
                    "-w", str(ring.with_suffix(".tcpdump")),
                ),
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        stack.callback(remove, folder, f"{ring.name}.*")
        await_line(tcpdump, "listening on")
        dumpcap = stack.enter_context(
            started(
                host.command(
                    "dumpcap", "-q", "-i", "any", "-B", "32", "-b", "filesize:64000",
                    "-b", "files:20", "-w", str(ring.with_suffix(".dumpcap")),
                ),
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        await_line(dumpcap, "File:")
        pids = {"ddump": ours.pid, "tcpdump": tcpdump.pid, "dumpcap": dumpcap.pid}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        rate = generate(net, packets, pace, payload=PAYLOAD)
        with host.entered():
            held = await_recorded(url, packets)
        cpu = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        tcpdump.send_signal(signal.SIGINT)
        dumpcap.send_signal(signal.SIGINT)
        taken = int(re.search(r"(\d+) packets captured", tcpdump.stderr.read())[1])
        others = re.search(r"dropped on interface.*?: (\d+)/", dumpcap.stderr.read())[1]
    print(
        f"recorder, {f'paced {pace}' if pace else 'unpaced':>12} pps, "
        f"reached {rate:,.0f} pps, {packets:,} packets"
    )
    print(
        f"  ddump    {held['packets']:,} recorded, {held['dropped']} dropped, "
        f"{cpu['ddump']:.2f} s CPU"
    )
    print(f"  tcpdump  {taken:,} captured, {cpu['tcpdump']:.2f} s CPU")
    print(f"  dumpcap  {int(others):,} captured, {cpu['dumpcap']:.2f} s CPU")
    for peer, count in (("tcpdump", taken), ("dumpcap", int(others))):
        ratio = (cpu["ddump"] / held["packets"]) / (cpu[peer] / count)
        print(f"  CPU a packet, ddump / {peer}: {ratio:.2f}, the goal is {GOALS[peer]}")


def await_line(process, words: str) -> None:
    while line := process.stderr.readline():
        if words in line:
            return
    sys.exit(f"{process.args}: ended")


def await_recorded(url: str, packets: int) -> dict:
    """Wait until the ring holds ``packets``, or no longer grows."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        ring = status(url)["ring"]
        if ring["packets"] + ring["dropped"] >= packets or time.monotonic() > deadline:
            return ring
        time.sleep(0.05)


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


# The windows


def fill(folder: Path) -> int:
    """Write a ring of ``SECONDS`` at a constant rate; return its first second."""
    rng = random.Random(1)  # noqa: S311 - reproducible, not secret
    size = 16 + 16 + 20 + 8 + 56
    count = RING_BYTES // SECONDS // size
    rests = []
    for number in range(count):
        source = WANTED if number == count // 2 else rng.randbytes(4)
        packet = Cooked(
            payload=struct.pack(
                ">BBHHHBBH4s4sHHHH", 0x45, 0, 84, number & 0xFFFF, 0, 64, 17, 0,
                source, bytes([10, 0, 0, 1]), PORT, PORT, 64, 0,
            ) + rng.randbytes(56)
        ).sll()  # fmt: skip
        stamp = struct.pack("<III", number * (10**9 // count), len(packet), len(packet))
        rests.append(stamp + packet)
    first = int(time.time()) - SECONDS - 60
    per_segment = SEGMENT_BYTES // size
    data, number = bytearray(), 0
    for second in range(first, first + SECONDS):
        begin = struct.pack("<I", second)
        data += begin + begin.join(rests)
        while len(data) >= per_segment * size:
            number += 1
            write_segment(folder, number, data[: per_segment * size])
            del data[: per_segment * size]
    write_segment(folder, number + 1, data)
    return first


def write_segment(folder: Path, number: int, records: bytes) -> None:
    """Write one file of the ring, and what an orderly end leaves beside it."""
    begin, fraction = struct.unpack_from("<II", records)
    created = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(begin))
    path = folder / f"ddump-{number:010d}-{created}.pcap"
    path.write_bytes(pcap_header(nano=True, link_type=SLL) + records)
    # All packets have the same size, and come evenly.
    span = len(records) * SECONDS * 10**9 // RING_BYTES
    begin_ns = begin * 10**9 + fraction
    said = {
        "version": 1,
        "begin_ns": begin_ns,
        "end_ns": begin_ns + span,
        "closed": True,
    }
    path.with_suffix(".json").write_text(json.dumps(said))


def get(url: str, **parameters: str) -> tuple[float, float, int]:
    """Return seconds until the first packet's byte and until the end, and the bytes."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port)
    began = time.monotonic()
    connection.request("GET", f"/ring?{urllib.parse.urlencode(parameters)}")
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        sys.exit(answer.read().decode())
    answer.read(24)
    total = len(answer.read(1))
    first = time.monotonic() - began
    while data := answer.read(1 << 20):
        total += len(data)
    connection.close()
    return first, time.monotonic() - began, total


def seconds(command: list[str], files: list[Path]) -> float:
    """Return how long ``command`` takes for all ``files``, one after the other."""
    began = time.monotonic()
    for file in files:
        subprocess.run(
            [file if word == "FILE" else word for word in command],
            check=True,
            capture_output=True,
        )
    return time.monotonic() - began


def read_so_far(pid: int) -> int:
    return int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


@contextlib.contextmanager
def ring_worker(ring: Path):
    """Start a worker on ``ring``; yield its process and its URL."""
    command = [
        DDUMP_WORKER, "--listen", "127.0.0.1:8479", "--allow-anonymous",
        "--ring-dir", str(ring), "--ring-size", str(RING_BYTES + 4 * SEGMENT_BYTES),
        "--ring-filter", "ip proto 253",  # nothing that happens here
    ]  # fmt: skip
    with started(command, stderr=subprocess.PIPE, text=True) as process:
        await_line(process, "listening on")
        yield process, "http://127.0.0.1:8479"


def adopt(ring: Path, empty: Path) -> None:
    """Print how soon a worker records, and has looked through the ring that it found."""
    with ring_worker(empty) as (process, url):
        least = resident(process.pid)
    began = time.monotonic()
    with ring_worker(ring) as (process, url):
        while (state := status(url)["ring"])["state"] != "recording":
            time.sleep(0.01)
        recording = time.monotonic() - began
        while (state := status(url)["ring"])["adopting"]:
            time.sleep(0.02)
        adopted = time.monotonic() - began
        more = resident(process.pid) - least
    print(
        f"start with {state['packets']:,} packets in {state['segments']} segments, "
        f"{state['bytes'] / 1e9:.2f} GB: recording after {recording:.2f} s (goal 1), "
        f"adopted after {adopted:.2f} s (goal 5)"
    )
    print(
        f"  memory: {more / 2**20:.1f} MiB more than with an empty ring, "
        f"{more / state['bytes'] * 100:.2f} % of it (goal 0.5)"
    )


def windows(ring: Path, first: int) -> None:
    """Print what windows take."""
    files = sorted(ring.glob("*.pcap"))
    whole = seconds(["tcpdump", "-r", "FILE", "-w", "/dev/null"], files)
    sliced = time.monotonic()
    middle = first + SECONDS // 2
    subprocess.run(
        ["tcpslice", "-w", "/dev/null", str(middle), str(middle + 1), *files],
        check=False,
        capture_output=True,
    )
    sliced = time.monotonic() - sliced
    expression = "host " + ".".join(map(str, WANTED))
    filtered = seconds(
        ["tcpdump", "-r", "FILE", "-w", "/dev/null", *expression.split()], files
    )
    with ring_worker(ring) as (process, url):
        while status(url)["ring"]["adopting"]:
            time.sleep(0.05)
        window = {"since": str(middle), "until": str(middle + 1), "precision": "nano"}
        firsts, totals, ratios = [], [], []
        for _ in range(ROUNDS):
            before = read_so_far(process.pid)
            begin, total, size = get(url, **window)
            firsts.append(begin)
            totals.append(total)
            ratios.append((read_so_far(process.pid) - before) / size)
        pulls = [get(url, filter=expression, precision="nano") for _ in range(ROUNDS)]
    total, begin = statistics.median(totals), statistics.median(firsts)
    print(
        f"1 s of {SECONDS} s: {size / 1e6:.1f} MB in {total * 1000:.0f} ms, first packet "
        f"after {begin * 1000:.0f} ms (goal 50), read {statistics.median(ratios):.2f} "
        "times that (goal 1.5)"
    )
    print(
        f"  tcpdump -r over all segments: {whole:.2f} s, {whole / total:.0f} times as "
        f"long (goal 20); tcpslice: {sliced * 1000:.0f} ms, {sliced / total:.1f} times"
    )
    pull = statistics.median(total for _, total, _ in pulls)
    print(
        f"few packets of the whole ring ({pulls[0][2]} bytes): {pull:.2f} s; "
        f"tcpdump -r: {filtered:.2f} s; ratio {pull / filtered:.2f} (goal 0.5)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["recorder", "windows"])
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory(prefix="ddump-bench-") as name:
        folder = Path(name)
        if part != "windows":
            with network(1, prefix="bench-ring") as net:
                record(net, folder, PACED_PACKETS, PACE)
                record(net, folder, UNPACED_PACKETS, None)
        if part != "recorder":
            ring, empty = folder / "ring", folder / "empty"
            ring.mkdir()
            empty.mkdir()
            first = fill(ring)
            adopt(ring, empty)
            windows(ring, first)


if __name__ == "__main__":
    main()
