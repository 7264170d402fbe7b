"""One run of ``ddump`` against workers on a network: watched, ended, and its account."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from support import commands, traffic, workers
from support.programs import status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from support.namespaces import Host, Network

SECOND = 10**9
HEADER = 24
RECORD_HEADER = 16
PACKET = 6  # the type of a pcapng block

Record = tuple[int, int, bytes]
"""A timestamp in nanoseconds, a length on the wire, the bytes kept."""


class Growing:
    """The records of a capture in nanoseconds that is still being written."""

    def __init__(self, *, pcapng: bool) -> None:
        self.records: list[Record] = []
        self._pcapng = pcapng
        self._rest = bytearray()
        self._begun = pcapng

    def receive_data(self, data: bytes) -> None:
        self._rest += data
        at = 0
        if not self._begun and len(self._rest) >= HEADER:
            assert self._rest[:4] == b"\x4d\x3c\xb2\xa1"
            self._begun, at = True, HEADER
        if self._begun:
            take = self._take_block if self._pcapng else self._take_record
            while size := take(at):
                at += size
        del self._rest[:at]

    def receive_eof(self) -> None:
        assert not self._rest, "the last record is not whole"

    def _take_record(self, at: int) -> int:
        """Take what begins there; return its size, 0 when it is not whole."""
        if len(self._rest) < at + RECORD_HEADER:
            return 0
        seconds, fraction, size, length = struct.unpack_from("<IIII", self._rest, at)
        data = self._rest[at + RECORD_HEADER : at + RECORD_HEADER + size]
        if len(data) < size:
            return 0
        self.records.append((seconds * SECOND + fraction, length, bytes(data)))
        return RECORD_HEADER + size

    def _take_block(self, at: int) -> int:
        if len(self._rest) < at + 8:
            return 0
        kind, size = struct.unpack_from("<II", self._rest, at)
        if len(self._rest) < at + size:
            return 0
        if kind == PACKET:
            _, high, low, caplen, length = struct.unpack_from(
                "<IIIII", self._rest, at + 8
            )
            data = self._rest[at + 28 : at + 28 + caplen]
            self.records.append((high << 32 | low, length, bytes(data)))
        return size


@dataclass(frozen=True, slots=True)
class Account:
    """How a run ended, and what its report says."""

    code: int
    said: str
    records: list[Record]
    report: dict

    def target(self, name: str) -> dict:
        """Return what the report says of one target."""
        (found,) = [each for each in self.report["targets"] if each["name"] == name]
        return found


@dataclass
class Run:
    """``ddump`` while it runs; ``records`` are those that it has written so far."""

    process: asyncio.subprocess.Process
    folder: Path
    _capture: Growing
    said: list[str] = field(default_factory=list)
    _read: int = 0

    @property
    def output(self) -> Path:
        """The capture."""
        return self.folder / "output"

    @property
    def records(self) -> list[Record]:
        if self.output.exists():
            with self.output.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            self._read += len(data)
            self._capture.receive_data(data)
        return self._capture.records

    async def until(self, packets: int, *, seconds: float = 20) -> None:
        """Wait until as many packets are in the output."""
        try:
            await workers.wait_until(
                lambda: len(self.records) >= packets, seconds=seconds
            )
        except TimeoutError:
            raise AssertionError(f"{len(self.records)} of {packets}") from None

    async def until_said(
        self, words: str, *, times: int = 1, seconds: float = 20
    ) -> None:
        """Wait until it has said something, in so many lines."""
        try:
            await workers.wait_until(
                lambda: sum(words in line for line in self.said) >= times,
                seconds=seconds,
            )
        except TimeoutError:
            raise AssertionError(f"{words!r} was not said {times} times") from None

    async def ended(self, *, seconds: float = 20) -> Account:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            await self.process.wait()
            await self._collected.wait()
        records = self.records
        self._capture.receive_eof()
        said = "".join(self.said)
        assert not any(word in said for word in commands.COMPLAINTS), said
        report = json.loads((self.folder / "report.json").read_bytes())
        return Account(self.process.returncode, said, records, report)

    async def interrupted(self, **options) -> Account:
        """Have it end, and wait for that."""
        self.process.send_signal(signal.SIGINT)
        return await self.ended(**options)

    def __post_init__(self) -> None:
        self._collected = asyncio.Event()

    async def collect(self) -> None:
        """Take what it says until it ends."""
        while line := await self.process.stderr.readline():
            self.said.append(line.decode())
        self._collected.set()


@contextlib.asynccontextmanager
async def run(
    host: Host, folder: Path, *arguments: object, pcapng: bool = False
) -> AsyncIterator[Run]:
    """Run ``ddump`` in ``host`` until the body is done, killed if it still runs then."""
    form = ["--precision", "nano", *(["--format", "pcapng"] if pcapng else [])]
    process = await asyncio.create_subprocess_exec(
        *host.command(*commands.COMMAND, *form),
        "--report",
        str(folder / "report.json"),
        "-w",
        str(folder / "output"),
        *map(str, arguments),
        stderr=asyncio.subprocess.PIPE,
        env=commands.environment(),
    )
    running = Run(process, folder, Growing(pcapng=pcapng))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.collect())
            try:
                yield running
            except BaseException as exc:
                exc.add_note(f"ddump said:\n{''.join(running.said)}")
                raise
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
    finally:
        await process.wait()


async def streaming(
    host: Host, urls: Iterable[str], *, running: int = 1, seconds: float = 10
) -> None:
    """Wait until each worker has so many streams; it is asked from ``host``."""
    for url in urls:
        await workers.wait_until(
            lambda url=url: _streams(host, url).get("running", 0) == running,
            seconds=seconds,
        )


def _streams(host: Host, url: str) -> dict:
    with host.entered():
        return status(url)["states"]


async def delivered(host: Host, url: str, sent: int, *, seconds: float = 20) -> int:
    """Wait until the worker's one stream has brought, or lost, what was sent.

    Returns how many packets it has brought. The worker is asked from ``host``.
    """
    packets = 0

    def is_all() -> bool:
        nonlocal packets
        with host.entered():
            (stream,) = status(url)["streams"]
        packets = stream["packets"]
        return packets + stream["dropped"] + stream["skipped"] >= sent

    await workers.wait_until(is_all, seconds=seconds)
    return packets


@contextlib.contextmanager
def stopped(process: asyncio.subprocess.Process) -> Iterator[None]:
    """Have a process do nothing until the body is done."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def worker(
    host: Host, *options: object, listen: Iterable[str] = (), **given
) -> AsyncIterator[workers.Worker]:
    """Run a worker on ``host``; ``given`` as for ``workers.worker``."""
    async with workers.worker(
        "--allow-plaintext",
        *map(str, options),
        listen=listen or [f"{host.address}:8475"],
        prefix=host.command(),
        **given,
    ) as started:
        yield started


