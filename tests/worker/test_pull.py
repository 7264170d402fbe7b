"""One pull: slices of real segments, and what follows them, to a client that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddump_common.api import Link, RingQuery
from ddump_common.errors import CaptureError
from ddump_common.note import EndReason
from ddump_common.pcap import Precision
from ddump_worker import _pcap, pull
from ddump_worker.heartbeat import Heartbeat, Tally
from ddump_worker.preamble import pcapng_preamble
from ddump_worker.pull import Bounds, Pull
from ddump_worker.share import Share
from support.captures import Record, parse_records
from support.pcapng_streams import PcapngStream
from support.rings import MB, SECOND, RingWriter
from support.workers import wait_until

FOREVER = (1 << 63) - 1
MS = SECOND // 1000


@pytest.fixture
def make_ring(tmp_path):
    """Return a function that makes the test's ring."""
    with contextlib.ExitStack() as stack:

        async def make(**given) -> RingWriter:
            writer = await asyncio.to_thread(RingWriter, tmp_path, **given)
            stack.callback(writer.close)
            return writer

        yield make


@pytest.fixture
async def writer(make_ring):
    return await make_ring()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def open_pull(executor):
    """Return a function that opens a pull, which is woken as the ring wakes it."""
    with contextlib.ExitStack() as stack:

        def open_(
            writer,
            *,
            since_ns=0,
            until_ns=FOREVER,
            program=b"",
            pcapng=False,
            **query,
        ):
            pulled = Pull(
                RingQuery(**{"precision": Precision.NANO} | query),
                ring=writer.ring,
                bounds=Bounds(since_ns, until_ns),
                program=program,
                pcapng=pcapng,
                executor=executor,
                on_close=lambda _: None,
            )
            loop = asyncio.get_running_loop()
            stack.callback(pulled.close)
            stack.callback(
                writer.ring.watch(lambda: loop.call_soon_threadsafe(pulled.notice))
            )
            return pulled

        yield open_


class Client:
    """Takes what is sent, and may stall."""

    def __init__(self) -> None:
        self.data = b""
        self.takes = asyncio.Event()
        self.takes.set()
        self.grown = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self.data += data
        self.grown.set()
        await self.takes.wait()

    def records(self, *, nano=True) -> list[Record]:
        return parse_records(self.data, nano=nano)

    async def has(self, count: int) -> list[Record]:
        """Wait until it has so many records, and return them."""
        async with asyncio.timeout(5):
            while len(self.records()) < count:
                self.grown.clear()
                await self.grown.wait()
        assert len(self.records()) == count
        return self.records()


async def pulled(opened, **options) -> list[Record]:
    client = Client()
    async with asyncio.timeout(10):
        await opened.deliver(client.send, **options)
    return client.records()


def in_order(records, since_ns=0, until_ns=FOREVER) -> list[Record]:
    chosen = [each for each in records if since_ns <= each.timestamp_ns < until_ns]
    return sorted(chosen, key=lambda each: each.timestamp_ns)


def compiled(expression: str, link_type: int = 113) -> bytes:
    return _pcap.compile_filter(expression, link_type=link_type, snaplen=262144)


