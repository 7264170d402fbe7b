"""Live captures on the loop: when they read, wait, stop, and are closed."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import subprocess
import time

import pytest

from ddump_common.api import CaptureQuery
from ddump_common.errors import CaptureError, FilterError
from ddump_common.note import EndReason
from ddump_common.units import MILLISECONDS
from ddump_worker import capture as capture_module
from ddump_worker._pcap import compile_filter
from ddump_worker.capacity import Capacity, ExhaustedError
from ddump_worker.capture import Captures, LiveCapture, ring_bytes
from ddump_worker.heartbeat import Heartbeat, Tally
from ddump_worker.program import cook
from support.loopback import payloads, talker
from support.workers import wait_until


class Script:
    """A handle that delivers what a test puts into it; readable while it holds some."""

    def __init__(self):
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._batches: list[bytes] = []
        self.packets = self.data_bytes = 0
        self.more = self.finished = False
        self.reads = 0
        self.stopped = 0
        self.hidden = 0  # counted, and in a block that is open
        self.last: int | None = None

    def put(self, *batches: bytes) -> None:
        self._batches.extend(batches)
        self._writer.send(b"x" * len(batches))

    def read_batch(self, target: int) -> bytes:
        self.reads += 1
        if not self._batches:
            self.more = False
            return b""
        self._reader.recv(1)
        batch = self._batches.pop(0)
        self.packets += bool(batch)
        self.data_bytes += len(batch)
        self.more = bool(self._batches)
        self.finished = self.packets == self.last
        return batch

    def stop(self) -> None:
        self.stopped += 1

    def undelivered(self) -> int:
        if self.finished:
            return 0
        return sum(map(bool, self._batches)) + self.hidden

    def statistics(self) -> tuple[int, int, int]:
        return 5, 3, 0

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@pytest.fixture
def script():
    handle = Script()
    yield handle
    handle.close()


def live(script, *, on_close=lambda: None, **query) -> LiveCapture:
    return LiveCapture(
        script,
        query=CaptureQuery(**query),
        granted=1,
        started_ns=1000,
        promised_ns=900,
        on_close=on_close,
    )


class TestDeliver:
    async def test_batches_are_sent_as_they_come(self, script):
        capture, sent = live(script), []

        async def send(batch):
            sent.append(batch)

        script.last = 3

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(capture.deliver(send))
            script.put(b"one", b"two")
            await wait_until(lambda: len(sent) == 2)
            script.put(b"three")
        assert sent == [b"one", b"two", b"three"]
        assert task.result() is EndReason.BYTES
        capture.close()

    async def test_nothing_is_read_while_the_client_takes_nothing(self, script):
        capture, gate = live(script), asyncio.Event()

        async def send(_):
            await gate.wait()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(capture.deliver(send))
            script.put(b"one")
            await wait_until(lambda: script.packets == 1)
            script.put(b"two", b"three")
            reads = script.reads
            for _ in range(200):
                await asyncio.sleep(0)
            assert script.reads == reads
            # The descriptor is readable all the time, and not watched any more.
            assert not asyncio.get_running_loop().remove_reader(script.fileno())
            gate.set()
            await wait_until(lambda: script.packets == 3)
            task.cancel()
        capture.close()

    async def test_cancelling_while_it_waits_leaves_nothing_behind(self, script):
        capture = live(script, idle_ns=10**9)

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(capture.deliver(None))
            await wait_until(lambda: script.reads > 0)
            task.cancel()
        capture.close()
        assert not asyncio.get_running_loop().remove_reader(script.fileno())

    async def test_others_have_their_turn_under_load(self, script):
        capture, turns = live(script), []

        async def send(_):
            script.put(b"more")  # it never gets empty

        async def other():
            for _ in range(50):
                await asyncio.sleep(0)
                turns.append(script.packets)

        async with asyncio.TaskGroup() as tasks:
            script.put(b"one", b"two")
            task = tasks.create_task(capture.deliver(send))
            await tasks.create_task(other())
            task.cancel()
        assert max(turns) <= len(turns) + 2

    async def test_a_packet_limit_is_named(self, script):
        capture = live(script, packets=1)

        async def send(_):
            pass

        script.last = 1
        script.put(b"one")
        assert await capture.deliver(send) is EndReason.PACKETS

    async def test_idle_begins_anew_with_each_packet(self, script):
        capture = live(script, idle_ns=50 * MILLISECONDS)

        async def send(_):
            pass

        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_later(0.1, script.put, b"one")
        assert await capture.deliver(send) is EndReason.IDLE
        assert loop.time() - began > 0.2

    async def test_what_comes_at_the_moment_of_being_idle_is_still_sent(self, script):
        capture, sent = live(script, idle_ns=50 * MILLISECONDS), []

        async def send(batch):
            sent.append(batch)

        def close_block():
            script.hidden = 0
            script.put(b"one")

        script.hidden = 1
        asyncio.get_running_loop().call_later(0.4, close_block)
        assert await capture.deliver(send) is EndReason.IDLE
        assert sent == [b"one"]
        assert (script.stopped, capture.undelivered) == (1, 0)

    async def test_a_duration_ends_with_what_was_captured_by_then(self, script):
        capture, sent, drained = live(script, duration_ns=50 * MILLISECONDS), [], []

        async def send(batch):
            sent.append(batch)

        loop = asyncio.get_running_loop()

        def close_block():
            script.hidden = 0
            script.put(b"one", b"two")

        # It comes later, out of a block that was open when the time was over.
        script.hidden = 2
        loop.call_later(0.5, close_block)
        began = loop.time()
        reason = await capture.deliver(send, on_draining=lambda: drained.append(1))
        assert reason is EndReason.DURATION
        assert sent == [b"one", b"two"]
        assert capture.undelivered == 0
        # And then there is nothing to wait for.
        assert loop.time() - began < 1
        assert drained == [1]
        assert script.stopped == 1

    async def test_where_nothing_waits_it_ends_at_once(self, script):
        capture = live(script)
        capture.stop()
        assert await capture.deliver(None) is EndReason.SHUTDOWN
        assert script.reads == 0

    async def test_what_never_comes_is_waited_for_a_second_and_counted(self, script):
        capture = live(script, duration_ns=50 * MILLISECONDS)
        script.hidden = 2
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await capture.deliver(None) is EndReason.DURATION
        assert 1 < loop.time() - began < 1.5
        assert capture.undelivered == 2
        capture.close()
        assert capture.undelivered == 2

    async def test_a_duration_ends_under_load_too(self, script):
        capture = live(script, duration_ns=50 * MILLISECONDS)

        async def send(_):
            if not script.stopped:
                script.put(b"more")

        script.put(b"one", b"two")
        assert await capture.deliver(send) is EndReason.DURATION

    async def test_a_duration_ends_in_time_while_the_client_stalls(self, script):
        capture, gate = live(script, duration_ns=50 * MILLISECONDS), asyncio.Event()
        drained = []

        async def send(_):
            await gate.wait()

        script.put(b"one")
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                capture.deliver(send, on_draining=lambda: drained.append(1))
            )
            await wait_until(lambda: script.stopped, seconds=1)
            assert not task.done()
            assert drained == [1]
            gate.set()
        assert task.result() is EndReason.DURATION
        assert script.stopped == 1

    async def test_a_failure_comes_after_what_was_captured(self, script):
        capture, sent = live(script), []

        async def send(batch):
            sent.append(batch)

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(failure_of(capture.deliver(send)))
            await wait_until(lambda: script.reads > 0)
            script.put(b"one")
            capture.fail(CaptureError("gone"))
            capture.fail(CaptureError("again"))
        assert str(task.result()) == "gone"
        assert sent == [b"one"]

    async def test_what_is_left_in_the_ring_is_counted_when_it_is_closed(self, script):
        capture = live(script)
        script.put(b"one", b"two")
        assert capture.undelivered == 0
        capture.close()
        assert capture.undelivered == 2
        capture.stop()
        assert not script.stopped

    async def test_stopping_wakes_what_waits(self, script):
        capture = live(script)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(capture.deliver(None))
            await wait_until(lambda: script.reads > 0)
            capture.stop()
        assert task.result() is EndReason.SHUTDOWN
        assert script.stopped == 1

    async def test_stopping_before_it_begins(self, script):
        capture = live(script)
        capture.stop()
        assert await capture.deliver(None) is EndReason.SHUTDOWN

    async def test_the_drain_ends_with_a_limit(self, script):
        capture = live(script)
        capture.stop()

        async def send(_):
            script.finished = True

        reason = await capture.deliver(
            send, on_draining=lambda: script.put(b"one", b"two")
        )
        assert reason is EndReason.SHUTDOWN
        assert script.packets == 1

    async def test_the_drain_reads_over_what_is_not_wanted(self, script):
        capture, sent = live(script), []
        capture.stop()

        async def send(batch):
            sent.append(batch)

        began = time.monotonic()
        # Batches that are empty, with more to come: what is in them is not wanted.
        reason = await capture.deliver(
            send, on_draining=lambda: script.put(b"", b"", b"one")
        )
        assert reason is EndReason.SHUTDOWN
        assert sent == [b"one"]
        assert time.monotonic() - began < 1

    async def test_counters_are_taken_until_it_is_closed(self, script):
        closed = []
        capture = live(script, on_close=lambda: closed.append(1))
        assert capture.dropped == 0
        capture.refresh()
        assert (capture.received, capture.dropped) == (5, 3)
        capture.close()
        capture.close()
        script.statistics = None
        capture.refresh()
        assert (capture.dropped, closed) == (3, [1])


class Watcher:
    """Takes batches, and the promises of statistics blocks among them, in ``sent``.

    The clock that it lets the worker see stands still until a test moves it.
    """

    def __init__(self, monkeypatch) -> None:
        self.sent: list[bytes | int] = []
        self.now_ns = 10**18
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(time, "time_ns", lambda: self.now_ns)

    async def send(self, data: bytes) -> None:
        is_block = data[:4] == b"\5\0\0\0"
        if is_block:
            high, low = struct.unpack_from("<II", data, 12)
        self.sent.append((high << 32 | low) - 10**18 if is_block else data)
        await self.gate.wait()

    def heartbeat(self) -> Heartbeat:
        tally = Tally(
            received=0,
            interface_dropped=0,
            dropped=0,
            delivered=0,
            skipped=0,
            counted_ns=0,
        )
        return Heartbeat(started_ns=0, promised_ns=0, tally=lambda: tally)

    async def promised(self, offset_ns: int) -> None:
        """Wait for a promise of ``offset_ns`` after the clock's first moment."""
        await wait_until(lambda: offset_ns in self.sent)

    async def next_block(self) -> int:
        """Wait for one more block; return what it promises."""
        count = len(self.sent)
        await wait_until(lambda: any(type(each) is int for each in self.sent[count:]))
        return self.sent[-1]


