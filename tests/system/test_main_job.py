"""Three hosts, known packets, and the judgement of tcpdump, mergecap and tshark."""

from __future__ import annotations

import collections
import contextlib
import json
import re
import signal
import subprocess
import threading
import time

import pytest

from support import traffic
from support.namespaces import network
from support.oracles import oracle, payloads, read, replay_everywhere
from support.programs import DDUMP, await_streams, started, status, worker

PACKETS = 3000
RATE = 3000
SLOW_PACKETS = 6_000  # 9 MB in all, twice what the queue to the reader holds
QUIET_SECONDS = 10


@pytest.fixture(scope="module")
def hosts():
    """Three hosts, each with a worker; their network, and the workers' URLs."""
    with network(3) as net, contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(
                worker(f"{host.address}:8475", "--allow-plaintext", host=host)
            )
            for host in net.hosts
        ]
        yield net, urls


@pytest.mark.live
@pytest.mark.process
def test_three_hosts_merge_as_mergecap_does(hosts, tmp_path):
    net, urls = hosts
    output = tmp_path / "merged.pcap"
    command = net.client.command(
        DDUMP, "--precision", "nano", "-f", traffic.FILTER,
        "-c", str(3 * PACKETS), "-w", str(output), *urls,
    )  # fmt: skip
    oracles = [tmp_path / f"oracle{number}.pcap" for number in range(3)]
    with started(command, stderr=subprocess.PIPE, text=True) as ddump:
        with net.client.entered():
            await_streams(urls)
        with contextlib.ExitStack() as stack:
            for host, path in zip(net.hosts, oracles, strict=True):
                stack.enter_context(oracle(host, path, packets=PACKETS))
            replay_everywhere(net, tmp_path, packets=PACKETS, packets_per_second=RATE)
        summary = ddump.communicate(timeout=30)[1]
        assert ddump.returncode == 0, summary

    merged = tmp_path / "mergecap.pcap"
    subprocess.run(
        ["mergecap", "-F", "nsecpcap", "-w", merged, *oracles],
        check=True,
        capture_output=True,
    )
    ours, theirs = read(output), read(merged)
    assert len(ours) == 3 * PACKETS
    assert [stamp for stamp, _, _ in ours] == sorted(stamp for stamp, _, _ in ours)
    assert collections.Counter(ours) == collections.Counter(theirs)
    # Where two hosts stamped the same nanosecond either may come first.
    assert sorted(ours) == sorted(theirs)
    assert [record[0] for record in ours] == [record[0] for record in theirs]

    for reader in (
        ["tcpdump", "-nr", output],
        ["tshark", "-nr", output, "-T", "fields", "-e", "frame.number"],
    ):
        told = subprocess.run(reader, check=True, capture_output=True, text=True)
        assert len(told.stdout.splitlines()) == 3 * PACKETS