class TestWindow:
    async def test_it_has_what_is_in_its_bounds_in_time_order(self, writer, open_pull):
        now = writer.now_ns
        records = await writer.write(now, now + 5 * MS, now + 2 * MS, now + 5 * MS)
        await writer.rotate()
        records += await writer.write(now + 1 * MS, now + 9 * MS, now - 40 * SECOND)
        for since, until in (
            (0, FOREVER),
            (now + MS, now + 5 * MS),
            (now + 9 * MS, FOREVER),
        ):
            opened = open_pull(writer, since_ns=since, until_ns=until)
            assert await pulled(opened) == in_order(records, since, until)
            assert opened.packets == len(in_order(records, since, until))
            assert opened.skipped == opened.granted == opened.undelivered == 0
            opened.refresh()

    async def test_it_is_cut_into_slices(self, writer, open_pull):
        records = await writer.fill(3)
        opened = open_pull(writer)
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            async with asyncio.timeout(5):
                await client.grown.wait()
            # One is under way, and nothing more is read before it is taken.
            await asyncio.sleep(0.05)
            size = len(client.data)
            assert size <= pull.SLICE_BYTES + 130_000
            assert opened.position_ns is None
            client.takes.set()
        assert delivery.result() == "complete"
        assert client.records() == records

    async def test_what_is_recorded_after_it_began_is_not_in_it(
        self, writer, open_pull
    ):
        records = await writer.write()
        opened = open_pull(writer)
        await writer.write()
        assert await pulled(opened) == records

    async def test_packets_and_bytes_end_it(self, writer, open_pull):
        records = await writer.write(*range(writer.now_ns, writer.now_ns + 10))
        size = len(records[0].data)
        for limit, count, reason in (
            ({"packets": 3}, 3, "packets"),
            ({"bytes": size * 4}, 4, "bytes"),
        ):
            opened = open_pull(writer, **limit)
            client = Client()
            assert await opened.deliver(client.send) == reason
            assert client.records() == records[:count]
            assert opened.data_bytes == size * count

    async def test_the_filter_runs_on_what_is_stored(self, writer, open_pull):
        now = writer.now_ns
        await writer.write(now, port=9)
        wanted = await writer.write(now + 1, port=7)
        opened = open_pull(writer, program=compiled("udp dst port 7"), link=Link.SLL2)
        (record,) = await pulled(opened)
        assert record.data[20:] == wanted[0].data[16:]
        assert record.data[:2] == b"\x08\x00"

    async def test_snaplen_and_precision(self, writer, open_pull):
        (record,) = await writer.write(writer.now_ns + 1999)
        opened = open_pull(writer, snaplen=20, precision=Precision.MICRO)
        client = Client()
        await opened.deliver(client.send)
        assert client.records(nano=False) == [
            Record(
                writer.now_ns // SECOND * SECOND + 1000, record.data[:20], record.length
            )
        ]

    async def test_stored_interfaces(self, make_ring, open_pull):
        writer = await make_ring(link=Link.SLL2)
        now = writer.now_ns
        await writer.write(now, ifindex=2)
        wanted = await writer.write(now + 1, ifindex=3)
        opened = open_pull(writer, program=compiled("ifindex 3", 276), link=Link.SLL2)
        assert await pulled(opened) == wanted

    async def test_the_kernel_s_drops_are_those_of_the_segments_it_reads(
        self, writer, open_pull
    ):
        await writer.write()
        await writer.drop(5)
        await writer.rotate()
        begin = writer.now_ns
        await writer.write()
        await writer.drop(7)
        for bounds, dropped in (({"since_ns": begin}, 7), ({}, 12)):
            opened = open_pull(writer, **bounds)
            await pulled(opened)
            assert opened.dropped == dropped

    async def test_drops_are_told_as_far_as_all_is_promised(self, writer, open_pull):
        """So who asks for the rest from there on is told of the rest."""
        for count in (5, 7, 9):
            await writer.fill(2)
            await writer.drop(count)
        await writer.write()
        opened = open_pull(writer)
        told = {}

        class Often(Heartbeat):
            def block(self, now):
                told[self.promised_ns] = opened.dropped
                return b""

        often = Often(started_ns=0, promised_ns=0, tally=lambda: None)
        await opened.deliver(Client().send, heartbeat=often)
        for promised_ns, dropped in told.items():
            rest = open_pull(writer, since_ns=promised_ns)
            await pulled(rest)
            assert dropped + rest.dropped == opened.dropped == 21
        assert len(set(told.values())) > 2

    async def test_duration_ends_it_before_its_end(self, writer, open_pull):
        await writer.fill(3)
        opened = open_pull(writer, duration_ns=50 * MS)
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            await wait_until(lambda: opened._reason is not None)
            client.takes.set()
        assert delivery.result() == "duration"
        assert 0 < opened.packets < 24

    async def test_a_worker_that_ends_lets_it_end(self, writer, open_pull):
        records = await writer.fill(3)
        opened = open_pull(writer)
        opened.stop()
        client = Client()
        assert await opened.deliver(client.send) == "complete"
        assert client.records() == records

    async def test_closing_twice_is_harmless(self, writer, open_pull):
        opened = open_pull(writer)
        opened.close()
        opened.close()
        opened.stop()
        opened.notice()


