"""Windows out of the rings of three hosts, judged by tcpdump, editcap and mergecap."""

from __future__ import annotations

import collections
import contextlib
import json
import subprocess
import time

import pytest

from ddump_common.timespec import format_time
from support import traffic
from support.namespaces import network
from support.oracles import oracle, payloads, read, replay_everywhere
from support.programs import DDUMP, started, status, worker

PACKETS = 3000
RATE = 3000
RING = ("--ring-size", "64MB", "--segment-size", "1MB", "--ring-reserve", "1MB")
FLUSH_SECONDS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The rings' directories."""
    return [tmp_path_factory.mktemp("ring") for _ in range(3)]


@pytest.fixture(scope="module")
def hosts(folders):
    """Three hosts, each with a worker that records; their network, and the URLs."""
    with network(3) as net, contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(
                worker(
                    f"{host.address}:8475", "--allow-plaintext", *RING,
                    "--ring-dir", str(folder), host=host,
                )
            )
            for host, folder in zip(net.hosts, folders, strict=True)
        ]  # fmt: skip
        yield net, urls


@pytest.fixture(scope="module")
def recorded(hosts, tmp_path_factory):
    """Send known packets; return the oracles' files and the span of all timestamps."""
    net, _ = hosts
    folder = tmp_path_factory.mktemp("recorded")
    oracles = [folder / f"oracle{number}.pcap" for number in range(3)]
    with contextlib.ExitStack() as stack:
        for host, path in zip(net.hosts, oracles, strict=True):
            stack.enter_context(oracle(host, path, packets=PACKETS))
        replay_everywhere(net, folder, packets=PACKETS, packets_per_second=RATE)
    stamps = sorted(record[0] for path in oracles for record in read(path))
    return oracles, stamps