class TestHeartbeats:
    SLACK_NS = 50 * MILLISECONDS

    @pytest.fixture
    async def watching(self, script, monkeypatch):
        """A capture that is delivered to a watcher while the test runs."""
        watcher = Watcher(monkeypatch)
        capture = live(script)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                capture.deliver(watcher.send, heartbeat=watcher.heartbeat())
            )
            yield watcher
            watcher.gate.set()
            task.cancel()
        capture.close()

    async def test_an_idle_stream_promises_what_was_read(self, watching):
        await watching.promised(-self.SLACK_NS)
        watching.now_ns += 1000
        await watching.promised(1000 - self.SLACK_NS)

    async def test_they_come_four_times_a_second(self, watching):
        loop = asyncio.get_running_loop()
        await watching.next_block()
        began = loop.time()
        for _ in range(4):
            await watching.next_block()
        assert 0.9 < loop.time() - began < 1.2

    async def test_a_block_of_the_kernel_that_is_open_holds_the_promise(
        self, watching, script
    ):
        await watching.promised(-self.SLACK_NS)
        script.hidden = 1
        watching.now_ns += 1000
        await watching.next_block()
        watching.now_ns += 1000
        assert await watching.next_block() <= 1000 - self.SLACK_NS
        watching.now_ns += 1000
        held = await watching.next_block()
        assert held <= 1000 - self.SLACK_NS
        script.hidden = 0
        script.put(b"it")
        await watching.promised(3000 - self.SLACK_NS)
        assert watching.sent.index(b"it") < watching.sent.index(3000 - self.SLACK_NS)

    async def test_what_never_comes_holds_it_for_a_second_once(self, watching, script):
        await watching.promised(-self.SLACK_NS)
        script.hidden = 1
        began = time.monotonic()
        watching.now_ns += 1000
        await watching.next_block()
        watching.now_ns += 1000
        await watching.promised(2000 - self.SLACK_NS)
        assert 0.9 < time.monotonic() - began < 2
        for _ in range(2):
            watching.now_ns += 1000
            await watching.promised(watching.now_ns - 10**18 - self.SLACK_NS)
        assert time.monotonic() - began < 3
        # It comes all the same: then the next one that is hidden holds it again.
        script.hidden = 0
        watching.now_ns += 1000
        promise_ns = watching.now_ns - 10**18 - self.SLACK_NS
        await watching.promised(promise_ns)
        script.hidden = 1
        watching.now_ns += 1000
        await watching.next_block()
        watching.now_ns += 1000
        assert await watching.next_block() <= promise_ns + 1000

    async def test_what_never_came_is_not_lost_at_the_end(self, script, monkeypatch):
        """It was not the stream's; nor is it waited for once more."""
        watcher = Watcher(monkeypatch)
        capture = live(script)
        script.hidden = 2
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                capture.deliver(watcher.send, heartbeat=watcher.heartbeat())
            )
            await wait_until(lambda: watcher.sent)
            watcher.now_ns += 1000
            await watcher.promised(1000 - self.SLACK_NS)
            began = time.monotonic()
            capture.stop()
            assert await task is EndReason.SHUTDOWN
        assert time.monotonic() - began < 0.5
        assert capture.undelivered == 0
        capture.close()
        assert capture.undelivered == 0

    async def test_nothing_is_promised_while_the_client_takes_nothing(
        self, watching, script
    ):
        await watching.promised(-self.SLACK_NS)
        watching.gate.clear()
        script.put(b"one")
        await wait_until(lambda: b"one" in watching.sent)
        script.put(b"two", b"three")
        watching.now_ns += 1000
        await asyncio.sleep(0.6)
        assert watching.sent[-1] == b"one"
        watching.gate.set()
        await watching.promised(1000 - self.SLACK_NS)
        assert [each for each in watching.sent if each != -self.SLACK_NS] == [
            b"one",
            b"two",
            b"three",
            1000 - self.SLACK_NS,
        ]

    async def test_under_full_load_they_come_between_batches(self, script, monkeypatch):
        watcher, capture = Watcher(monkeypatch), live(script)

        async def send(data):
            watcher.now_ns += 1
            if data == b"more":
                script.put(b"more")  # reads always leave something behind
            await watcher.send(data)

        script.put(b"more", b"more")
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                capture.deliver(send, heartbeat=watcher.heartbeat())
            )
            await wait_until(
                lambda: sum(type(each) is int for each in watcher.sent) > 3
            )
            task.cancel()
        promises = [each for each in watcher.sent if type(each) is int]
        assert promises == sorted(set(promises))  # each one more than the last
        for promise in promises:
            # What was taken when the clock was there had been sent.
            assert watcher.sent.index(promise) >= promise + self.SLACK_NS
        capture.close()

    async def test_a_clock_that_is_set_back_takes_nothing_back(self, watching):
        await watching.promised(-self.SLACK_NS)
        watching.now_ns -= 10**12
        assert await watching.next_block() == -self.SLACK_NS

    async def test_they_come_while_it_drains(self, script, monkeypatch):
        watcher, capture = Watcher(monkeypatch), live(script)
        capture.stop()
        heartbeat = watcher.heartbeat()
        script.put(b"one")
        await capture.deliver(watcher.send, heartbeat=heartbeat)
        assert watcher.sent == [b"one", -self.SLACK_NS]