class TestPins:
    async def test_what_is_evicted_is_read_to_its_end(self, make_ring, open_pull):
        writer = await make_ring(pinned=Share(size=100 * MB))
        records = await writer.fill(5)
        opened = open_pull(writer)
        await writer.fill(9)
        assert min(each.number for each in writer.ring.segments()) > 5
        assert await pulled(opened) == records
        assert opened.skipped == 0

    async def test_what_may_not_stay_is_skipped_and_counted(self, make_ring, open_pull):
        writer = await make_ring(pinned=Share())
        records = await writer.fill(5)
        opened = open_pull(writer)
        await writer.fill(6)
        first = min(each.number for each in writer.ring.segments())
        gone = 8 * (first - 1)
        assert 0 < gone < 40
        assert await pulled(opened) == records[gone:]
        assert opened.skipped == gone

    async def test_segments_are_let_go_as_they_are_passed(self, make_ring, open_pull):
        writer = await make_ring(pinned=Share(size=100 * MB))
        records = await writer.fill(6)
        opened = open_pull(writer)
        await writer.fill(14)
        before = writer.ring.info().pinned_bytes
        assert before >= 5 * MB
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(opened.deliver(client.send))
            for _ in range(6):
                async with asyncio.timeout(5):
                    await client.grown.wait()
                client.grown.clear()
                client.takes.set()
                await asyncio.sleep(0)
                client.takes.clear()
            await wait_until(lambda: writer.ring.info().pinned_bytes < before)
            client.takes.set()
        assert client.records() == records
        await wait_until(lambda: writer.ring.info().pinned_bytes == 0)

    async def test_a_client_that_leaves_pins_nothing(self, make_ring, open_pull):
        writer = await make_ring(pinned=Share(size=100 * MB))
        await writer.fill(5)
        opened = open_pull(writer, follow=True)
        await writer.fill(9)
        assert writer.ring.info().pinned_bytes > 5 * MB
        opened.close()
        await wait_until(lambda: writer.ring.info().pinned_bytes == 0)


class Listener:
    """Takes a pcapng stream, as the service makes it; ``takes`` is whether it does."""

    def __init__(self, opened) -> None:
        self.stream = PcapngStream()
        self.stream.receive_data(pcapng_preamble(RingQuery(), filter_run=""))
        self.takes = asyncio.Event()
        self.takes.set()
        self._pull = opened
        self.heartbeat = Heartbeat(
            started_ns=opened.started_ns, promised_ns=opened.promised_ns,
            tally=self.tally,
        )  # fmt: skip
        self.stream.receive_data(
            self.heartbeat.block(asyncio.get_running_loop().time())
        )

    def tally(self) -> Tally:
        return Tally(
            received=self._pull.received,
            interface_dropped=None,
            dropped=self._pull.dropped,
            delivered=self._pull.packets,
            skipped=self._pull.skipped,
            counted_ns=0,
        )

    async def send(self, data: bytes) -> None:
        self.stream.receive_data(data)
        await self.takes.wait()

    async def deliver(self) -> None:
        reason = await self._pull.deliver(self.send, heartbeat=self.heartbeat)
        self.stream.receive_data(self.heartbeat.last_block(reason, ended_ns=1))

    async def next_block(self) -> int:
        """Wait for one more block; return what it promises."""
        count = len(self.stream.beats)
        await wait_until(lambda: len(self.stream.beats) > count)
        return self.stream.promised_ns