def pull(net, output, *arguments):
    """Run ddump in the client's namespace; return what it said."""
    done = subprocess.run(
        net.client.command(
            DDUMP, "--precision", "nano", "-f", traffic.FILTER, "-w", str(output),
            *arguments,
        ),
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def expected(oracles, folder, since_ns, until_ns):
    """Return the records that editcap and mergecap leave of the oracles."""
    cut = []
    for number, path in enumerate(oracles):
        cut.append(folder / f"cut{number}.pcap")
        subprocess.run(
            ["editcap", "-F", "nsecpcap", "-A", format_time(since_ns),
             "-B", format_time(until_ns), path, cut[-1]],
            check=True, capture_output=True,
        )  # fmt: skip
    merged = folder / "merged.pcap"
    subprocess.run(
        ["mergecap", "-F", "nsecpcap", "-w", merged, *cut],
        check=True,
        capture_output=True,
    )
    return read(merged)


@pytest.mark.live
@pytest.mark.process
@pytest.mark.parametrize(("first", "last"), [(0.25, 0.75), (0.5, 0.501), (0.0, 0.5)])
def test_a_window_of_three_hosts_is_what_three_tcpdumps_recorded(
    hosts, recorded, tmp_path, first, last
):
    net, urls = hosts
    oracles, stamps = recorded
    # Moments at which a packet was stamped: the first is in the window, the last is not.
    since_ns = stamps[int(first * len(stamps))]
    until_ns = stamps[int(last * len(stamps))]
    output = tmp_path / "window.pcap"
    said = pull(
        net, output, "--since", format_time(since_ns), "--until", format_time(until_ns),
        *urls,
    )  # fmt: skip
    ours, theirs = read(output), expected(oracles, tmp_path, since_ns, until_ns)
    assert len(theirs) > 0
    assert [record[0] for record in ours] == [record[0] for record in theirs]
    assert collections.Counter(ours) == collections.Counter(theirs)
    assert f"all: {len(ours)} packets received, 0 late" in said


@pytest.mark.live
@pytest.mark.process
def test_the_last_minutes_end_now(hosts, recorded, tmp_path):
    """What was sent a moment ago is in the window: the worker waits for its recorder."""
    net, urls = hosts
    path = tmp_path / "sent.pcap"
    sent = traffic.frames(net.client, net.hosts[0], 100, seed=77)
    traffic.write_capture(path, sent)
    with traffic.replay(net.client, "port1", path, packets_per_second=10_000) as sender:
        assert sender.wait(30) == 0
    output = tmp_path / "last.pcap"
    # The window begins with the fixtures' packets: what was before is a gap, and said.
    pull(net, output, "--since", format_time(recorded[1][0]), urls[0])
    mine = [each for each in payloads(read(output)) if each[:2] == b"\0\x4d"]
    assert mine == [frame[14 + 20 + 8 :] for frame in sent]


@pytest.mark.live
@pytest.mark.process
def test_following_goes_on_from_the_window_without_a_gap(hosts, recorded, tmp_path):
    net, urls = hosts
    oracles, stamps = recorded
    middle = stamps[len(stamps) // 2]
    output = tmp_path / "followed.pcap"
    path = tmp_path / "more.pcap"
    sent = traffic.frames(net.client, net.hosts[0], PACKETS, seed=78)
    traffic.write_capture(path, sent)
    before = [record for record in read(oracles[0]) if record[0] >= middle]
    command = net.client.command(
        DDUMP, "--precision", "nano", "-f",
        f"{traffic.FILTER} and dst host {net.hosts[0].address}",
        "--since", format_time(middle), "--follow", "-w", str(output), urls[0],
    )  # fmt: skip
    with started(command, stderr=subprocess.PIPE, text=True) as ddump:
        with traffic.replay(
            net.client, "port1", path, packets_per_second=RATE
        ) as sender:
            assert sender.wait(30) == 0
        await_payloads(output, sent[-1][14 + 20 + 8 :])
        ddump.terminate()
        said = ddump.communicate(timeout=10)[1]
        assert ddump.returncode == 0, said
    records = read(output)
    mine = [each for each in payloads(records) if each[:2] == b"\0\x4e"]
    assert mine == [frame[14 + 20 + 8 :] for frame in sent]
    # Packets of other tests may lie between the two.
    assert [record for record in records if record in set(before)] == sorted(before)
    assert len(set(records)) == len(records)


def await_payloads(path, payload):
    """Wait until a growing capture ends with ``payload``."""
    deadline = time.monotonic() + FLUSH_SECONDS + PACKETS / RATE
    while not path.exists() or not path.read_bytes().endswith(payload):
        assert time.monotonic() < deadline, payloads(read(path))[-1:]
        time.sleep(0.05)


@pytest.mark.live
@pytest.mark.process
def test_segments_of_three_hosts_are_listed(hosts, recorded):
    net, urls = hosts
    told = subprocess.run(
        net.client.command(DDUMP, "segments", "--json", *urls),
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    lines = [json.loads(line) for line in told.splitlines()]
    assert len(lines) >= 3
    table = subprocess.run(
        net.client.command(DDUMP, "segments", *urls),
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for host in net.hosts:
        assert host.address in table


@pytest.mark.live
@pytest.mark.process
def test_tcpdump_reads_the_files_at_any_moment(hosts, folders, tmp_path):
    net, urls = hosts
    path = tmp_path / "sent.pcap"
    traffic.write_capture(
        path, traffic.frames(net.client, net.hosts[0], PACKETS, seed=79)
    )
    counts = [in_files(folders[0])]
    with traffic.replay(net.client, "port1", path, packets_per_second=RATE) as sender:
        while sender.poll() is None:
            counts.append(in_files(folders[0]))
        assert sender.returncode == 0
    deadline = time.monotonic() + FLUSH_SECONDS
    while counts[-1] < counts[0] + PACKETS:
        assert time.monotonic() < deadline, counts
        counts.append(in_files(folders[0]))
    assert counts == sorted(counts)
    assert len(set(counts)) > 2  # some of them while the files grew
    with net.client.entered():
        # Stray packets may come between the two looks.
        while in_files(folders[0]) != status(urls[0])["ring"]["packets"]:
            assert time.monotonic() < deadline


def in_files(folder):
    """Return how many packets tcpdump finds in the segments of a ring."""
    total = 0
    *closed, growing = sorted(folder.glob("*.pcap"))
    for path in [*closed, growing]:
        done = subprocess.run(
            ["tcpdump", "-nr", path], check=False, capture_output=True, text=True
        )
        # What is being written may be read in the middle of a record.
        assert done.returncode == 0 or (
            path == growing and "truncated dump file" in done.stderr
        ), done.stderr
        total += len(done.stdout.splitlines())
    return total