@pytest.mark.live
@pytest.mark.process
def test_into_tcpdump_through_a_pipe(hosts, tmp_path):
    net, urls = hosts
    command = net.client.command(
        DDUMP, "-f", traffic.FILTER, "-c", str(3 * PACKETS), *urls
    )
    with (
        started(command, stdout=subprocess.PIPE) as ddump,
        started(
            ["tcpdump", "-nr", "-"],
            stdin=ddump.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as tcpdump,
    ):
        with net.client.entered():
            await_streams(urls)
        replay_everywhere(net, tmp_path, packets=PACKETS, packets_per_second=RATE)
        told, complaints = tcpdump.communicate(timeout=30)
        assert ddump.wait(5) == 0
    assert "link-type LINUX_SLL" in complaints
    assert len(told.splitlines()) == 3 * PACKETS


@pytest.mark.live
@pytest.mark.process
def test_pcapng_says_which_host_saw_each_packet(hosts, tmp_path):
    net, urls = hosts
    output = tmp_path / "named.pcapng"
    labels = ("web", "db", "cache")
    command = net.client.command(
        DDUMP, "--format", "pcapng", "-f", traffic.FILTER, "-c", str(3 * PACKETS),
        "-w", str(output), *map("=".join, zip(labels, urls, strict=True)),
    )  # fmt: skip
    with started(command) as ddump:
        with net.client.entered():
            await_streams(urls)
        replay_everywhere(net, tmp_path, packets=PACKETS, packets_per_second=RATE)
        assert ddump.wait(30) == 0
    fields = subprocess.run(
        ["tshark", "-nr", output, "-T", "fields", "-e", "frame.interface_name",
         "-e", "ip.dst"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert collections.Counter(fields) == {
        f"{label}\t{host.address}": PACKETS
        for label, host in zip(labels, net.hosts, strict=True)
    }
    told = subprocess.run(["tcpdump", "-nr", output], check=True, capture_output=True)
    assert len(told.stdout.splitlines()) == 3 * PACKETS


@pytest.mark.live
@pytest.mark.process
def test_a_silent_target_holds_nobody_back_longer_than_hold(hosts):
    net, urls = hosts
    busy, silent = urls[:2]
    command = net.client.command(
        DDUMP, "--hold", "1s", f"{busy}?filter={traffic.FILTER}",
        f"{silent}?filter=udp port 7",
    )  # fmt: skip
    with started(command, stdout=subprocess.PIPE) as ddump:
        with net.client.entered():
            await_streams([busy, silent])
        header = ddump.stdout.read(24)
        assert len(header) == 24
        packet = traffic.frames(net.client, net.hosts[0], 1, seed=9)[0]
        net.client.run(
            "python3", "-c",
            "import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW);"
            "s.bind(('port1', 0)); s.send(bytes.fromhex(sys.argv[1]))",
            packet.hex(),
        )  # fmt: skip
        sent = time.monotonic()
        ddump.stdout.read(16 + 16 + len(packet) - 14)
        assert time.monotonic() - sent < 1.5


@pytest.mark.live
@pytest.mark.process
def test_a_slow_reader_gets_every_packet_as_it_was(hosts, tmp_path):
    net, urls = hosts
    command = net.client.command(
        DDUMP, "--precision", "nano", "-f", traffic.FILTER,
        "-c", str(2 * SLOW_PACKETS), *urls[:2],
    )  # fmt: skip
    sent = {}
    with started(command, stdout=subprocess.PIPE) as ddump:
        with net.client.entered():
            await_streams(urls[:2])
        senders = []
        for number, host in enumerate(net.hosts[:2], start=1):
            path = tmp_path / f"sent{number}.pcap"
            frames = traffic.frames(net.client, host, SLOW_PACKETS, seed=number)
            traffic.write_capture(path, frames)
            sent[number] = [frame[14 + 20 + 8 :] for frame in frames]
            senders.append(
                traffic.replay(
                    net.client, f"port{number}", path, packets_per_second=8000
                )
            )
        for sender in senders:
            _, complaint = sender.communicate(timeout=30)
            assert sender.returncode == 0, complaint
        # All was sent, more than pipe and queue hold, before anything is read: every
        # buffer on the way has been full.
        output = tmp_path / "slow.pcap"
        with output.open("wb") as file:
            while data := ddump.stdout.read(65536):
                file.write(data)
        assert ddump.wait(5) == 0
    records = read(output)
    assert [record[0] for record in records] == sorted(record[0] for record in records)
    for number, expected in sent.items():
        seed = number.to_bytes(2, "big")
        assert [each for each in payloads(records) if each[:2] == seed] == expected


@pytest.mark.live
@pytest.mark.process
def test_what_the_kernel_drops_is_said(hosts, tmp_path):
    net, _ = hosts
    host = net.hosts[0]
    frames = traffic.frames(net.client, host, 500, seed=1)
    path = tmp_path / "sent.pcap"
    traffic.write_capture(path, frames)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(
            worker(f"{host.address}:8476", "--allow-plaintext", "--buffer-size", "1MiB",
                   host=host)
        )  # fmt: skip
        ddump = stack.enter_context(
            started(
                net.client.command(DDUMP, "-f", traffic.FILTER, url),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        with net.client.entered():
            await_streams([url])
        # Nobody reads: pipe, queue, sockets and at last the kernel's ring are full.
        sent = 0
        while not dropped(net, url):
            assert sent < 200_000
            with traffic.replay(
                net.client, "port1", path, packets_per_second=30_000, times=20
            ) as sender:
                assert sender.wait(30) == 0
            sent += 20 * len(frames)
        tcpdump = stack.enter_context(
            started(["tcpdump", "-nlr-"], stdin=ddump.stdout, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True)
        )  # fmt: skip
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(tcpdump.stdout))
        reader.start()
        deadline = time.monotonic() + QUIET_SECONDS
        while len(lines) + dropped(net, url) < sent:
            assert time.monotonic() < deadline, (len(lines), dropped(net, url), sent)
            time.sleep(0.05)
        ddump.send_signal(signal.SIGINT)
        summary = ddump.stderr.read().decode()
        assert ddump.wait(10) == 0
        reader.join(10)
    counts = re.search(r"(\d+) packets received, (\d+) dropped by kernel", summary)
    assert counts, summary
    assert int(counts[1]) == len(lines)
    assert int(counts[2]) > 0
    assert int(counts[1]) + int(counts[2]) == sent


def dropped(net, url):
    with net.client.entered():
        return sum(stream["dropped"] for stream in status(url)["streams"])


@pytest.mark.live
@pytest.mark.process
def test_interrupted_it_writes_what_has_arrived(hosts, tmp_path):
    net, urls = hosts
    output = tmp_path / "interrupted.pcap"
    command = net.client.command(
        DDUMP, "--precision", "nano", "--hold", "1h", "-f", traffic.FILTER,
        "-w", str(output), *urls[:2],
    )  # fmt: skip
    with started(command, stderr=subprocess.PIPE, text=True) as ddump:
        with net.client.entered():
            await_streams(urls[:2])
        # Only the first is sent to, so that all of it waits for the second.
        path = tmp_path / "sent.pcap"
        sent = traffic.frames(net.client, net.hosts[0], PACKETS, seed=1)
        traffic.write_capture(path, sent)
        with traffic.replay(
            net.client, "port1", path, packets_per_second=RATE
        ) as sender:
            assert sender.wait(30) == 0
        with net.client.entered():
            await_delivered(urls[0], PACKETS)
        ddump.send_signal(signal.SIGINT)
        summary = ddump.communicate(timeout=10)[1]
        assert ddump.returncode == 0, summary
    assert payloads(read(output)) == [frame[14 + 20 + 8 :] for frame in sent]


def await_delivered(url, packets):
    """Wait until a worker's streams have sent ``packets``."""
    deadline = time.monotonic() + QUIET_SECONDS
    command = ["curl", "-s", f"{url}/api/v1/status"]
    while True:
        streams = json.loads(subprocess.check_output(command))["streams"]
        if sum(stream["packets"] for stream in streams) >= packets:
            return
        assert time.monotonic() < deadline, streams
        time.sleep(0.02)