class TestHeartbeats:
    async def test_a_window_promises_as_far_as_it_is_scanned(self, writer, open_pull):
        records = await writer.fill(3)
        since, until = records[2].timestamp_ns, records[-2].timestamp_ns
        opened = open_pull(writer, since_ns=since, until_ns=until, pcapng=True)
        listener = Listener(opened)
        assert listener.stream.promised_ns == since
        # With each slice, however fast slices come and however long the host is up.
        listener.heartbeat.due = -math.inf
        block = listener.heartbeat.block
        listener.heartbeat.block = lambda _: block(-math.inf)
        await listener.deliver()
        stream = listener.stream
        assert stream.records == in_order(records, since, until)
        assert len(stream.beats) > 4
        assert any(since < beat.time_ns < until for beat in stream.beats)
        assert stream.promised_ns == until  # never beyond the window
        assert stream.last.note.ended is EndReason.COMPLETE

    async def test_they_come_while_a_slice_has_to_wait(
        self, writer, open_pull, executor
    ):
        records = await writer.fill(1)
        listener = Listener(open_pull(writer, pcapng=True))
        gate = threading.Event()
        busy = [executor.submit(gate.wait) for _ in range(2)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.deliver())
            for _ in range(2):
                assert await listener.next_block() == 0
            gate.set()
        assert listener.stream.records == records
        assert all(each.result() for each in busy)

    async def test_a_client_that_leaves_while_a_slice_has_to_wait(
        self, writer, open_pull, executor
    ):
        await writer.fill(1)
        listener = Listener(open_pull(writer, pcapng=True))
        gate = threading.Event()
        busy = [executor.submit(gate.wait) for _ in range(2)]
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(listener.deliver())
            await listener.next_block()
            task.cancel()
        gate.set()
        assert listener.stream.packets == 0
        assert all(each.result() for each in busy)

    async def test_a_follower_promises_what_is_flushed_and_sent(
        self, writer, open_pull
    ):
        records = await writer.write()
        listener = Listener(open_pull(writer, follow=True, pcapng=True))
        stream = listener.stream
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(listener.deliver())
            await wait_until(lambda: stream.promised_ns == writer.ring.flushed_ns)
            # The recorder is behind: what it has not flushed is not promised.
            records += await writer.write(writer.now_ns + SECOND, flush=False)
            await wait_until(lambda: stream.packets == 3)
            before = stream.promised_ns
            assert await listener.next_block() == before
            await writer.flush(writer.now_ns + 3 * SECOND)
            assert await listener.next_block() == writer.ring.flushed_ns
            # Nothing came, and it is flushed all the same.
            await writer.flush(writer.now_ns + SECOND)
            assert await listener.next_block() == writer.ring.flushed_ns
            # The client takes nothing: no promise of what it has not got.
            listener.takes.clear()
            promised_ns = stream.promised_ns
            records += await writer.write()
            await wait_until(lambda: stream.packets == 5)
            records += await writer.write()
            await asyncio.sleep(0.6)
            assert stream.promised_ns == promised_ns
            listener.takes.set()
            await wait_until(lambda: stream.promised_ns == writer.ring.flushed_ns)
            task.cancel()
        assert stream.records == records

    async def test_what_is_skipped_is_said(self, writer, open_pull):
        await writer.fill(3)
        opened = open_pull(writer, pcapng=True)
        os.truncate(writer.ring.segments()[0].path, 0)
        listener = Listener(opened)
        await listener.deliver()
        note = listener.stream.last.note
        assert (note.ended, note.skipped) == (EndReason.COMPLETE, 8)


