"""``--report``: written whatever happens, over nothing that matters."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from ddump_common.errors import ExitCode, OutputError, UsageError
from ddump_merger.config import Config
from ddump_merger.counters import Counters
from ddump_merger.reporter import Reporter
from ddump_merger.target import parse_target
from support.captures import Record, parse_pcap, pcap
from support.commands import COMMAND, environment, run, started
from support.servers import answer, capture, refusing_port, serving

START = 1_700_000_000_000_000_000
RECORDS = [Record(START + n, b"packet") for n in range(3)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(RECORDS))
    return path


@pytest.fixture
def report(tmp_path):
    return tmp_path / "report.json"


def configured(source, report):
    return Config(targets=(parse_target(str(source)),), report=report)


@pytest.mark.parametrize(
    ("raised", "code", "error"),
    [
        (OutputError("full"), 5, "full"),
        (BrokenPipeError(), 0, "the reader of the output has gone"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (BaseExceptionGroup("", [OutputError("full"), LookupError("x")]), 5,
         "full; LookupError"),
    ],
)  # fmt: skip
def test_it_tells_what_ended_the_run(source, report, raised, code, error):
    with pytest.raises(type(raised)), Reporter(configured(source, report)):
        raise raised
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["error"]) == (code, error)
    assert [each["name"] for each in told["targets"]] == [str(source)]


def test_it_tells_how_the_run_ended(source, report):
    with Reporter(configured(source, report)) as reporter:
        reporter.watch([], lambda _: Counters())
        assert reporter.end(ExitCode.INCOMPLETE) is ExitCode.INCOMPLETE
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["error"], told["targets"]) == (4, None, [])


def test_without_one_nothing_is_written(source, tmp_path):
    with Reporter(configured(source, None)) as reporter:
        assert reporter.output is None
    assert list(tmp_path.iterdir()) == [source]


def test_a_new_one_is_removed_after_wrong_usage(source, report):
    reporter = Reporter(configured(source, report))
    assert report.exists()
    with pytest.raises(UsageError), reporter:
        raise UsageError("wrong")
    assert not report.exists()


def test_where_there_is_no_room(source, caplog):
    full = configured(source, Path("/dev/full"))
    message = "cannot write /dev/full: No space"
    with pytest.raises(OutputError, match=message), Reporter(full):
        pass
    with pytest.raises(BrokenPipeError), Reporter(full):
        raise BrokenPipeError
    assert "cannot write /dev/full" in caplog.text


async def test_of_a_run_that_went_well(tmp_path, source, report):
    report.write_text("older, and longer than what comes" * 1000)
    out = tmp_path / "out.pcap"
    done = await run("--report", report, "-w", out, f"{source}")
    assert done.code == 0, done.err
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["error"], told["output"]) == (0, None, str(out))
    assert told["begun_ns"] < told["ended_ns"]
    assert told["totals"]["packets"] == 3
    (target,) = told["targets"]
    assert (target["file"], target["outcome"]) == (str(source), "complete")
    assert len(parse_pcap(out.read_bytes())) == 3


async def test_of_targets_that_were_not_all_there(source, report):
    gone = f"gone=http://alice:secret@127.0.0.1:{refusing_port()}"
    async with serving(answer("401 Unauthorized")) as server:
        done = await run("--report", report, gone, f"shut={server.url}", f"{source}")
    assert done.code == 4
    text = report.read_text()
    assert "secret" not in text
    assert "alice" not in text
    told = json.loads(text)
    assert told["exit_code"] == 4
    assert [each["outcome"] for each in told["targets"]] == [
        "not captured", "not captured", "complete",
    ]  # fmt: skip
    assert told["targets"][0]["error"] == "connection refused"
    assert told["targets"][1]["error"].startswith("401")


async def test_of_a_run_in_which_no_target_was_opened(tmp_path, report):
    done = await run(
        "--report", report, "-w", tmp_path / "out.pcap",
        f"http://127.0.0.1:{refusing_port()}",
    )  # fmt: skip
    assert done.code == 3
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["totals"]["captured"]) == (3, 0)
    assert not (tmp_path / "out.pcap").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_of_a_run_that_was_interrupted(report, number):
    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(pcap(RECORDS))
        sent.set()
        await exchange.gone()

    sent = asyncio.Event()
    async with (
        serving(script) as server,
        started("--report", report, "--hold", "10ms", f"web={server.url}") as process,
    ):
        async with asyncio.timeout(20):
            await sent.wait()
            data = await process.stdout.readexactly(24 + 3 * (16 + 6))
            process.send_signal(number)
            rest, err = await process.communicate()
        assert process.returncode == 0, err
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["error"]) == (0, None)
    assert told["totals"]["packets"] == 3
    assert len(parse_pcap(data + rest)) == 3


async def test_of_a_run_whose_reader_has_gone(source, report):
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--report", report, source, stdout=writer, env=environment(),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert process.returncode == 0, err
    told = json.loads(report.read_text())
    assert told["exit_code"] == 0
    assert told["error"] == "the reader of the output has gone"


async def test_of_a_run_whose_output_failed(source, report):
    done = await run("--report", report, "-w", "/dev/full", source)
    assert done.code == 5
    told = json.loads(report.read_text())
    assert told["exit_code"] == 5
    assert told["error"] == "cannot write /dev/full: No space left on device"
    assert done.err.count("cannot write") == 1


async def test_of_a_run_whose_output_cannot_be_opened(tmp_path, source, report):
    done = await run("--report", report, "-w", tmp_path / "none" / "out", source)
    assert done.code == 5
    told = json.loads(report.read_text())
    assert "No such file" in told["error"]
    assert [each["outcome"] for each in told["targets"]] == ["not captured"]


async def test_one_that_cannot_be_opened_is_told_before_anything_is_tried(
    tmp_path, source
):
    async with serving(capture([pcap(RECORDS)])) as server:
        done = await run(
            "--report", tmp_path / "none" / "r.json", "-w", tmp_path / "out.pcap",
            server.url, source,
        )  # fmt: skip
    assert done.code == 5
    assert "r.json: No such file or directory" in done.err
    assert server.requests == []
    assert not (tmp_path / "out.pcap").exists()


async def test_one_that_cannot_be_written_is_an_error_of_its_own(tmp_path, source):
    done = await run("--report", "/dev/full", "-w", tmp_path / "out.pcap", source)
    assert done.code == 5
    assert "ddump: cannot write /dev/full: No space left on device" in done.err
    assert len(parse_pcap((tmp_path / "out.pcap").read_bytes())) == 3


async def test_one_that_cannot_be_written_hides_no_other_error(source):
    done = await run("--report", "/dev/full", "-w", "/dev/full", source)
    assert done.code == 5
    assert done.err.count("cannot write /dev/full") == 2


async def test_it_is_not_the_output(tmp_path, source):
    path = tmp_path / "both"
    done = await run("--report", path, "-w", path, source)
    assert done.code == 2
    assert f"{path} is the report as well" in done.err
    assert not path.exists()


async def test_it_is_not_an_input(source):
    before = source.read_bytes()
    done = await run("--report", source, "-w", source.parent / "new", source)
    assert done.code == 2
    assert "is the report as well" in done.err
    assert source.read_bytes() == before
    assert not (source.parent / "new").exists()


async def test_it_is_not_what_standard_input_is_read_from(source):
    before = source.read_bytes()
    with source.open("rb") as file:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "--report", source, "-", env=environment(), stdin=file,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    assert process.returncode == 2
    assert b"- is the report as well" in err
    assert source.read_bytes() == before


async def test_it_is_not_the_pipe_that_packets_go_to(source):
    done = await run("--report", "/dev/stdout", source)
    assert done.code == 2
    assert "standard output is the report as well" in done.err
    assert done.out == b""


async def test_standard_output_is_for_packets(source):
    done = await run("--report", "-", source)
    assert done.code == 2
    assert "--report" in done.err
    assert "/dev/stderr" in done.err
    assert done.out == b""


async def test_it_may_go_where_people_read(tmp_path, source):
    done = await run("-q", "--report", "/dev/stderr", "-w", tmp_path / "out", source)
    assert done.code == 0
    assert json.loads(done.err)["totals"]["packets"] == 3


async def test_after_wrong_usage_there_is_none(tmp_path, source, report):
    done = await run(
        "--report", report, "--ca", tmp_path / "none.pem", "https://127.0.0.1"
    )
    assert done.code == 2
    assert not report.exists()


async def test_what_nobody_foresaw_is_named(source, report):
    program = (
        "import sys, ddump_merger.job as job\n"
        "from ddump_merger.cli import main\n"
        "def broken(*_): raise LookupError('unforeseen')\n"
        "job.summary_lines = broken\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "--report", report, source, env=environment(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"LookupError: unforeseen" in err
    told = json.loads(report.read_text())
    assert (told["exit_code"], told["error"]) == (1, "LookupError")
    assert told["totals"]["packets"] == 3


async def test_a_pipe_that_nobody_reads_is_told_before_anything_is_tried(
    tmp_path, source
):
    os.mkfifo(tmp_path / "pipe")
    done = await run("--report", tmp_path / "pipe", "-w", tmp_path / "out.pcap", source)
    assert done.code == 5
    assert "pipe: nobody reads it (begin to read the pipe first)" in done.err
    assert not (tmp_path / "out.pcap").exists()


async def test_to_a_pipe_that_is_read(tmp_path, source):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    done = await run("--report", tmp_path / "pipe", source)
    assert done.code == 0
    told = json.loads(os.read(reader, 1 << 16))
    os.close(reader)
    assert told["totals"]["packets"] == 3


@pytest.mark.parametrize("before", [None, b"older"])
async def test_a_new_one_for_which_there_is_no_room_is_removed(source, report, before):
    if before is not None:
        report.write_bytes(before)
    small = ("prlimit", "--fsize=100")
    async with started("--report", report, source, prefix=small) as process:
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    assert process.returncode == 5
    assert f"cannot write {report}: File too large".encode() in err
    assert report.exists() == (before is not None)
