"""One run in this process, and what of the library is loaded for which run."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import resource
import signal
import subprocess
import sys
import threading

import pytest
import uvloop

from ddump_common.errors import ExitCode, UsageError
from ddump_common.pcap import Precision
from ddump_merger import job
from ddump_merger.config import Config
from ddump_merger.job import run_job
from ddump_merger.target import parse_target
from support.captures import Record, parse_pcap, pcap, pcapng
from support.servers import capture, serving

START = 1_700_000_000_000_000_000
RECORDS = [Record(START + n * 1000, b"x") for n in range(10)]


def config(*words, **options):
    return Config(targets=tuple(parse_target(str(word)) for word in words), **options)


@pytest.fixture
def served():
    """Serve a capture on another thread: the main one is the job's."""

    async def serve():
        async with serving(capture([pcap(RECORDS)])) as server:
            urls.put(server.url)
            await asyncio.to_thread(ended.wait)

    urls, ended = queue.Queue(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    yield urls.get(timeout=5)
    ended.set()
    thread.join()


def test_a_stream(served, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_job(config(served, output=out)) is ExitCode.OK
    assert parse_pcap(out.read_bytes()) == RECORDS
    assert capsys.readouterr().err.endswith(
        ": 10 packets received, - dropped by kernel, 0 late\n"
    )


def test_the_table_is_for_terminals(served, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert run_job(config(served, output=tmp_path / "out")) is ExitCode.OK
    assert "held" in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert run_job(config(served, output=tmp_path / "out", quiet=True)) is ExitCode.OK
    assert terminal.getvalue() == ""


def test_files(tmp_path, capsys):
    paths = []
    for n in range(2):
        paths.append(tmp_path / f"{n}")
        paths[-1].write_bytes(pcap(RECORDS[n::2]))
    out = tmp_path / "out"
    assert run_job(config(*paths, output=out)) is ExitCode.OK
    assert parse_pcap(out.read_bytes()) == RECORDS
    assert "all: 10 packets received, 0 late" in capsys.readouterr().err
    assert run_job(config(*paths, output=out, quiet=True)) is ExitCode.OK
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pcap([]), Precision.MICRO),
        (pcap([], byte_order=">"), Precision.MICRO),
        (pcap([], nano=True), Precision.NANO),
        (pcapng([]), Precision.NANO),
    ],
)
def test_the_precision_of_files(tmp_path, data, expected):
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "y").write_bytes(pcap([]))
    assert job._finest_precision(config(tmp_path / "x", tmp_path / "y")) is expected


def test_the_precision_of_what_cannot_be_seen(tmp_path, monkeypatch):
    assert job._finest_precision(config("http://a")) is Precision.MICRO
    assert job._finest_precision(config("-")) is Precision.NANO
    assert job._finest_precision(config(tmp_path / "none")) is Precision.MICRO
    assert job._finest_precision(config("x" * 5000)) is Precision.MICRO
    os.mkfifo(tmp_path / "fifo")
    assert job._finest_precision(config(tmp_path / "fifo")) is Precision.NANO


def test_the_output_is_no_input(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(pcap(RECORDS))
    other = tmp_path / "y"
    os.link(path, other)
    with pytest.raises(UsageError, match="is the output as well"):
        run_job(config(tmp_path / "none", path, output=other))
    assert path.read_bytes() == pcap(RECORDS)
    with path.open("rb") as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            with pytest.raises(UsageError, match="- is the output as well"):
                run_job(config("-", output=path))
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def test_the_loop():
    assert job._loop_factory(config("a", "b")) is None
    assert job._loop_factory(config("a", "http://b")) is uvloop.new_event_loop


@pytest.mark.parametrize(
    ("limits", "needed", "expected"),
    [
        ((100, 1000), 50, None),
        ((100, 1000), 500, (500, 1000)),
        ((100, 1000), 5000, (1000, 1000)),
        ((100, resource.RLIM_INFINITY), 5000, (5000, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 5000, None),
    ],
)
def test_the_limit_of_descriptors(monkeypatch, limits, needed, expected):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, value: given.append(value))
    job._raise_descriptor_limit(needed)
    assert given == ([] if expected is None else [expected])


def loaded(*words):
    """Return the modules that a run loads."""
    script = "import sys; sys.path.append(sys.argv[1]); from ddump_merger.cli import main; main(sys.argv[2:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "", *map(str, words)],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_only_what_is_needed_is_loaded(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pcap(RECORDS))
    heavy = {"aiohttp", "uvloop", "rich", "ddump_worker", "pylibpcap"}
    assert not heavy & loaded("-w", "/dev/null", path)
    assert heavy & loaded("-w", "/dev/null", "http://127.0.0.1:1") == {
        "aiohttp",
        "uvloop",
    }


def test_the_package_is_light():
    script = "import ddump_merger, sys; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert not {"asyncio", "aiohttp", "click", "ddump_worker", "pylibpcap"} & set(
        modules
    )


@pytest.mark.parametrize("shown", [False, True])
async def test_the_second_signal_ends_the_process(monkeypatch, shown):
    done = []

    class Parts:
        interrupted = False

        def interrupt(self):
            self.interrupted = True

        def stop(self):
            done.append("table removed")

    handlers = {}
    monkeypatch.setattr(
        asyncio.get_running_loop(), "add_signal_handler",
        lambda number, handler, *args: handlers.update({number: (handler, args)}),
        raising=False,
    )  # fmt: skip
    monkeypatch.setattr(signal, "signal", lambda *args: done.append(args))
    monkeypatch.setattr(os, "kill", lambda *args: done.append(args))
    parts = Parts()
    job._stop_on_signals(parts, parts if shown else None)
    assert set(handlers) == {signal.SIGINT, signal.SIGTERM}
    for handler, args in handlers.values():
        handler(*args)
    assert parts.interrupted
    assert done == [
        *(["table removed"] if shown else []),
        (signal.SIGTERM, signal.SIG_DFL),
        (os.getpid(), signal.SIGTERM),
    ]


def test_interrupted_before_it_began_it_leaves_no_file(tmp_path):
    (tmp_path / "in").write_bytes(pcap(RECORDS))
    program = (
        "import signal, sys, ddump_merger.job as job\n"
        "from ddump_merger.cli import main\n"
        # Who starts tests in the background may have SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "job._import_parts = lambda _: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-w", tmp_path / "out", tmp_path / "in"],
        check=False, capture_output=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
