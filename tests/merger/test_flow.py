"""Live streams through the command: order, silence, slow readers, interrupts, ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import resource
import signal
import struct
import time

import pytest

from support.captures import Record, parse_pcap, pcap, pcap_header, pcap_record
from support.commands import COMMAND, interrupted, resident_kilobytes, run, started
from support.servers import capture, refusing_port, serving

pytestmark = pytest.mark.process

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def now_record(data):
    return Record(time.time_ns() // 1000 * 1000, data)


def now_records(count, *, apart_ns=1000):
    """Return records of now, a microsecond apart."""
    first = now_record(b"").timestamp_ns
    return [Record(first + n * apart_ns, b"%d" % n) for n in range(count)]


async def read_records(stream, count):
    """Read so many records."""
    records = []
    for _ in range(count):
        head = await stream.readexactly(16)
        seconds, micros, caplen, length = struct.unpack("<IIII", head)
        data = await stream.readexactly(caplen)
        records.append(Record(seconds * SECOND + micros * 1000, data, length))
    return records


class Live:
    """A stream that a test writes into."""

    def __init__(self):
        self._queue = asyncio.Queue()
        self.asked = asyncio.Event()

    async def __call__(self, exchange):
        await exchange.begin()
        await exchange.chunk(pcap_header())
        self.asked.set()
        while (data := await self._queue.get()) is not None:
            await exchange.chunk(data)
        await exchange.end()

    def put(self, *records):
        self._queue.put_nowait(b"".join(map(pcap_record, records)))

    def end(self):
        self._queue.put_nowait(None)


@contextlib.asynccontextmanager
async def live(count):
    """Serve ``count`` streams; yield them and their URLs."""
    streams = [Live() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(each)) for each in streams]
        yield streams, [server.url for server in servers]


# --- Order ---


async def test_streams_are_merged_by_time():
    records = [Record(START + n * 7_000_000, b"%d" % n) for n in range(300)]
    thirds = [pcap(records[n::3]) for n in range(3)]

    def split(data, size):
        return [data[at : at + size] for at in range(0, len(data), size)]

    async with (
        serving(capture(split(thirds[0], 1))) as a,
        serving(capture(split(thirds[1], 1000))) as b,
        serving(capture(split(thirds[2], 17))) as c,
    ):
        result = await run(a.url, b.url, c.url)
    assert result.code == 0
    assert parse_pcap(result.out) == records
    assert result.err == (
        "127.0.0.1: 100 packets received, - dropped by kernel, 0 late\n"
        "127.0.0.1#2: 100 packets received, - dropped by kernel, 0 late\n"
        "127.0.0.1#3: 100 packets received, - dropped by kernel, 0 late\n"
        "all: 300 packets received, 0 late\n"
    )


async def test_the_header_comes_at_once():
    async with live(2) as (_, urls), started(*urls) as process:
        async with asyncio.timeout(5):
            assert await process.stdout.readexactly(24) == pcap_header()
        assert process.returncode is None


async def test_a_silent_stream_holds_the_others_back_no_longer_than_hold():
    async with live(2) as ((one, other), urls), started(*urls) as process:
        await one.asked.wait()
        await other.asked.wait()
        await process.stdout.readexactly(24)
        delays = []
        for n in range(4):
            record = now_record(b"%d" % n)
            one.put(record)
            async with asyncio.timeout(3):
                assert await read_records(process.stdout, 1) == [record]
            delays.append((time.time_ns() - record.timestamp_ns) / SECOND)
        assert max(delays) < 1 + 0.5
        # And it did wait for the other, which may still have had an earlier one.
        assert min(delays) > 0.9


async def test_hold_is_as_long_as_asked():
    async with (
        live(2) as ((one, other), urls),
        started("--hold", "100ms", *urls) as process,
    ):
        await one.asked.wait()
        await other.asked.wait()
        await process.stdout.readexactly(24)
        for n in range(10):
            record = now_record(b"%d" % n)
            one.put(record)
            async with asyncio.timeout(0.6):
                assert await read_records(process.stdout, 1) == [record]


async def test_what_comes_too_late_is_counted_and_not_lost():
    async with live(2) as ((one, other), urls), started("--hold", "100ms", *urls) as p:
        await one.asked.wait()
        await other.asked.wait()
        await p.stdout.readexactly(24)
        first = now_record(b"first")
        one.put(first)
        async with asyncio.timeout(3):
            assert await read_records(p.stdout, 1) == [first]
        late = Record(first.timestamp_ns - SECOND, b"late")
        other.put(late)
        async with asyncio.timeout(3):
            assert await read_records(p.stdout, 1) == [late]
        one.end()
        other.end()
        async with asyncio.timeout(5):
            out, err = await p.communicate()
    assert out == b""
    assert p.returncode == 0
    assert b"127.0.0.1: 1 packet received, - dropped by kernel, 0 late" in err
    assert b"127.0.0.1#2: 1 packet received, - dropped by kernel, 1 late" in err


async def test_the_process_may_sleep():
    """A stop of the process is no silence of a stream: nothing is late after it."""
    async with live(2) as ((one, other), urls), started("--hold", "300ms", *urls) as p:
        await one.asked.wait()
        await other.asked.wait()
        await p.stdout.readexactly(24)
        first, *records = now_records(21)
        one.put(first)  # it is held back, so the clock is looked at
        await until_received(p)
        p.send_signal(signal.SIGSTOP)
        for n, record in enumerate(records):
            (one, other)[n % 2].put(record)
        await asyncio.sleep(1)  # the stop has to outlast the hold
        p.send_signal(signal.SIGCONT)
        async with asyncio.timeout(5):
            assert await read_records(p.stdout, 21) == [first, *records]
        result = await interrupted(p)
    assert result.code == 0
    assert result.err.count(", 0 late\n") == 3


# --- Many ---


async def test_a_hundred_and_twenty_at_once():
    """All are open at the same time, and none of them waits for another's end."""
    count = 120
    everyone = asyncio.Event()
    asked = 0

    async def script(exchange):
        nonlocal asked
        asked += 1
        number = int(exchange.request.target.removeprefix("/"))
        if asked == count:
            everyone.set()
        await exchange.begin()
        await everyone.wait()
        records = [Record(START + (n * count + number) * 1000, b"") for n in range(10)]
        await exchange.chunk(pcap(records))
        await exchange.end()

    async with serving(script) as server:
        result = await run(*(f"w{n}={server.url}/{n}" for n in range(count)))
    assert result.code == 0, result.err
    records = parse_pcap(result.out)
    assert [r.timestamp_ns for r in records] == [START + n * 1000 for n in range(1200)]
    assert (
        result.err.count("10 packets received, - dropped by kernel, 0 late\n") == count
    )


