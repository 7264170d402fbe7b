"""The recorder on real packets, beside tcpdump and under the clocks of this host."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ddump_common.api import Link
from ddump_common.units import MILLISECONDS
from ddump_worker import _pcap
from ddump_worker.program import cook
from ddump_worker.recorder import RECORDING, Recorder
from ddump_worker.ring import Ring, RingOptions
from ddump_worker.share import Share
from support import traffic
from support.loopback import payloads, talker, tcpdump
from support.namespaces import network
from support.oracles import oracle, read
from support.programs import DDUMP_WORKER, started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.oracles import Record

pytestmark = pytest.mark.live

MB = 1_000_000
PACKETS = 6_000
PATIENCE = 10
KILLS = 3


def capture(link: Link, expression: str, *, timeout_ms: int = 50) -> _pcap.Capture:
    """Open a capture of this thread's namespace, without loopback's copies."""
    opened = _pcap.Capture(
        "any",
        link_type=link.link_type,
        nano=True,
        buffer_size=8 << 20,
        timeout_ms=timeout_ms,
    )
    joined = f"({expression}) and not (ifindex 1 and outbound)"
    options = {"link_type": link.link_type, "snaplen": 262144}
    opened.set_program(cook(_pcap.compile_filter(joined, **options), **options))
    return opened


@contextlib.contextmanager
def recording(path, source, **given):
    """Record ``source`` for the time of the body; yield the ring and its recorder."""
    ring = Ring(
        RingOptions(
            **{
                "directory": path,
                "size": 100 * MB,
                "segment_size": MB,
                "reserve": Share(),
            }
            | given
        )
    )
    recorder = Recorder(ring, source)
    try:
        recorder.start()
        yield ring, recorder
    finally:
        recorder.stop()
        ring.close()


def await_packets(ring: Ring, count: int) -> None:
    """Wait until ``count`` packets are in the ring."""
    arrived = threading.Event()

    def look() -> None:
        if ring.info().packets >= count:
            arrived.set()

    end = ring.watch(look)
    look()
    assert arrived.wait(PATIENCE), ring.info()
    end()


def send(net, path, *, packets_per_second: int) -> None:
    """Replay the capture ``path`` to the one host."""
    sender = traffic.replay(
        net.client, "port1", path, packets_per_second=packets_per_second
    )
    _, complaint = sender.communicate(timeout=30)
    assert sender.returncode == 0, complaint


def recorded(segments) -> Counter[Record]:
    return Counter(record for each in segments for record in read(each.path))


@pytest.mark.parametrize("link", [Link.SLL, Link.SLL2])
def test_it_records_what_tcpdump_records(tmp_path, link):
    sent, seen = tmp_path / "sent.pcap", tmp_path / "oracle.pcap"
    with network(1, prefix="ddump-recorder") as net:
        (host,) = net.hosts
        with host.entered():
            source = capture(link, traffic.FILTER)
        traffic.write_capture(sent, traffic.frames(net.client, host, PACKETS, seed=1))
        with (
            recording(tmp_path / "ring", source, link=link) as (ring, recorder),
            oracle(host, seen, packets=PACKETS, link=link.link_type.name),
        ):
            send(net, sent, packets_per_second=20_000)
            await_packets(ring, PACKETS)
            recorder.stop()
    assert len(ring.segments()) > 2
    assert recorded(ring.segments()) == Counter(read(seen))
    assert ring.info().dropped == 0


def test_a_packet_is_in_the_file_within_300_ms():
    with talker() as talking, tempfile.TemporaryDirectory() as folder:
        source = capture(Link.SLL, talking.filter)
        with recording(Path(folder, "ring"), source) as (ring, recorder):
            for count in range(1, 11):
                began_ns = time.monotonic_ns()
                (payload,) = talking.send()
                await_packets(ring, count)
                took_ms = (time.monotonic_ns() - began_ns) / MILLISECONDS
                assert took_ms < 300
                (segment,) = ring.segments()
                # Also for another program, while the file grows.
                assert payload == payloads(segment.path.read_bytes())[-1]
            assert len(tcpdump(segment.path.read_bytes())) == 10
            assert recorder.failure is None


def test_what_a_block_hides_that_is_closed_late_is_not_promised(tmp_path):
    with talker() as talking:
        source = capture(Link.SLL, talking.filter, timeout_ms=600)
        with recording(tmp_path / "ring", source) as (ring, recorder):
            promised = []
            for count in range(1, 4):
                talking.send()
                sent_ns = time.time_ns()
                known = threading.Event()

                def look(count=count, sent_ns=sent_ns, known=known) -> None:
                    # On the recorder's thread, which has nothing in between.
                    if ring.flushed_ns > sent_ns:
                        promised.append(ring.info().packets >= count)
                        known.set()

                end = ring.watch(look)
                assert known.wait(PATIENCE)
                end()
            assert all(promised)
            assert recorder.failure is None


def test_a_quiet_host_wakes_it_no_more_than_it_must(tmp_path):
    with network(1, prefix="ddump-quiet") as net:
        (host,) = net.hosts
        with host.entered():
            source = capture(Link.SLL, traffic.FILTER)
        wakes = 0

        def count() -> None:
            nonlocal wakes
            wakes += 1

        with recording(tmp_path / "ring", source) as (ring, _):
            began = time.monotonic()
            end = ring.watch(count)
            flushed_ns = time.time_ns() + 1_000 * MILLISECONDS
            while ring.flushed_ns < flushed_ns:
                time.sleep(0.02)
            end()
            assert wakes <= (time.monotonic() - began) * 12


def test_an_interface_that_vanishes_is_no_error(tmp_path):
    with network(1, prefix="ddump-vanish") as net:
        (host,) = net.hosts
        with host.entered():
            source = capture(Link.SLL2, f"icmp or {traffic.FILTER}")
        with recording(tmp_path / "ring", source, link=Link.SLL2) as (ring, recorder):
            host.run("ping", "-c", "1", "-W", "2", net.client.address)
            await_packets(ring, 2)
            host.run("ip", "link", "delete", "eth0")
            host.run("ping", "-c", "1", "-W", "2", "127.0.0.1")
            await_packets(ring, 4)
            assert recorder.failure is None
            assert ring.info().state == RECORDING
            (segment,) = ring.segments()
        assert segment.interfaces[1] == {"lo"}
        assert any("eth0" in names for names in segment.interfaces.values())


def test_what_is_covered_after_kills_is_there(tmp_path):
    sent, seen = tmp_path / "sent.pcap", tmp_path / "oracle.pcap"
    directory = tmp_path / "ring"
    command = [
        DDUMP_WORKER, "--listen", "127.0.0.1:8475", "--allow-anonymous",
        "--ring-dir", str(directory), "--ring-size", "100MB", "--segment-size", "4MB",
        "--ring-reserve", "0", "--ring-filter", traffic.FILTER,
    ]  # fmt: skip
    with network(1, prefix="ddump-killed") as net:
        (host,) = net.hosts
        traffic.write_capture(sent, traffic.frames(net.client, host, PACKETS, seed=2))

        @contextlib.contextmanager
        def life() -> Iterator[subprocess.Popen]:
            options = {"stderr": subprocess.PIPE, "text": True}
            with started(host.command(*command), **options) as process:
                said = iter(process.stderr.readline, "")
                assert any("listening on" in line for line in said)
                yield process

        with contextlib.ExitStack() as stack:
            process = stack.enter_context(life())
            with oracle(host, seen, packets=PACKETS):
                sender = traffic.replay(
                    net.client, "port1", sent, packets_per_second=1_000
                )
                for _ in range(KILLS):
                    time.sleep(0.3)  # so long it records, under load
                    process.kill()
                    process = stack.enter_context(life())
                sender.communicate(timeout=30)
    ring = Ring(RingOptions(directory=directory, reserve=Share()))
    try:
        ring.adopt(threading.Event())
        found = recorded(ring.segments())
        expected = Counter(read(seen))
        assert found <= expected
        assert len(ring.coverage()) == KILLS + 1
        for stretch in ring.coverage():
            assert {
                record
                for record in expected
                if stretch.begin_ns <= record[0] < stretch.end_ns
            } <= found.keys()
        missing = expected - found
        # Each time a second or so, until the next one records.
        assert 0 < missing.total() < PACKETS
    finally:
        ring.close()
