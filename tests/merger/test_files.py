"""Files, pipes and standard input through the command, judged by mergecap, tcpdump and
tshark."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess

import pytest

from support.captures import (
    Cooked,
    Record,
    parse_pcap,
    pcap,
    pcap_header,
    pcap_record,
    pcapng,
)
from support.commands import resident_kilobytes, run, started
from support.servers import capture, serving

pytestmark = pytest.mark.process

START = 1_700_000_000_000_000_000
COOKED = [
    Cooked(ifindex=n % 3 + 1, address=bytes([n] * 6 + [0, 0]), payload=bytes([n]) * 40)
    for n in range(60)
]
TIMES = [START + n * 1_000_000 for n in range(60)]
SLL_RECORDS = [Record(t, c.sll()) for t, c in zip(TIMES, COOKED, strict=True)]


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def tool(*command, stdin=None):
    return judged(*command, stdin=stdin).stdout


def judged(*command, stdin=None):
    return subprocess.run(command, input=stdin, capture_output=True, check=True)


# --- As mergecap does ---


@pytest.mark.parametrize("link_type", [1, 101, 113])
async def test_files_are_merged_as_mergecap_does(write, tmp_path, link_type):
    paths = []
    for number in range(5):
        records = [
            Record(
                START + (n * 5 + number) * 7_000,
                bytes([number]) * (n % 90 + 20),
                n + 200,
            )
            for n in range(400)
        ]
        data = pcap(records, link_type=link_type)
        paths.append(write(f"{number}.pcap", data))
    merged = tmp_path / "merged.pcap"
    tool("mergecap", "-F", "pcap", "-w", merged, *paths)
    result = await run(*paths)
    assert result.code == 0
    assert result.out == merged.read_bytes()
    lines = result.err.splitlines()
    assert lines[0] == f"{paths[0]}: 400 packets received, 0 late"
    assert lines[-1] == "all: 2000 packets received, 0 late"


async def test_one_file(write):
    path = write("a.pcap", pcap(SLL_RECORDS))
    result = await run(path)
    assert result.out == path.read_bytes()
    assert result.err == f"{path}: 60 packets received, 0 late\n"


async def test_to_a_file(write, tmp_path):
    path = write("a.pcap", pcap(SLL_RECORDS))
    out = write("out.pcap", b"longer than what is written" * 1000)
    result = await run("-w", out, path)
    assert result.code == 0
    assert result.out == b""
    assert out.read_bytes() == path.read_bytes()


async def test_to_standard_output_by_name(write):
    path = write("a.pcap", pcap(SLL_RECORDS))
    result = await run("-w", "-", path)
    assert result.out == path.read_bytes()


# --- Every variant ---


def sll2(records, cooked):
    return [
        Record(r.timestamp_ns, c.sll2()) for r, c in zip(records, cooked, strict=True)
    ]


async def test_every_variant_at_once(write):
    r, c = SLL_RECORDS, COOKED
    paths = [
        write("le", pcap(r[0::6])),
        write("be", pcap(r[1::6], byte_order=">")),
        write("le-ns", pcap(r[2::6], nano=True)),
        write("be-ns", pcap(r[3::6], byte_order=">", nano=True)),
        write("ng", pcapng(r[4::6])),
        write("sll2", pcap(sll2(r[5::6], c[5::6]), link_type=276)),
    ]
    result = await run(*paths)
    assert result.code == 0, result.err
    assert result.out[:24] == pcap_header(nano=True)  # some of them are that fine
    assert parse_pcap(result.out) == r


async def test_sll2_on_request(write):
    half = [c for n, c in enumerate(COOKED) if n % 2]
    paths = [
        write("sll", pcap(SLL_RECORDS[0::2])),
        write("sll2", pcap(sll2(SLL_RECORDS[1::2], half), link_type=276)),
    ]
    result = await run("--link", "sll2", *paths)
    assert result.code == 0
    assert result.out[:24] == pcap_header(link_type=276)
    records = parse_pcap(result.out)
    assert len(records) == 60
    assert records[1::2] == sll2(SLL_RECORDS[1::2], half)


@pytest.mark.parametrize(
    ("options", "nano"), [([], True), (["--precision", "micro"], False)]
)
async def test_nothing_is_cut_unasked(write, options, nano):
    records = [Record(START + 1, b"a"), Record(START + 2, b"b")]
    result = await run(*options, write("ns", pcap(records, nano=True)))
    assert result.out[:24] == pcap_header(nano=nano)
    assert [r.timestamp_ns - START for r in parse_pcap(result.out)] == (
        [1, 2] if nano else [0, 0]
    )


async def test_nanoseconds_on_request(write):
    result = await run("--precision", "nano", write("a", pcap(SLL_RECORDS)))
    assert result.out == pcap(SLL_RECORDS, nano=True)


# --- Link types that differ ---


async def test_a_dissenter_is_refused_by_name(write):
    ethernet = [
        write(f"eth{n}", pcap([Record(START + n, b"e")], link_type=1)) for n in (0, 1)
    ]
    cooked = write("cooked", pcap(SLL_RECORDS))
    result = await run(ethernet[0], cooked, ethernet[1])
    assert result.code == 4
    assert result.out[:24] == pcap_header(link_type=1)
    assert [r.data for r in parse_pcap(result.out)] == [b"e", b"e"]
    assert f"ddump: {cooked}: its packets have link type LINUX_SLL" in result.err
    assert f"\n{cooked}: not captured: " in result.err
    assert result.err.count("not captured") == 1


async def test_of_equals_the_first_decides(write):
    one = write("one", pcap([Record(START, b"1")], link_type=101))
    two = write("two", pcap([Record(START, b"2")], link_type=1))
    result = await run(one, two)
    assert result.code == 4
    assert parse_pcap(result.out) == [Record(START, b"1")]
    result = await run(two, one)
    assert parse_pcap(result.out) == [Record(START, b"2")]


async def test_a_large_dissenter_is_not_read_to_its_end(write):
    big = write("big", pcap([Record(START, bytes(100_000))] * 100, link_type=1))
    cooked = [write(f"cooked{n}", pcap(SLL_RECORDS)) for n in range(2)]
    result = await run(big, *cooked)
    assert result.code == 4
    assert len(parse_pcap(result.out)) == 120


async def test_beside_a_worker_the_output_is_cooked(write):
    ethernet = write("ethernet", pcap(SLL_RECORDS, link_type=1))
    cooked = write("cooked", pcap(SLL_RECORDS[0::2]))
    async with serving(capture([pcap(SLL_RECORDS[1::2])])) as server:
        result = await run(ethernet, cooked, server.url)
    assert result.code == 4
    assert parse_pcap(result.out) == SLL_RECORDS
    assert f"ddump: {ethernet}: " in result.err


# --- What cannot be read ---


async def test_a_file_that_is_missing(write, tmp_path):
    path = write("a", pcap(SLL_RECORDS))
    result = await run(path, tmp_path / "none")
    assert result.code == 4
    assert f"ddump: {tmp_path}/none: no such file or directory" in result.err
    assert parse_pcap(result.out) == SLL_RECORDS


@pytest.mark.parametrize(
    "data", [b"", b"\xd4\xc3", b"GIF89a" * 10, gzip.compress(b"x" * 100, mtime=0)]
)
async def test_a_file_that_is_no_capture(write, data):
    path = write("a", data)
    result = await run(path)
    assert result.code == 3
    assert result.out == b""
    assert f"ddump: {path}: " in result.err


async def test_a_folder(tmp_path):
    result = await run(tmp_path)
    assert result.code == 3
    assert f"ddump: {tmp_path}: cannot be read: Is a directory" in result.err


@pytest.mark.parametrize("cut", [1, 16, 20])
async def test_a_file_that_ends_in_the_middle(write, cut):
    path = write("a", pcap(SLL_RECORDS)[:-cut])
    result = await run(path)
    assert result.code == 4
    assert parse_pcap(result.out) == SLL_RECORDS[:-1]
    assert f"\n{path}: 59 packets received, 0 late, truncated: " in result.err


async def test_names_are_made_printable(write, tmp_path):
    result = await run(tmp_path / "no\x1b[31mne\n")
    assert result.code == 3
    assert "\x1b" not in result.err
    assert r"no\x1b[31mne\x0a" in result.err


async def test_the_same_file_twice(write):
    path = write("a", pcap(SLL_RECORDS))
    result = await run(path, path)
    assert result.code == 0
    assert len(parse_pcap(result.out)) == 120
    assert f"{path}#2: 60 packets received" in result.err


@pytest.mark.parametrize("to", ["-w", "redirect"])
async def test_the_output_is_never_an_input(write, to):
    path = write("a", pcap(SLL_RECORDS))
    before = path.read_bytes()
    if to == "-w":
        result = await run("-w", path, path)
        code, err = result.code, result.err
    else:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        async with started(path, stdout=fd) as process:
            os.close(fd)
            _, said = await process.communicate()
        code, err = process.returncode, said.decode()
    assert code == 2
    assert "is the output as well" in err
    assert path.read_bytes() == before


async def test_without_a_target_that_opens_a_file_stays_as_it_was(write, tmp_path):
    out = write("out", b"precious")
    result = await run("-w", out, tmp_path / "none")
    assert result.code == 3
    assert out.read_bytes() == b"precious"
    result = await run("-w", tmp_path / "new", tmp_path / "none")
    assert result.code == 3
    assert not (tmp_path / "new").exists()


# --- Pipes ---


async def test_standard_input():
    result = await run("-", stdin=pcap(SLL_RECORDS))
    assert result.code == 0
    assert parse_pcap(result.out) == SLL_RECORDS
    assert result.err == "-: 60 packets received, 0 late\n"


async def test_standard_input_beside_a_file(write):
    path = write("a", pcap(SLL_RECORDS[0::2]))
    result = await run(path, "-", stdin=pcap(SLL_RECORDS[1::2]))
    assert result.code == 0
    assert parse_pcap(result.out) == SLL_RECORDS


async def test_standard_input_once():
    result = await run("-", "-", stdin=b"")
    assert result.code == 2
    assert "standard input can be only one of the targets" in result.err


async def test_a_pipe_by_name(write):
    """As the shell's <(command) gives it."""
    reader, writer = os.pipe()
    os.write(writer, pcap(SLL_RECORDS[1::2]))
    os.close(writer)
    path = write("a", pcap(SLL_RECORDS[0::2]))
    async with started(f"/dev/fd/{reader}", path, pass_fds=(reader,)) as process:
        os.close(reader)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert parse_pcap(out) == SLL_RECORDS


