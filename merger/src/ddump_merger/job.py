"""One run of the merge, wired: targets, merge, output, signals, what is shown.

Parts that only some runs need, the HTTP library and the live table, are imported when
they are: a merge of files starts in a third of the time.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import ExitCode, UsageError
from ddump_common.pcap import Precision

from ._merge import Merge
from .console import say
from .fanin import Fanin
from .header import OutputHeader, is_micro
from .lane import Lane
from .memory import keep_freed_memory
from .output import Output
from .reporter import Reporter
from .sink import Sink
from .source import FileReader, FileSource
from .summary import exit_code, summary_lines
from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Config
    from .progress import Progress
    from .reconnect import Peer
    from .source import Source
    from .target import FileTarget
    from .trust import Trust

# Read from files at a time, all together and for each: large enough that what a read
# costs does not count, small enough for hundreds of files.
_CHUNKS_BYTES = 16 << 20
_LEAST_CHUNK_BYTES = 64 << 10
_MOST_CHUNK_BYTES = 1 << 20

# What the process itself needs of descriptors, beside its targets.
_SPARE_DESCRIPTORS = 64


def run_job(config: Config) -> ExitCode:
    """Merge as ``config`` says and return the exit code.

    Raises:
        DdumpError: nothing could be begun.
        BaseExceptionGroup: the output failed under way.

    """
    with Reporter(config) as reporter:
        return reporter.end(_prepare(config, reporter))


def _prepare(config: Config, reporter: Reporter) -> ExitCode:
    """Open and import what the run needs, and run it."""
    keep_freed_memory()
    precision = config.precision or _finest_precision(config)
    _raise_descriptor_limit(len(config.targets) * 2 + _SPARE_DESCRIPTORS)
    trust = config.tls.trust(config.http_targets)
    with Output(config.output) as output:
        _check_not_input(config, output, reporter)
        _import_parts(config)
        # What is imported by now stays: not to be searched for garbage again and again.
        gc.freeze()
        with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            return runner.run(_run(config, output, precision, trust, reporter))


def _import_parts(config: Config) -> None:
    """Import what this run needs and others do not, before the loop would wait for it."""
    if config.http_targets:
        importlib.import_module(".peer", __package__)
    if _shows_table(config):
        importlib.import_module(".progress", __package__)


async def _run(
    config: Config,
    output: Output,
    precision: Precision,
    trust: Trust | None,
    reporter: Reporter,
) -> ExitCode:
    async with AsyncExitStack() as stack:
        merge = Merge(
            len(config.targets),
            disorder_ns=config.disorder_ns,
            pcapng=config.pcapng,
            nano=precision is Precision.NANO,
            per_interface=config.pcapng and config.link is Link.SLL2,
            max_packets=config.count,
        )
        lanes, peers = await _open_lanes(config, merge, trust, stack)
        reporter.watch(lanes, merge.counters)
        sink = Sink(output)
        header = OutputHeader(pcapng=config.pcapng, precision=precision)
        fanin = Fanin(config, merge, lanes, sink, header, peers=peers)
        progress = _progress(config, lanes, merge)
        _stop_on_signals(fanin, progress)
        async with asyncio.TaskGroup() as tasks:
            shown = None if progress is None else tasks.create_task(progress.run())
            await fanin.run()
            await sink.close()
            if shown is not None:
                shown.cancel()
    if not config.quiet:
        for line in summary_lines(lanes, merge):
            say(line)
    return exit_code(lanes)


async def _open_lanes(
    config: Config, merge: Merge, trust: Trust | None, stack: AsyncExitStack
) -> tuple[list[Lane], dict[int, Peer]]:
    """Return a lane per target, in their order, and those workers that there are.

    Nothing is opened yet.
    """
    sources: dict[str, Source] = {}
    workers: dict[str, Peer] = {}
    if config.file_targets:
        reader = stack.enter_context(_file_reader(config))
        for file in config.file_targets:
            sources[file.name] = FileSource(file, reader)
    if config.http_targets:
        from .peer import HttpPeer
        from .stream import open_session

        session = await stack.enter_async_context(open_session(trust))
        for worker in config.http_targets:
            peer = HttpPeer(
                worker, session, connect_timeout_ns=config.connect_timeout_ns
            )
            sources[worker.name] = peer.stream(worker)
            workers[worker.name] = peer
    now = asyncio.get_running_loop().time()
    lanes = []
    for index, target in enumerate(config.targets):
        live = isinstance(target, HttpTarget) and target.live
        merge.limit(index, config.buffer_bytes, live=live)
        lanes.append(
            Lane(
                index=index,
                target=target,
                source=sources[target.name],
                live=live,
                heard=now,
            )
        )
    peers = {lane.index: workers[lane.name] for lane in lanes if lane.name in workers}
    return lanes, peers


def _file_reader(config: Config) -> FileReader:
    count = len(config.file_targets)
    chunk = max(min(_CHUNKS_BYTES // count, _MOST_CHUNK_BYTES), _LEAST_CHUNK_BYTES)
    return FileReader(count, chunk_bytes=chunk, timeout_ns=config.timeout_ns)


def _progress(config: Config, lanes: list[Lane], merge: Merge) -> Progress | None:
    if not _shows_table(config):
        return None
    from .progress import Progress

    return Progress(lanes, merge)


def _shows_table(config: Config) -> bool:
    return not config.quiet and sys.stderr.isatty()


def _stop_on_signals(fanin: Fanin, progress: Progress | None) -> None:
    """End the run at the first signal, in order, and the process at the second."""

    def on_signal(number: int) -> None:
        if not fanin.interrupted:
            fanin.interrupt()
            return
        if progress is not None:
            progress.stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not config.http_targets:
        return None
    import uvloop

    return uvloop.new_event_loop


def _finest_precision(config: Config) -> Precision:
    """Return nanoseconds when a file may hold them: nothing is cut unasked."""
    if all(_is_micro(target) for target in config.file_targets):
        return Precision.MICRO
    return Precision.NANO


def _is_micro(target: FileTarget) -> bool:
    """Return whether nothing in the file can be finer, as far as can be seen now."""
    if target.is_standard_input:
        return False
    path = Path(target.path)
    try:
        if not path.is_file():
            return not path.exists()
        with path.open("rb") as file:
            return is_micro(file.read(4))
    except OSError:
        return True  # why it cannot be read is said when it is opened


def _check_not_input(config: Config, output: Output, reporter: Reporter) -> None:
    """Refuse what would be written over: an input, or the output by the report."""
    report = reporter.output
    if report is not None and report.is_same(output):
        raise UsageError(f"{output.name} is the report as well")
    for target in config.file_targets:
        try:
            status = (
                os.fstat(0) if target.is_standard_input else Path(target.path).stat()
            )
        except OSError:
            continue
        identity = status.st_dev, status.st_ino
        if identity == output.identity:
            raise UsageError(f"{target.name} is the output as well")
        if report is not None and identity == report.identity:
            raise UsageError(f"{target.name} is the report as well")


def _raise_descriptor_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