async def generate(
    net: Network, interface: str, host: Host, packets: int, *, pace: int, size: int = 58
) -> None:
    """Send UDP packets with ``size`` bytes of data on an interface of the client.

    Evenly: trafgen would send those of a second at once.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sent.pcap")
        traffic.write_capture(
            path, [traffic.frame(net.client, host, size * b"A", number=1)]
        )
        sender = traffic.replay(
            net.client, interface, path, packets_per_second=pace, times=packets
        )
        try:
            _, complaint = await asyncio.to_thread(sender.communicate)
        finally:
            sender.kill()  # nothing, when it has ended
            sender.wait()
    assert sender.returncode == 0, complaint


@contextlib.asynccontextmanager
async def tcpdump(
    host: Host, path: Path, packets: int, *, interface: str = "any"
) -> AsyncIterator[None]:
    """Record the test's packets on ``host`` until there are so many; all must be taken.

    On ``any`` it is SLL. To be started after what it is compared with: then the kernel stamps once for both.
    """
    process = await asyncio.create_subprocess_exec(
        *host.command(
            "tcpdump", "-Z", "root", "-i", interface, "-B", "65536",
            *(["-y", "LINUX_SLL"] if interface == "any" else []),
            "--time-stamp-precision", "nano", "-c", str(packets), "-w", str(path),
            traffic.FILTER,
        ),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        while b"listening on" not in (line := await process.stderr.readline()):
            assert line, "tcpdump did not start"
        yield
        async with asyncio.timeout(20):
            _, said = await process.communicate()
        assert b"\n0 packets dropped by kernel" in said, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