async def test_a_fifo_that_gets_its_writer_later(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    async with started(path) as process:

        def feed():
            with path.open("wb") as fifo:
                fifo.write(pcap(SLL_RECORDS))

        await asyncio.to_thread(feed)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert parse_pcap(out) == SLL_RECORDS


async def test_a_silent_pipe_ends_as_truncated():
    async with started("--timeout", "300ms", "-", stdin=True) as process:
        process.stdin.write(pcap(SLL_RECORDS))
        await process.stdin.drain()
        async with asyncio.timeout(5):
            assert await process.stdout.read() == pcap(SLL_RECORDS, nano=True)
            err = await process.stderr.read()
            await process.wait()
    assert process.returncode == 4
    assert b"ddump: -: nothing came for 300ms (see --timeout)" in err


async def test_an_interrupt_ends_the_wait_for_a_pipe():
    async with started("-", stdin=True) as process:
        process.stdin.write(pcap_header() + pcap_record(SLL_RECORDS[0]))
        await process.stdin.drain()
        async with asyncio.timeout(5):
            assert await process.stdout.readexactly(24) == pcap_header(nano=True)
            process.send_signal(2)
            out = await process.stdout.read()
            await process.wait()
    assert process.returncode == 0
    assert parse_pcap(pcap_header(nano=True) + out) == SLL_RECORDS[:1]


async def test_a_file_waits_for_a_worker_that_connects(write):
    """What the worker has is merged in, though it takes its time to answer."""

    async def script(exchange):
        await asyncio.sleep(0.6)  # longer than the hold
        await capture([pcap(SLL_RECORDS[1::2])])(exchange)

    path = write("a", pcap(SLL_RECORDS[0::2]))
    async with serving(script) as server:
        result = await run("--hold", "200ms", path, server.url)
    assert result.code == 0
    assert parse_pcap(result.out) == SLL_RECORDS
    assert result.err.count(", 0 late") == 3


# --- Formats ---


async def test_pcapng_names_the_target_of_every_packet(write, tmp_path):
    path = write("a.pcap", pcap(SLL_RECORDS[0::3]))
    out = tmp_path / "out.pcapng"
    async with (
        serving(capture([pcap(SLL_RECORDS[1::3])])) as one,
        serving(capture([pcap(SLL_RECORDS[2::3])])) as two,
    ):
        result = await run(
            "--format", "pcapng", "-w", out,
            path, f"web1={one.url}?filter=udp port 53", two.url,
        )  # fmt: skip
    assert result.code == 0
    fields = tool(
        "tshark", "-r", out, "-Tfields",
        "-eframe.interface_name", "-eframe.time_epoch", "-eframe.cap_len",
    )  # fmt: skip
    expected = [
        f"{(path, 'web1', '127.0.0.1')[n % 3]}\t{t // 10**9}.{t % 10**9:09}\t56"
        for n, t in enumerate(TIMES)
    ]
    assert fields.decode().splitlines() == expected
    read = judged("tcpdump", "-nr", out)
    assert len(read.stdout.splitlines()) == 60
    assert b"LINUX_SLL" in read.stderr
    assert b"snapshot length 262144" in read.stderr
    infos = tool("capinfos", "-I", out).decode()
    assert "Number of interfaces in file: 3" in infos
    assert "Capture length = 262144" in infos
    assert "Filter string = udp port 53" in infos


async def test_classic_pcap_is_read_by_all(write, tmp_path):
    path = write("a.pcap", pcap(SLL_RECORDS))
    result = await run(path)
    read = judged("tcpdump", "-nr-", stdin=result.out)
    assert len(read.stdout.splitlines()) == 60
    assert b"snapshot length 262144" in read.stderr
    assert len(tool("tshark", "-r-", stdin=result.out).splitlines()) == 60


# --- Size ---


async def test_memory_does_not_grow_with_the_files(tmp_path):
    """Four files of 60 MB are merged by a process that never has 75 MB."""
    records = [Record(0, bytes(1000))] * 100
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.pcap"
        with path.open("wb") as file:
            file.write(pcap_header())
            for at in range(0, 60_000, 100):
                file.write(
                    b"".join(
                        pcap_record(Record(START + (at + n) * 1_000_000, each.data))
                        for n, each in enumerate(records)
                    )
                )
        paths.append(path)
    whole = 24 + 4 * 60_000 * 1016
    reader, writer = os.pipe()
    size = most = 0
    async with started(*paths, stdout=writer) as process:
        os.close(writer)
        while piece := await asyncio.to_thread(os.read, reader, 1 << 20):
            size += len(piece)
            if (
                whole // 2 < size < whole - (1 << 20)
            ):  # it has more to write: it is there
                most = max(most, resident_kilobytes(process.pid))
        os.close(reader)
        await process.wait()
    assert size == whole
    assert 0 < most < 75_000


async def test_many_files(write):
    paths = [
        write(f"{n}", pcap([Record(START + (k * 300 + n) * 1000) for k in range(10)]))
        for n in range(300)
    ]
    result = await run(*paths)
    assert result.code == 0
    times = [r.timestamp_ns for r in parse_pcap(result.out)]
    assert times == [START + n * 1000 for n in range(3000)]
