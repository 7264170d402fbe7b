"""What this worker records: the ring, the capture that fills it, and who pulls from it.

The capture takes what the worker excludes nowhere else either, narrowed by the ring's
own filter and interfaces. Addresses and interfaces come and go: when they do, the
program is compiled anew and takes the place of the old one on the open socket, between
two packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ddump_common.errors import CaptureError, FilterError, UsageError

from ._pcap import Capture, attach_program
from .capture import open_handle
from .exclusion import only
from .interfaces import interfaces
from .recorder import Recorder
from .ring import Ring
from .window import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ddump_common.answers import RingInfo

    from .exclusion import Exclusion
    from .filters import FilterCompiler
    from .interfaces import Interface
    from .ring import RingOptions

__all__ = ["Recording", "check_interfaces", "record"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Made = TypeVar("_Made", Ring, Capture)


class _Scope:
    """What is recorded: which program that is depends on the host of the moment."""

    def __init__(
        self, options: RingOptions, exclusion: Exclusion, filters: FilterCompiler
    ) -> None:
        self._options = options
        self._exclusion = exclusion
        self._filters = filters
        self._indices: dict[str, int] = {}

    def expressions(self, host: list[Interface]) -> list[str]:
        """Return filters that all hold for what is recorded.

        Raises:
            UsageError: an interface that this host never had.

        """
        known = {each.name: each.index for each in host}
        for name in self._options.interfaces:
            if name not in self._indices:
                _check_interface(name, known)
            # One that has gone keeps its index, and may come back with another.
            self._indices[name] = known.get(name, self._indices.get(name, 0))
        chosen = sorted(self.indices)
        return [
            *self._exclusion.expressions(host),
            *([only(chosen)] if chosen else []),
        ]

    @property
    def indices(self) -> frozenset[int]:
        """Those of the chosen interfaces, as of the last expressions."""
        return frozenset(self._indices.values())

    async def compile(self, expressions: list[str]) -> bytes:
        """Return the program for the kernel.

        Raises:
            FilterError: the ring's filter does not compile.
            CaptureError: the expressions do not.

        """
        return await self._filters.compile(
            self._options.filter,
            exclusions=expressions,
            link_type=self._options.link.link_type,
            snaplen=self._options.snaplen,
        )


def check_interfaces(names: Iterable[str]) -> None:
    """Refuse to record an interface that this host has not.

    Raises:
        UsageError: which one.
        CaptureError: this host does not tell.

    """
    known = [each.name for each in interfaces()]
    for name in names:
        _check_interface(name, known)


def _check_interface(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UsageError(
            f"--ring-interface {name!r} is not an interface of this host",
            hint="there are " + ", ".join(known),
        )


class Recording:
    """The ring while it is recorded; ``windows`` are the pulls from it."""

    def __init__(
        self,
        ring: Ring,
        source: Capture,
        *,
        scope: _Scope,
        expressions: list[str],
        max_windows: int,
    ) -> None:
        self.ring = ring
        self.source = source
        self.windows = Windows(ring, limit=max_windows)
        self._recorder = Recorder(ring, source)
        self._scope = scope
        self._expressions = expressions
        self._rounds = 0

    def start(self) -> None:
        """Begin to record.

        Raises:
            CaptureError: the first segment cannot be made.

        """
        self._recorder.start()

    def interfaces(self) -> Mapping[str, set[int]]:
        """Return the indices that each interface has had, as far as the ring goes back.

        An index that two interfaces had at different times stands for both.
        """
        known = self._recorded()
        for each in interfaces():
            known.setdefault(each.name, {each.index})
        return known

    def _recorded(self) -> dict[str, set[int]]:
        known: dict[str, set[int]] = {}
        for segment in self.ring.segments():
            for index, names in segment.interfaces.items():
                for name in names:
                    known.setdefault(name, set()).add(index)
        return known

    def info(self) -> RingInfo:
        """Return what is told of the ring."""
        return msgspec.structs.replace(
            self.ring.info(),
            windows=len(self.windows),
            max_windows=self.windows.limit,
            interfaces={
                name: sorted(indices) for name, indices in self._recorded().items()
            },
        )

    @property
    def indices(self) -> frozenset[int]:
        """The indices of the interfaces that are recorded; none means all."""
        return self._scope.indices

    def advances(self) -> bool:
        """Whether the recorder has gone on since this was last asked."""
        before, self._rounds = self._rounds, self._recorder.rounds
        return self._rounds != before

    async def refresh(self) -> None:
        """Look after the recorder: whether it goes on, and with the right program.

        Raises:
            CaptureError: the program cannot be compiled anew; the old one stays.

        """
        failure = self._recorder.failure
        if failure is not None:
            self.windows.fail(CaptureError(f"the recorder has failed: {failure}"))
            return
        expressions = self._scope.expressions(interfaces())
        if expressions == self._expressions:
            return
        program = await self._scope.compile(expressions)
        if self._recorder.failure is None:
            attach_program(self.source.fileno(), program)
            self._expressions = expressions
            _log.info("this host's addresses or interfaces have changed: recorded anew")

    async def stop(self) -> None:
        """End the pulls' threads, then the recorder; what the kernel holds is recorded."""
        await self.windows.shutdown()
        await asyncio.to_thread(self._recorder.stop)
        self.ring.close()


async def record(
    options: RingOptions,
    *,
    exclusion: Exclusion,
    filters: FilterCompiler,
    max_windows: int,
) -> Recording:
    """Return a recording that has begun.

    Raises:
        UsageError: the directory cannot be used, or the options fit not this host.
        CaptureError: this host cannot capture.

    """
    scope = _Scope(options, exclusion, filters)
    expressions = scope.expressions(interfaces())
    async with contextlib.AsyncExitStack() as undo:
        ring = await _made(partial(Ring, options), undo)
        try:
            program = await scope.compile(expressions)
        except FilterError as exc:
            raise UsageError(
                f"--ring-filter {options.filter!r}: {exc.message}", hint=exc.hint
            ) from exc
        source = await _made(partial(_open, options, program), undo)
        recording = Recording(
            ring,
            source,
            scope=scope,
            expressions=expressions,
            max_windows=max_windows,
        )
        undo.push_async_callback(recording.stop)
        await _on_thread(recording.start)
        undo.pop_all()
    return recording


def _open(options: RingOptions, program: bytes) -> Capture:
    return open_handle(
        program,
        link_type=options.link.link_type,
        snaplen=options.snaplen,
        buffer_size=options.buffer_size,
        nano=True,
    ).handle


async def _made(make: Callable[[], _Made], undo: contextlib.AsyncExitStack) -> _Made:
    return await _on_thread(make, undo=lambda made: undo.callback(made.close))


async def _on_thread(
    work: Callable[[], _T], *, undo: Callable[[_T], object] = lambda _: None
) -> _T:
    """Run ``work`` to its end, also when this is cancelled meanwhile.

    ``undo`` gets what it returned in any case.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(running)
    finally:
        undo(await running)
    return running.result()