class TestDamage:
    """A segment whose file is damaged costs its own packets, and no others."""

    @staticmethod
    def served(records, opened, found) -> None:
        """Check that what is missing is counted, and is of one segment of 8."""
        assert found == [each for each in records if each in found]
        assert len(found) + opened.skipped == len(records)
        assert 0 < opened.skipped <= 8

    @staticmethod
    def overwrite(segment) -> None:
        """Change the first record of its file."""
        with segment.path.open("r+b") as file:
            file.seek(24)
            file.write(b"\xff" * 1000)

    async def test_one_that_was_cut(self, writer, open_pull):
        records = await writer.fill(4)
        segment = writer.ring.segments()[1]
        opened = open_pull(writer)
        os.truncate(segment.path, 500_000)
        found = await pulled(opened)
        self.served(records, opened, found)
        assert set(records[:8] + records[16:]) <= set(found)

    async def test_one_that_was_overwritten_is_skipped_from_there_on(
        self, writer, open_pull
    ):
        records = await writer.fill(4)
        opened = open_pull(writer)
        self.overwrite(writer.ring.segments()[2])
        found = await pulled(opened)
        self.served(records, opened, found)
        assert found == records[:16] + records[24:]

    async def test_several_of_them(self, writer, open_pull):
        records = await writer.fill(5)
        opened = open_pull(writer)
        for number in (0, 2, 4):
            os.truncate(writer.ring.segments()[number].path, 0)
        assert await pulled(opened) == records[8:16] + records[24:32]
        assert opened.skipped == 24

    async def test_one_that_cannot_be_opened(self, writer, open_pull):
        records = await writer.fill(3)
        segment = writer.ring.segments()[1]
        opened = open_pull(writer)
        segment.path.rename(segment.path.with_suffix(".away"))
        segment.path.mkdir()
        try:
            assert await pulled(opened) == records[:8] + records[16:]
            assert opened.skipped == 8
        finally:
            segment.path.rmdir()

    async def test_one_that_the_disk_does_not_give(
        self, writer, open_pull, monkeypatch
    ):
        records = await writer.fill(3)
        segment = writer.ring.segments()[1]
        opened = open_pull(writer)
        open_ = os.open

        def fail(path, *given, **options):
            if path == segment.path:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return open_(path, *given, **options)

        monkeypatch.setattr(os, "open", fail)
        assert await pulled(opened) == records[:8] + records[16:]
        assert opened.skipped == 8
        assert segment not in writer.ring.segments()

    async def test_one_that_is_missing(self, writer, open_pull):
        records = await writer.fill(3)
        opened = open_pull(writer)
        writer.ring.segments()[1].path.unlink()
        assert await pulled(opened) == records[:8] + records[16:]
        assert opened.skipped == 8

    async def test_it_is_named_once_whoever_meets_it(self, writer, open_pull, caplog):
        await writer.fill(3)
        segment = writer.ring.segments()[1]
        both = [open_pull(writer), open_pull(writer, follow=True)]
        self.overwrite(segment)
        await pulled(both[0])
        both[1].stop()
        await pulled(both[1])
        assert both[0].skipped == both[1].skipped == 8
        (line,) = [each for each in caplog.messages if segment.name in each]
        assert "at byte 24: no whole record is there" in line
        assert await pulled(open_pull(writer))

    async def test_one_that_is_followed(self, writer, open_pull):
        opened = open_pull(writer, follow=True)
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            records = await writer.write()
            await client.has(2)
            records += await writer.fill(3)
            self.overwrite(writer.ring.segments()[1])
            client.takes.set()
            await wait_until(lambda: opened.packets + opened.skipped == len(records))
            records += await writer.write()
            await wait_until(lambda: opened.packets + opened.skipped == len(records))
            opened.stop()
        assert delivery.result() == "shutdown"
        self.served(records, opened, client.records())
        await wait_until(lambda: len(opened._held) == 1)

    async def test_a_worker_that_is_short_of_files_blames_no_segment(
        self, writer, open_pull, monkeypatch
    ):
        records = await writer.fill(2)
        opened = open_pull(writer)

        def fail(*_):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", fail)
            with pytest.raises(CaptureError, match=r"cannot open ddump-.*: Too many"):
                await pulled(opened)
        opened.close()
        await wait_until(lambda: not writer.ring._pins)
        assert await pulled(open_pull(writer)) == records


