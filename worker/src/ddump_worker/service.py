"""The worker's process: what is started in which order, and ended in the reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from ddump_common.errors import CaptureError, DdumpError, UsageError
from ddump_common.pcap import MAX_SNAPLEN, LinkType

from .access import Access
from .app import create_app
from .capabilities import keep_only_net_raw
from .capacity import Capacity
from .capture import Captures
from .connections import MAX_WAITING, Connections
from .core import Core
from .door import Door
from .exclusion import Exclusion, Service
from .filters import FilterCompiler
from .gate import MAX_SPARES, Gate
from .interfaces import interfaces
from .listen import Listener, TcpAddress
from .metrics import Metrics
from .notify import Notifier
from .promiscuous import Promiscuous
from .recording import record
from .streams import Streams
from .vetting import vet_exclusions, vet_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import Config
    from .recording import Recording

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_STREAM_GRACE_SECONDS = 3.0
_CUT_GRACE_SECONDS = 0.5
_WATCH_SECONDS = 5.0

# Open files: of the process itself, with helpers, listeners and connections that are
# being turned away; and of a stream beside its connection.
_FILES = 256
_FILES_PER_STREAM = 2
# With fewer connections than that, if they are asked for, no worker starts.
_LEAST_CONNECTIONS = 512
# Of each segment, by each of the threads that read windows, and once it is evicted.
_FILES_PER_SEGMENT = 5


async def serve(config: Config, *, announce: Callable[[str], None]) -> None:
    """Run a worker until SIGTERM or SIGINT.

    ``announce`` is called with each address, when all of them take requests.

    Raises:
        UsageError: what ``config`` says cannot be.
        CaptureError: this host cannot capture.

    """
    # At once: who ends a worker while it starts shall see it end in order as well.
    ending = asyncio.Event()
    hangup = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    notifier = Notifier()
    # The group is left without an exception: before Python 3.11.4 one that a task of it
    # raises leaves this one cancelled, and what follows it could not wait with a timeout.
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        work = tasks.create_task(
            _work(config, stack, announce, notifier, hangup), name="work"
        )
        await ending.wait()
        _log.info("ending")
        await notifier.stopping()
        work.cancel()


async def _work(
    config: Config,
    stack: contextlib.AsyncExitStack,
    announce: Callable[[str], None],
    notifier: Notifier,
    hangup: asyncio.Event,
) -> None:
    """Start, then look after what runs; ended by being cancelled.

    With it ends what accepts connections.
    """
    async with asyncio.TaskGroup() as tasks:
        core = await _start(config, stack, announce, tasks)
        await notifier.ready()
        tasks.create_task(_watch(core), name="watch")
        tasks.create_task(
            notifier.keep_alive(partial(_advances, core)), name="watchdog"
        )
        tasks.create_task(_reload(core, hangup, notifier), name="reload")


async def _start(
    config: Config,
    stack: contextlib.AsyncExitStack,
    announce: Callable[[str], None],
    tasks: asyncio.TaskGroup,
) -> Core:
    """Return a worker that takes requests; ``stack`` ends it, also half-way."""
    max_connections = _allow_files(config)
    # First of all, whether this process may capture at all.
    stack.callback(Promiscuous(config.promiscuous).close)
    listeners = []
    for address in config.listen:
        listener = Listener(address, group=config.listen_group)
        stack.callback(listener.close)
        listeners.append(listener)
    # Ports below 1024 and groups of files may have needed more than that.
    keep_only_net_raw()
    # With no more rights than there will be when they are read again.
    door = await Door.open(config)
    filters = FilterCompiler()
    await vet_exclusions(config.exclude, filters)
    exclusion = _exclusion(config, listeners)
    recording = None
    if config.ring_dir is not None:
        # Before all that can wait: what is not recorded is never seen. It ends last.
        recording = await record(
            config.ring_options(config.ring_dir),
            exclusion=exclusion,
            filters=filters,
            max_windows=config.max_windows,
        )
        stack.push_async_callback(recording.stop)
    await vet_rules(config.access, filters, config)
    core = _core(config, door, exclusion, filters, recording, max_connections)
    stack.push_async_callback(core.captures.shutdown)
    runner = web.AppRunner(
        create_app(core),
        handler_cancellation=True,
        shutdown_timeout=_CUT_GRACE_SECONDS,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    # A filter that leaves out all of the worker's addresses may itself be too much.
    await filters.compile(
        "",
        exclusions=core.exclusion.expressions(interfaces()),
        link_type=LinkType.LINUX_SLL,
        snaplen=MAX_SNAPLEN,
    )
    server = runner.server
    assert server is not None  # noqa: S101 - set up before
    stack.push_async_callback(_end, core)
    gate = Gate(server, core.connections, context=lambda: door.context, tasks=tasks)
    for listener in listeners:
        gate.open(listener.socket)
        announce(listener.address.url(tls=door.context is not None))
    return core


def _exclusion(config: Config, listeners: Sequence[Listener]) -> Exclusion:
    return Exclusion(
        services=tuple(
            Service(address=each.address.host, port=each.address.port)
            for each in listeners
            if isinstance(each.address, TcpAddress)
        ),
        operator=config.exclude,
    )


def _core(
    config: Config,
    door: Door,
    exclusion: Exclusion,
    filters: FilterCompiler,
    recording: Recording | None,
    max_connections: int,
) -> Core:
    capacity = Capacity(
        max_streams=config.max_streams, max_memory=config.capture_memory
    )
    streams = Streams()
    connections = Connections(limit=max_connections)
    return Core(
        config=config,
        door=door,
        access=Access(config.access),
        captures=Captures(capacity=capacity, buffer_size=config.buffer_size),
        streams=streams,
        connections=connections,
        filters=filters,
        exclusion=exclusion,
        metrics=Metrics(
            streams=streams,
            connections=connections,
            capacity=capacity,
            recording=recording,
        ),
        started_ns=time.time_ns(),
        recording=recording,
    )


def _allow_files(config: Config) -> int:
    """Let this process open what it may need; return how many connections that is for.

    They are as many as was asked for, or fewer where the hard limit has no room for them.
    """
    others = _FILES_PER_STREAM * config.max_streams + MAX_WAITING + _FILES
    if config.tls_cert is not None:
        others += MAX_SPARES
    if config.ring_dir is not None:
        segments = config.ring_size // config.segment_size + 1
        others += _FILES_PER_SEGMENT * segments
    asked = config.max_connections
    # The soft limit of open files is often 1024, for programs that use select().
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = asked if hard == resource.RLIM_INFINITY else min(asked, hard - others)
    if most < min(asked, _LEAST_CONNECTIONS):
        raise UsageError(
            f"{min(asked, _LEAST_CONNECTIONS)} connections, {config.max_streams} streams "
            f"and the ring's segments may need {min(asked, _LEAST_CONNECTIONS) + others} "
            f"open files, and the process may have {hard}",
            hint="raise the limit (ulimit -n, LimitNOFILE=), allow fewer, or raise "
            "--segment-size",
        )
    if most < asked:
        _log.warning(
            "at most %d connections, not %d: the process may have %d open files",
            most,
            asked,
            hard,
        )
    if soft != resource.RLIM_INFINITY and soft < most + others:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + others, hard))
    return most


def _advances(core: Core) -> bool:
    return core.recording is None or core.recording.advances()


async def _reload(core: Core, hangup: asyncio.Event, notifier: Notifier) -> None:
    """Whenever ``hangup`` is set read the files again, and cut who does not hold."""
    while True:
        await hangup.wait()
        hangup.clear()
        await notifier.reloading()
        try:
            await core.reload()
        except DdumpError as exc:
            _log.error("nothing is changed: %s", exc)
        except Exception:  # noqa: BLE001 - whatever a file holds, all streams go on
            _log.exception("nothing is changed")
        else:
            revoked = core.connections.revoke(core.holds)
            what = "connection is" if revoked == 1 else "connections are"
            _log.info("read all files again, %d %s revoked", revoked, what)
        await notifier.ready()


async def _watch(core: Core) -> None:
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        core.connections.sweep()
        if expired := core.connections.revoke(core.holds):
            _log.info("cut by certificates that have expired: %d", expired)
        if core.recording is not None:
            try:
                await core.recording.refresh()
            except CaptureError as exc:
                _log.warning("what is recorded cannot be adapted: %s", exc)
        if len(core.streams):
            try:
                core.streams.refresh(interfaces())
            except CaptureError as exc:
                _log.warning("the counters could not be taken: %s", exc)


async def _end(core: Core) -> None:
    core.streams.stop()
    try:
        async with asyncio.timeout(_STREAM_GRACE_SECONDS):
            await core.streams.all_closed()
    except TimeoutError:
        _log.warning(
            "%d streams were cut: their clients take nothing", len(core.streams)
        )
    core.connections.abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CUT_GRACE_SECONDS):
            await core.streams.all_closed()