async def failure_of(delivery) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        await delivery
    return caught.value


def program(expression: str) -> bytes:
    lo = socket.if_nametoindex("lo")
    code = compile_filter(
        f"({expression}) and not (ifindex {lo} and outbound)",
        link_type=113,
        snaplen=262144,
    )
    return cook(code, link_type=113, snaplen=262144)


def ring_of_this_process() -> int:
    shown = subprocess.run(
        ["ss", "-0", "-e", "-p"], capture_output=True, text=True, check=True
    ).stdout
    pattern = rf"pid={os.getpid()},.*\n.*\n\s*ring_rx\(blk_size:(\d+),blk_nr:(\d+)"
    (found,) = re.findall(pattern, shown)
    return int(found[0]) * int(found[1])


@pytest.mark.live
class TestCaptures:
    @pytest.fixture
    async def captures(self):
        opened = Captures(
            capacity=Capacity(max_streams=4, max_memory=64 << 20), buffer_size=2 << 20
        )
        yield opened
        await opened.shutdown()
        assert (opened.capacity.streams, opened.capacity.memory) == (0, 0)

    async def test_a_real_capture(self, captures):
        with talker() as udp:
            query = CaptureQuery(packets=10)
            capture = await captures.open(query, program(udp.filter))
            data = []

            async def send(batch):
                data.append(batch)

            sent = udp.send(20)
            assert await capture.deliver(send) is EndReason.PACKETS
            assert payloads(b"".join(data)) == sent[:10]
            assert capture.packets == 10
            assert capture.data_bytes == 10 * (16 + 28 + 32)
            capture.close()
            assert capture.packets == 10

    @pytest.mark.parametrize(("retire_ms", "delivered"), [(500, 20), (60_000, 0)])
    async def test_a_block_that_is_closed_late_is_waited_for_for_a_second(
        self, captures, monkeypatch, retire_ms, delivered
    ):
        monkeypatch.setattr(capture_module, "RETIRE_MS", retire_ms)
        data = []

        async def send(batch):
            data.append(batch)

        with talker() as udp:
            capture = await captures.open(CaptureQuery(), program(udp.filter))
            sent = udp.send(20)
            capture.stop()
            assert await capture.deliver(send) is EndReason.SHUTDOWN
        assert payloads(b"".join(data)) == sent[:delivered]
        capture.refresh()
        assert capture.packets + capture.undelivered == capture.received == 20
        capture.close()

    async def test_the_ring_is_the_one_that_ss_shows(self, captures):
        capture = await captures.open(CaptureQuery(), program("udp"))
        assert ring_of_this_process() == 2 << 20
        assert capture.granted == captures.capacity.memory == 2 << 20
        capture.close()

    async def test_a_refusal_by_the_kernel_gives_everything_back(self, captures):
        with pytest.raises(FilterError, match="does not take"):
            await captures.open(CaptureQuery(), b"\xff" * 8)
        assert captures.capacity.streams == 0

    async def test_a_ring_that_is_too_small_is_refused(self, captures, monkeypatch):
        monkeypatch.setattr(capture_module, "ring_bytes", lambda _: 256 << 10)
        with pytest.raises(CaptureError, match="ring of 262144 bytes, too little"):
            await captures.open(CaptureQuery(), program("udp"))

    async def test_more_than_there_is_is_refused(self, captures):
        opened = [await captures.open(CaptureQuery(), program("udp")) for _ in range(4)]
        with pytest.raises(ExhaustedError):
            captures.check()
        with pytest.raises(ExhaustedError):
            await captures.open(CaptureQuery(), program("udp"))
        for capture in opened:
            capture.close()
        await wait_until(lambda: captures.capacity.streams == 0)
        captures.check()

    @pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.05])
    async def test_cancelling_an_opening_leaves_nothing(self, captures, delay):
        async with asyncio.TaskGroup() as tasks:
            opening = [
                tasks.create_task(captures.open(CaptureQuery(), program("udp")))
                for _ in range(4)
            ]
            await asyncio.sleep(delay)
            for task in opening:
                task.cancel()
        for task in opening:
            if not task.cancelled():
                task.result().close()
        await wait_until(lambda: captures.capacity.streams == 0)

    async def test_an_opening_that_fails_after_it_was_cancelled(self, captures):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(captures.open(CaptureQuery(), b"\xff" * 8))
            await asyncio.sleep(0)
            task.cancel()
        await wait_until(lambda: captures.capacity.streams == 0)


def test_a_socket_without_a_ring_is_refused():
    with socket.socket() as plain, pytest.raises(CaptureError, match="no ring"):
        ring_bytes(plain.fileno())