class TestFollow:
    @contextlib.asynccontextmanager
    async def following(self, opened, client, **options):
        """Deliver while the body runs; then stop, and wait for the end."""
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send, **options))
            yield delivery
            opened.stop()

    async def test_window_and_what_comes_after_are_one(self, writer, open_pull):
        records = await writer.fill(2)
        opened = open_pull(writer, follow=True)
        client = Client()
        # Recorded after it began, before it is read.
        records += await writer.write()
        async with self.following(opened, client) as delivery:
            assert await client.has(len(records)) == records
            for _ in range(3):
                records += await writer.fill(1)
                records += await writer.write()
                assert await client.has(len(records)) == records
        assert delivery.result() == "shutdown"
        assert opened.position_ns == writer.ring.flushed_ns
        assert client.records() == records

    async def test_its_position_tells_whether_it_has_caught_up(self, writer, open_pull):
        await writer.write()
        begun_ns = writer.now_ns
        opened = open_pull(writer, follow=True)
        client = Client()
        client.takes.clear()
        async with self.following(opened, client):
            await client.has(2)
            records = await writer.fill(1)
            assert opened.position_ns is None
            client.takes.set()
            await client.has(2 + len(records))
            await wait_until(lambda: opened.position_ns == writer.now_ns)
            client.takes.clear()
            # What it is sending it has not sent.
            await writer.write()
            await client.has(4 + len(records))
            assert begun_ns < opened.position_ns < writer.now_ns
            await writer.flush(writer.now_ns + SECOND)
            assert opened.position_ns < writer.now_ns - SECOND
            client.takes.set()
            await wait_until(lambda: opened.position_ns == writer.now_ns)

    async def test_later_packets_come_in_order_of_arrival(self, writer, open_pull):
        opened = open_pull(writer, follow=True)
        client = Client()
        async with self.following(opened, client):
            now = writer.now_ns
            records = await writer.write(now + 9, now + 3)
            records += await writer.write(now + 1)
            assert await client.has(3) == records

    async def test_bounds_and_filter_hold_for_them_as_well(self, writer, open_pull):
        now = writer.now_ns
        opened = open_pull(
            writer, since_ns=now, until_ns=now + SECOND, follow=True,
            program=compiled("udp dst port 7"),
        )  # fmt: skip
        client = Client()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            await writer.write(now - 1, now, port=8, flush=False)
            await writer.write(now - 1, port=7, flush=False)
            wanted = await writer.write(now + SECOND - 1, port=7, flush=False)
            await writer.write(now + SECOND, port=7, flush=False)
            await client.has(1)
            assert not delivery.done()
            await writer.flush(now + SECOND)
        assert delivery.result() == "complete"
        assert client.records() == wanted

    async def test_it_ends_with_its_until_though_more_is_there(self, writer, open_pull):
        """It reads up to where the end was recorded, however much has come since."""
        now = writer.now_ns
        opened = open_pull(writer, until_ns=now + 10 * MS, follow=True)
        records = await writer.write(now, now + 9 * MS, now + 10 * MS)
        await writer.fill(2)
        assert await pulled(opened) == records[:2]

    async def test_limits_end_it(self, writer, open_pull):
        records = await writer.write()
        for limit, reason in (
            ({"packets": 3}, "packets"),
            ({"bytes": 3 * len(records[0].data)}, "bytes"),
        ):
            opened = open_pull(writer, follow=True, **limit)
            client = Client()
            async with asyncio.TaskGroup() as tasks:
                delivery = tasks.create_task(opened.deliver(client.send))
                await client.has(len(records))
                await writer.write()
            assert delivery.result() == reason
            assert len(client.records()) == 3
            records = in_order([*records, *client.records()[2:]])

    async def test_idle_ends_it(self, writer, open_pull, monkeypatch):
        monkeypatch.setattr(pull, "_GRACE_SECONDS", 0.01)
        records = await writer.write()
        opened = open_pull(writer, follow=True, idle_ns=30 * MS)
        client = Client()
        assert await opened.deliver(client.send) == "idle"
        assert client.records() == records

    async def test_duration_ends_it_with_what_came_until_then(self, writer, open_pull):
        writer.now_ns += 1000 * SECOND  # its clock is ahead of ours: all is flushed
        await writer.flush()
        states = []
        opened = open_pull(writer, follow=True, duration_ns=100 * MS)
        client = Client()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(
                opened.deliver(client.send, on_draining=lambda: states.append(1))
            )
            records = await writer.write()
            await client.has(2)
        assert delivery.result() == "duration"
        assert client.records() == records
        assert states == [1]

    @pytest.mark.parametrize("limit", ["duration", "until"])
    async def test_it_ends_there_though_its_client_stalls(
        self, make_ring, open_pull, limit
    ):
        writer = await make_ring(pinned=Share(), size=4 * MB)
        ends = {
            "duration": {"duration_ns": 1},
            "until": {"until_ns": writer.now_ns + SECOND},
        }
        opened = open_pull(writer, follow=True, **ends[limit])
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            records = await writer.write()
            await client.has(2)
            writer.now_ns += 1000 * SECOND  # by its clock all is over
            await writer.flush()
            await wait_until(lambda: opened._goal is not None)
            # Nothing of what is recorded later is kept for it, or called lost.
            await writer.fill(12)
            assert len(opened._held) == 1
            client.takes.set()
        assert delivery.result() == ("duration" if limit == "duration" else "complete")
        assert client.records() == records
        assert opened.skipped <= len(records)

    async def test_a_stop_waits_for_what_is_not_yet_recorded(self, writer, open_pull):
        opened = open_pull(writer, follow=True)
        client = Client()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            opened.stop()
            await asyncio.sleep(0.05)
            assert not delivery.done()
            records = await writer.write(flush=False)
            await writer.flush(opened._stopped_ns)
        assert delivery.result() == "shutdown"
        assert client.records() == records

    async def test_a_stop_waits_not_for_ever(self, writer, open_pull, monkeypatch):
        monkeypatch.setattr(pull, "_GRACE_SECONDS", 0.05)
        opened = open_pull(writer, follow=True)
        opened.stop()
        opened.fail(CaptureError("too late"))
        assert await pulled(opened) == []

    async def test_a_recorder_that_fails_is_an_error(
        self, writer, open_pull, monkeypatch
    ):
        monkeypatch.setattr(pull, "_GRACE_SECONDS", 0.05)
        records = await writer.write()
        opened = open_pull(writer, follow=True)
        opened.fail(CaptureError("the recorder has failed"))
        client = Client()
        with pytest.raises(CaptureError, match="recorder has failed"):
            await opened.deliver(client.send)
        assert client.records() == records

    async def test_one_that_falls_behind_gets_a_counted_gap(self, make_ring, open_pull):
        writer = await make_ring(pinned=Share(size=2 * MB), size=4 * MB)
        opened = open_pull(writer, follow=True)
        client = Client()
        client.takes.clear()
        async with self.following(opened, client):
            records = await writer.write()
            await client.has(2)
            records += await writer.fill(12)
            client.takes.set()
            await wait_until(lambda: len(client.records()) + opened.skipped >= 98)
        found = client.records()
        assert found == records[:2] + records[2 + opened.skipped :]
        assert 0 < opened.skipped < 90

    async def test_one_that_stalls_for_long_keeps_no_list_of_what_it_lost(
        self, make_ring, open_pull
    ):
        writer = await make_ring(pinned=Share(), size=4 * MB)
        opened = open_pull(writer, follow=True)
        client = Client()
        client.takes.clear()
        async with self.following(opened, client):
            await writer.write()
            await client.has(2)
            await writer.fill(40)
            await wait_until(lambda: opened._known == 41)
            # Of the first it may be reading; the others are those of the ring.
            assert len(opened._later) <= len(writer.ring.segments()) + 2
            assert len(opened._held) == len(opened._later)
            assert opened.skipped > 200
            client.takes.set()
            await wait_until(lambda: opened.packets + opened.skipped >= 320)
        assert opened.packets == len(client.records())

    async def test_a_ring_without_a_segment_is_followed_from_its_first(
        self, make_ring, open_pull
    ):
        writer = await make_ring(begin=False)
        opened = open_pull(writer, follow=True)
        client = Client()
        async with self.following(opened, client):
            await asyncio.sleep(0)
            await asyncio.to_thread(writer.begin)
            records = await writer.write()
            assert await client.has(2) == records

    async def test_drops_of_segments_that_it_passed_stay_counted(
        self, writer, open_pull
    ):
        opened = open_pull(writer, follow=True)
        client = Client()
        async with self.following(opened, client):
            await writer.drop(3)
            await writer.fill(2)
            await writer.drop(4)
            await writer.write()
            await client.has(18)
            await wait_until(lambda: len(opened._held) == 1)
            await wait_until(lambda: opened.dropped == 7)

    async def test_duration_cuts_nothing_of_the_past(self, writer, open_pull):
        records = await writer.fill(3)
        opened = open_pull(writer, follow=True, duration_ns=1)
        client = Client()
        client.takes.clear()
        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(opened.deliver(client.send))
            await wait_until(lambda: opened._reason is not None)
            client.takes.set()
            writer.now_ns += 1000 * SECOND
            await writer.flush()
        assert delivery.result() == "duration"
        assert client.records() == in_order(records)

    async def test_what_the_disk_did_not_take_is_missing_where_it_was(
        self, writer, open_pull
    ):
        records = await writer.fill(2)
        first, *_ = writer.ring.segments()
        lost_ns = records[4].timestamp_ns
        first.losses.add(5, since_ns=lost_ns, until_ns=lost_ns + 10)
        for since_ns, until_ns, skipped in (
            (0, FOREVER, 5),
            (0, lost_ns, 0),
            (0, lost_ns + 1, 5),
            (lost_ns + 10, FOREVER, 5),
            (lost_ns + 11, FOREVER, 0),
        ):
            opened = open_pull(writer, since_ns=since_ns, until_ns=until_ns)
            assert first in opened._held.values()
            await pulled(opened)
            assert opened.skipped == skipped

    async def test_a_follower_that_comes_again_is_not_told_again_what_was_lost(
        self, writer, open_pull
    ):
        records = await writer.write()
        (segment,) = writer.ring.segments()
        lost_ns = records[-1].timestamp_ns + 1
        segment.losses.add(5, since_ns=lost_ns, until_ns=lost_ns)
        opened = open_pull(writer, follow=True)
        async with self.following(opened, Client()):
            await writer.flush(lost_ns + 1)
            await wait_until(lambda: opened.skipped == 5)
        again = open_pull(writer, since_ns=opened.position_ns, follow=True)
        async with self.following(again, Client()):
            # Of what is lost from then on it is told, once all before is promised.
            segment.losses.add(3, since_ns=lost_ns + 2, until_ns=lost_ns + 9)
            await writer.flush(lost_ns + 9)
            await wait_until(lambda: again.position_ns == lost_ns + 9)
            assert again.skipped == 0
            await writer.flush(lost_ns + 10)
            await wait_until(lambda: again.skipped == 3)

    async def test_cancelling_in_a_slice_leaves_all_whole(self, writer, open_pull):
        await writer.fill(3)
        opened = open_pull(writer, follow=True)
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await opened.deliver(Client().send)
        opened.close()
        await wait_until(lambda: not writer.ring._pins)