async def test_few_descriptors():
    """The soft limit is raised for as many targets as there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(capture([pcap([Record(START)])])) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
        try:
            running = started(*[server.url] * 50)
            process = await running.__aenter__()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            async with asyncio.timeout(20):
                out, err = await process.communicate()
        finally:
            await running.__aexit__(None, None, None)
    assert process.returncode == 0, err
    assert len(parse_pcap(out)) == 50


# --- Backpressure ---


def numbered(stream, number):
    """Return a record of 1,000 bytes that shows it when one of them is wrong."""
    return Record(
        START + (number * 2 + stream) * 10_000,
        struct.pack("<II", stream, number) + bytes([number & 0xFF]) * 992,
    )


async def test_a_slow_reader_holds_the_senders_and_corrupts_nothing():
    per_stream = 100_000  # 100 MB each: far more than any buffer on the way
    sent = [0, 0]
    progress = asyncio.Condition()

    def script(stream):
        async def send(exchange):
            await exchange.begin()
            await exchange.chunk(pcap_header())
            for at in range(0, per_stream, 100):
                # Both are as far as the clock is, as live streams are.
                async with progress:
                    while at > min(sent) + 1000:
                        await progress.wait()
                chunk = [pcap_record(numbered(stream, at + n)) for n in range(100)]
                await exchange.chunk(b"".join(chunk))
                async with progress:
                    sent[stream] += 100
                    progress.notify_all()
            await exchange.end()

        return send

    reader, writer = os.pipe()
    async with (
        serving(script(0)) as a,
        serving(script(1)) as b,
        started("-q", a.url, b.url, stdout=writer) as process,
    ):
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            assert await asyncio.to_thread(pipe.read, 24) == pcap_header()
            await standstill(sent)
            # The reader takes nothing: the senders are held, and memory is bounded.
            assert max(sent) < per_stream // 2
            assert resident_kilobytes(process.pid) < 75_000
            expected = iter_numbered(per_stream)
            await asyncio.to_thread(compare, pipe, expected)
        async with asyncio.timeout(10):
            await process.wait()
        assert process.returncode == 0
    assert sent == [per_stream, per_stream]


async def standstill(sent):
    """Wait until nothing more is sent."""
    before = None
    while before != sent:
        before = list(sent)
        await asyncio.sleep(0.5)  # an absence can only be waited for


def iter_numbered(per_stream):
    for number in range(per_stream):
        for stream in (0, 1):
            yield pcap_record(numbered(stream, number))


def compare(pipe, expected):
    rest = b""
    for record in expected:
        while len(rest) < len(record):
            piece = pipe.read(1 << 20)
            assert piece, "the output ends early"
            rest += piece
        assert rest.startswith(record)
        rest = rest[len(record) :]
    assert rest == b""
    assert pipe.read(1) == b""


async def test_a_slow_reader_makes_nothing_late():
    """While nobody reads, streams are not silent: it is us who do not listen."""
    async with live(2) as ((one, other), urls):
        reader, writer = os.pipe()
        async with started("--hold", "200ms", *urls, stdout=writer) as process:
            os.close(writer)
            await one.asked.wait()
            await other.asked.wait()
            records = [
                Record(each.timestamp_ns, bytes(60_000))
                for each in now_records(400, apart_ns=1_000_000)
            ]
            for n, record in enumerate(records):
                (one, other)[n % 2].put(record)
            await asyncio.sleep(1)  # longer than the hold
            one.end()
            other.end()
            with os.fdopen(reader, "rb") as pipe:
                data = await asyncio.to_thread(pipe.read)
            async with asyncio.timeout(5):
                _, err = await process.communicate()
    assert parse_pcap(data) == records
    assert err.count(b", 0 late\n") == 3


# --- Ends ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_writes_what_has_arrived_in_order(number):
    """Nothing of it was due yet: the other stream could still have had earlier ones."""
    async with live(2) as ((one, other), urls), started("--hold", "1h", *urls) as p:
        await one.asked.wait()
        await other.asked.wait()
        await p.stdout.readexactly(24)
        records = now_records(100)
        one.put(*records[0::2])
        other.put(*records[1::2])
        await until_received(p)
        p.send_signal(number)
        async with asyncio.timeout(5):
            out, err = await p.communicate()
    assert p.returncode == 0
    assert parse_pcap(pcap_header() + out) == records
    assert b"all: 100 packets received" in err


async def until_received(process):
    """Wait until a process has nothing left to read from its connections."""
    async with asyncio.timeout(5):
        while True:
            await asyncio.sleep(0.1)
            table = await asyncio.create_subprocess_exec(
                "ss", "-tnpH", "state", "established", stdout=asyncio.subprocess.PIPE
            )
            out, _ = await table.communicate()
            mine = [
                x.split()
                for x in out.decode().splitlines()
                if f"pid={process.pid}," in x
            ]
            if mine and all(fields[0] == "0" for fields in mine):
                return


@pytest.mark.parametrize("before", [None, b"what was captured yesterday"])
async def test_a_signal_before_anything_came_writes_nothing(tmp_path, before):
    """Neither to a pipe, nor to a file, which may hold what nobody can capture again."""
    file = tmp_path / "out.pcap"
    if before is not None:
        file.write_bytes(before)
    output = [] if before is None else ["-w", file]

    async def silent(exchange):
        asked.set()
        await exchange.gone()

    asked = asyncio.Event()
    async with serving(silent) as server, started(*output, server.url) as process:
        async with asyncio.timeout(10):
            await asked.wait()
        result = await interrupted(process)
    assert result.code == 3
    assert result.out == b""
    assert (file.read_bytes() if file.exists() else None) == before
    assert result.err == "127.0.0.1: not captured: it had not answered\n"


async def test_a_signal_after_something_was_lost():
    async with live(1) as ((one,), urls):
        bad = f"bad=http://127.0.0.1:{refusing_port()}"
        async with started(*urls, bad) as process:
            await one.asked.wait()
            await process.stdout.readexactly(24)
            one.put(now_record(b"x"))
            await until_received(process)
            result = await interrupted(process)
    assert result.code == 4
    assert len(parse_pcap(pcap_header() + result.out)) == 1


async def test_the_second_signal_leaves_at_once():
    """The reader hangs, so what has arrived cannot be written."""
    reader, writer = os.pipe()
    try:
        records = [Record(START + n * SECOND, bytes(60_000)) for n in range(100)]
        async with (
            serving(capture([pcap(records)])) as server,
            started(server.url, stdout=writer) as process,
        ):
            os.close(writer)
            await asyncio.to_thread(os.read, reader, 1)
            process.send_signal(signal.SIGINT)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await process.wait()
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(2):
                await process.wait()
            assert process.returncode == -signal.SIGINT
    finally:
        os.close(reader)


async def test_head_ends_it_without_a_word():
    records = [Record(START + n * 1000, bytes(1000)) for n in range(10_000)]

    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(pcap(records))
        await exchange.gone()

    async with serving(script) as server:
        reader, writer = os.pipe()
        async with started(server.url, stdout=writer) as process:
            os.close(writer)
            assert len(await asyncio.to_thread(os.read, reader, 100)) > 0
            os.close(reader)
            async with asyncio.timeout(5):
                _, err = await process.communicate()
    assert process.returncode == 0
    assert err == b""


async def test_a_reader_that_goes_is_noticed_while_nothing_flows():
    async with live(1) as ((one,), urls):
        reader, writer = os.pipe()
        async with started(*urls, stdout=writer) as process:
            os.close(writer)
            await one.asked.wait()
            assert await asyncio.to_thread(os.read, reader, 24) == pcap_header()
            os.close(reader)
            async with asyncio.timeout(2):
                _, err = await process.communicate()
    assert process.returncode == 0
    assert err == b""


async def test_count_stops_all():
    records = [Record(START + n * 1000, b"%d" % n) for n in range(1000)]

    def script(part):
        async def endless(exchange):
            await exchange.begin()
            await exchange.chunk(pcap(part))
            await exchange.gone()

        return endless

    async with (
        serving(script(records[0::2])) as a,
        serving(script(records[1::2])) as b,
    ):
        result = await run("-c", "500", a.url, b.url)
    assert result.code == 0
    assert parse_pcap(result.out) == records[:500]
    assert "all: 500 packets received, 0 late" in result.err


async def test_duration_ends_a_server_that_does_not_know_it():
    async with live(1) as ((one,), urls):
        began = time.monotonic()
        async with started("--duration", "500ms", *urls) as process:
            await one.asked.wait()
            record = now_record(b"x")
            one.put(record)
            async with asyncio.timeout(10):
                out, err = await process.communicate()
        assert 0.5 <= time.monotonic() - began < 6
    assert process.returncode == 0, err
    assert parse_pcap(out) == [record]


# --- Output ---


async def test_a_full_disk():
    async with serving(capture([pcap([Record(START)])])) as server:
        result = await run("-w", "/dev/full", server.url)
    assert result.code == 5
    assert result.err == "ddump: cannot write /dev/full: No space left on device\n"


async def test_a_full_disk_while_streams_go_on():
    async with live(1) as (_, urls):
        result = await run("-w", "/dev/full", *urls, seconds=5)
    assert result.code == 5


async def test_a_file_that_cannot_be_opened(tmp_path):
    async with serving(capture([pcap([Record(START)])])) as server:
        result = await run("-w", tmp_path / "no" / "x.pcap", server.url)
        assert server.connections == 0
    assert result.code == 5
    assert "x.pcap: No such file or directory" in result.err


async def test_a_terminal_is_refused():
    controller, terminal = pty.openpty()
    try:
        async with serving(capture([pcap([Record(START)])])) as server:
            async with started(server.url, stdout=terminal) as process:
                async with asyncio.timeout(5):
                    _, err = await process.communicate()
            assert server.connections == 0
    finally:
        os.close(terminal)
        os.close(controller)
    assert process.returncode == 2
    assert err.startswith(b"ddump: standard output is a terminal")
    assert b"tcpdump -nr-" in err


async def test_a_pipe_that_somebody_made_non_blocking():
    """Its flags are left as they are, and nothing is lost."""
    records = [Record(START + n * 1000, bytes(1000)) for n in range(2000)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    async with (
        serving(capture([pcap(records)])) as server,
        started(server.url, stdout=writer) as process,
    ):
        with os.fdopen(reader, "rb") as pipe:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                data = tasks.create_task(asyncio.to_thread(pipe.read))
                await process.wait()
                assert not os.get_blocking(writer)
                os.close(writer)
            assert parse_pcap(data.result()) == records
    assert process.returncode == 0


async def test_the_live_table():
    """On a terminal the table is shown and removed, and messages stand above it."""
    controller, terminal = pty.openpty()
    bad = f"bad=http://127.0.0.1:{refusing_port()}"
    async with live(1) as ((one,), urls):
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "-w", "/dev/null", f"web1={urls[0]}", bad, stderr=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
        )  # fmt: skip
        os.close(terminal)
        shown = b""
        try:
            await one.asked.wait()
            one.put(now_record(b"x"))
            async with asyncio.timeout(10):
                while b"web1" not in shown or b"open" not in shown:
                    shown += await asyncio.to_thread(os.read, controller, 65536)
                one.end()
                with contextlib.suppress(OSError):  # EIO: the terminal's other end
                    while piece := await asyncio.to_thread(os.read, controller, 65536):
                        shown += piece
                await process.wait()
        finally:
            os.close(controller)
    text = shown.decode()
    assert process.returncode == 4
    assert "connection refused" in text
    assert "held" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back
    assert "web1: 1 packet received, - dropped by kernel, 0 late" in text
