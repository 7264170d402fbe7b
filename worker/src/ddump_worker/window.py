"""Windows of the ring: what of one is there, and who may pull how many.

A window that ends now, or a second ahead, is waited for until all that came before its
end is in the segments. What the ring does not cover is said, not refused, unless it is
all of the window.

The recorder's thread wakes this module once for all pulls, however much it records
meanwhile, and never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddump_common.errors import CaptureError, UsageError
from ddump_common.timespec import format_time
from ddump_common.units import MILLISECONDS, SECONDS
from ddump_common.window import Interval, WindowReport

from .capacity import ExhaustedError
from .denial import ForbiddenError
from .pull import Bounds, Pull

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ddump_common.api import RingQuery

    from .ring import Ring

__all__ = ["NoRingError", "UncoveredError", "WindowPlan", "Windows"]

_THREADS = 4
_AHEAD_NS = SECONDS
# Who follows from now on, by a clock that is this much ahead, is not refused.
_SKEW_NS = 60 * SECONDS
_WAIT_SECONDS = 2.0
_FOREVER_NS = (1 << 63) - 1
_MAX_NAMED = 4


class NoRingError(UsageError):
    """The worker keeps no ring."""

    def __init__(self) -> None:
        super().__init__(
            "this worker keeps no ring",
            hint="start it with --ring-dir, or capture live",
        )


class UncoveredError(UsageError):
    """The ring has nothing of a window, as ``report`` says."""

    def __init__(self, message: str, *, report: WindowReport) -> None:
        super().__init__(message, hint="GET /api/v1/segments says what it has")
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """A window that can be pulled: its bounds, and what of it the ring covers."""

    bounds: Bounds
    report: WindowReport


class Windows:
    """All pulls: plans and opens them, and wakes those that follow."""

    def __init__(self, ring: Ring, *, limit: int) -> None:
        self.limit = limit
        self._ring = ring
        self._pulls: set[Pull] = set()
        self._waiting: set[asyncio.Event] = set()
        self._failure: CaptureError | None = None
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="window")
        self._loop = asyncio.get_running_loop()
        self._is_woken = False
        self._unwatch = ring.watch(self._on_recorded)

    def __len__(self) -> int:
        return len(self._pulls)

    def check(self) -> None:
        """Refuse what ``open`` would refuse at this moment.

        Raises:
            ExhaustedError: one more would be too many.

        """
        if len(self._pulls) >= self.limit:
            raise ExhaustedError("windows", f"all {self.limit} windows are in use")

    async def plan(
        self, query: RingQuery, *, now_ns: int, oldest_ns: int = 0
    ) -> WindowPlan:
        """Return what ``query``, which came at ``now_ns``, gets of the ring.

        It gets what it would if the ring began at ``oldest_ns``. This may wait until
        what belongs to the window is recorded. Cancelling is safe.

        Raises:
            ForbiddenError: all of it is before ``oldest_ns``.
            UncoveredError: nothing.

        """
        if query.until_ns is not None and query.until_ns <= oldest_ns:
            raise ForbiddenError(
                f"this window ends before {_moment(oldest_ns)}, where the ring begins "
                "for who asks (max-age)"
            )
        until_ns = _FOREVER_NS if query.until_ns is None else query.until_ns
        if query.follow:
            # What is not there yet will follow; only what is missing has to be known.
            if not self._ring.flushed_ns:
                await self._flushed(1)
            end_ns = min(until_ns, now_ns, self._ring.flushed_ns)
        else:
            until_ns = now_ns if query.until_ns is None else query.until_ns
            end_ns = until_ns
            await self._flushed(end_ns if end_ns <= now_ns + _AHEAD_NS else now_ns)
        coverage = _since(oldest_ns, self._ring.coverage())
        begin_ns = query.since_ns
        if begin_ns is None:
            begin_ns = coverage[0].begin_ns if coverage else end_ns
        report = WindowReport.of(
            Interval(begin_ns=begin_ns, end_ns=max(begin_ns, end_ns)), coverage
        )
        bounds = Bounds(max(query.since_ns or 0, oldest_ns), until_ns)
        is_open = query.follow and begin_ns - _SKEW_NS <= now_ns < until_ns
        if report.covered is None and not is_open and not self._overlaps(bounds):
            raise UncoveredError(
                f"the ring has nothing of this window; {_words(coverage)}",
                report=report,
            )
        return WindowPlan(bounds=bounds, report=report)

    def _overlaps(self, bounds: Bounds) -> bool:
        # Packets may be there whose timestamps the recorder's clock never showed.
        return any(
            each.index.overlaps(bounds.since_ns, bounds.until_ns)
            for each in self._ring.segments()
        )

    async def _flushed(self, moment_ns: int) -> None:
        """Wait until all that came before is in the segments, if that will be soon."""
        flushed_ns = self._ring.flushed_ns  # 0 when the recorder has only just begun
        if flushed_ns and moment_ns - flushed_ns > _AHEAD_NS:
            return
        with self._woken() as event, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_SECONDS):
                while self._ring.flushed_ns < moment_ns:
                    event.clear()
                    if self._ring.flushed_ns < moment_ns:
                        await event.wait()

    @contextlib.contextmanager
    def _woken(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.remove(event)

    def _on_recorded(self) -> None:
        # The recorder's thread: it never waits, and wakes the loop once, not each time.
        if (self._pulls or self._waiting) and not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_woken = False
        for event in self._waiting:
            event.set()
        for pull in self._pulls:
            pull.notice()

    async def open(
        self,
        query: RingQuery,
        plan: WindowPlan,
        program: bytes,
        *,
        pcapng: bool = False,
    ) -> Pull:
        """Return a pull, which has to be closed. ``pcapng`` is what it gives.

        Raises:
            ExhaustedError: as ``check``.

        """
        self.check()
        pull = Pull(
            query,
            ring=self._ring,
            bounds=plan.bounds,
            program=program,
            pcapng=pcapng,
            executor=self._executor,
            on_close=self._pulls.discard,
        )
        self._pulls.add(pull)
        if self._failure is not None:
            pull.fail(self._failure)
        return pull

    def fail(self, failure: CaptureError) -> None:
        """Have all end that follow, and those too that begin from now on."""
        self._failure = failure
        for pull in self._pulls:
            pull.fail(failure)

    async def shutdown(self) -> None:
        """End; all pulls are closed."""
        self._unwatch()
        await asyncio.to_thread(self._executor.shutdown)


def _since(oldest_ns: int, coverage: Sequence[Interval]) -> list[Interval]:
    """Return what of ``coverage`` is not older than that."""
    return [
        Interval(begin_ns=max(each.begin_ns, oldest_ns), end_ns=each.end_ns)
        for each in coverage
        if each.end_ns > oldest_ns
    ]


def _words(coverage: Sequence[Interval]) -> str:
    if not coverage:
        return "it is empty as yet"
    shown = [
        f"{_moment(each.begin_ns)} to {_moment(each.end_ns)}"
        for each in coverage[-_MAX_NAMED:]
    ]
    more = len(coverage) - len(shown)
    before = f"{more} earlier stretches and " if more else ""
    return f"it covers {before}{', '.join(shown)}"


def _moment(timestamp_ns: int) -> str:
    return format_time(timestamp_ns // MILLISECONDS * MILLISECONDS)
