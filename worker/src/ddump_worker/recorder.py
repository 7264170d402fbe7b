"""The thread that records: from the kernel's ring to the ring on the disk.

It waits for the capture's descriptor, a tenth of a second at most, reads batches until
nothing is left, and writes each at once. How far the ring is flushed is told by the
kernel's own count of packets (``progress.py``), also while there is always more. When
more waits than a batch holds, batches become larger, as this thread gets its turn among
the others only so often.

It asks nobody and waits for nobody. What it cannot foresee ends it, is logged and kept
as ``failure``; the segments stay, and are served.

What an earlier run left is looked through by another thread, once this one records.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ddump_common.errors import CaptureError
from ddump_common.units import SECONDS

from .capture import BATCH_BYTES, Handle
from .directory import REFRESH_NS
from .interfaces import interfaces
from .progress import IN_FLIGHT_NS, PATIENCE_SECONDS, Progress
from .ring import RECORDING
from .tail import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .ring import Ring

__all__ = ["PacketSource", "Recorder"]

_log = logging.getLogger(__name__)

_POLL_MS = 100
_LARGEST_BATCH = 4 << 20
# A clock that goes on evenly, or is slewed, does not come near this between two looks.
_STEP_NS = SECONDS


class PacketSource(Handle, Protocol):
    """What the recorder needs of ``_pcap.Capture``."""

    def close(self) -> None:
        """Close the handle; again is harmless."""


def interface_names() -> dict[int, str]:
    """Return the names of this host's interfaces, by index.

    Raises:
        CaptureError: the kernel does not tell.

    """
    return {each.index: each.name for each in interfaces()}


class Recorder:
    """Records ``source`` into ``ring`` from ``start`` to ``stop``; it closes the source.

    ``failure`` is what ended it before it was stopped; ``rounds`` is how often it has
    looked for packets, ten times a second at least, unless the disk keeps it. ``clock``
    is the one that stamps packets, in nanoseconds since the epoch; ``steady`` one that is
    never set.
    """

    def __init__(
        self,
        ring: Ring,
        source: PacketSource,
        *,
        names: Callable[[], Mapping[int, str]] = interface_names,
        clock: Callable[[], int] = lambda: time.time_ns(),
        steady: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.failure: Exception | None = None
        self.rounds = 0
        self._ring = ring
        self._source = source
        self._names = names
        self._clock = clock
        self._steady = steady
        self._ended = threading.Event()
        self._wake = -1
        self._poll = select.poll()
        self._progress = Progress()
        self._dropped = 0
        self._refresh_ns = 0
        self._counted_ns = clock()
        self._offset_ns = clock() - steady()
        self._most = min(_LARGEST_BATCH, ring.options.segment_size // 4)
        # The host's shutdown does not wait for these: what they leave is adopted.
        self._recording = threading.Thread(
            target=self._run, name="recorder", daemon=True
        )
        self._adopting = threading.Thread(
            target=self._adopt, name="adoption", daemon=True
        )

    def start(self) -> None:
        """Begin to record, then to look through what an earlier run left.

        Raises:
            CaptureError: the first segment cannot be made.

        """
        try:
            self._tail = Tail(self._ring, now_ns=self._clock(), names=self._names)
        except OSError as exc:
            raise CaptureError(
                f"cannot record to {self._ring.directory.path}: {exc.strerror or exc}"
            ) from exc
        self._ring.state = RECORDING
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._source.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._recording.start()
        self._adopting.start()

    def stop(self) -> None:
        """Record what was captured until now, and end; again is harmless.

        This waits for both threads: a second at most, and what the disk takes.
        """
        self._ended.set()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        for thread in (self._recording, self._adopting):
            if thread.ident is not None:
                thread.join()
        self._source.close()
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _run(self) -> None:
        flushed_ns = None
        try:
            self._record()
            flushed_ns = self._drain()
            self._ring.state = "ended"
        except Exception as exc:  # noqa: BLE001 - the service goes on without it
            self._fail(exc)
        finally:
            self._finish(flushed_ns)

    def _fail(self, exc: Exception) -> None:
        _log.error("nothing is recorded any more", exc_info=exc)
        self.failure = exc
        self._ring.state = f"failed: {str(exc) or type(exc).__name__}"

    def _finish(self, flushed_ns: int | None) -> None:
        try:
            self._tail.close(
                self._ring.flushed_ns if flushed_ns is None else flushed_ns
            )
        except Exception as exc:  # noqa: BLE001 - as above
            self._fail(exc)
        # At once: the kernel would go on filling a ring that nobody reads.
        self._source.close()
        self._ring.notify()

    def _record(self) -> None:
        source = self._source
        target = BATCH_BYTES
        while not self._ended.is_set():
            if not source.more:
                self._poll.poll(_POLL_MS)
                target = BATCH_BYTES
            self._watch_clock(self._clock())
            began = self._steady() / SECONDS
            self._read(min(target, self._most))
            if source.more:
                target = min(2 * target, _LARGEST_BATCH)
            self._flush_after(began)
            self._ring.notify()
            self._refresh()
            self.rounds += 1

    def _read(self, target: int) -> bool:
        before = self._source.packets
        batch = self._source.read_batch(target)
        if not batch:
            return False
        if not self._tail.fits(batch):
            self._count_dropped()
            self._tail.rotate(self._clock())
        self._tail.append(batch, self._source.packets - before)
        return True

    def _flush_after(self, began: float) -> None:
        """Flush what is known to be complete after a read that began at ``began``."""
        complete_ns = self._progress.observe(
            self._source, began=began, clock=self._clock
        )
        if complete_ns is not None:
            # First, so that who reads up to there knows what is not.
            self._count_dropped()
            self._tail.flush(complete_ns)

    def _watch_clock(self, now_ns: int) -> None:
        offset_ns = now_ns - self._steady()
        step_ns = offset_ns - self._offset_ns
        self._offset_ns = offset_ns
        if abs(step_ns) >= _STEP_NS:
            _log.warning(
                "the clock went %s by %.3f s, or the host slept",
                "on" if step_ns > 0 else "back",
                abs(step_ns) / SECONDS,
            )
            self._count_dropped()
            self._tail.step(now_ns)
            self._progress.restart()

    def _refresh(self) -> None:
        now_ns = self._steady()
        if now_ns >= self._refresh_ns:
            self._refresh_ns = now_ns + REFRESH_NS
            self._count_dropped()
            self._tail.refresh()
            if not self._tail.fits(b""):
                self._tail.rotate(self._clock())

    def _count_dropped(self, left: int = 0) -> None:
        """Note what was dropped since the last time, and what is ``left`` for good."""
        _, dropped, _ = self._source.statistics()
        now_ns = self._clock()
        self._tail.count_dropped(
            dropped - self._dropped + left,
            since_ns=self._counted_ns,
            until_ns=now_ns,
        )
        self._dropped, self._counted_ns = dropped, now_ns

    def _drain(self) -> int | None:
        """Record what the kernel still has; return until when that is all, if it is."""
        source = self._source
        now_ns = self._clock()
        deadline = self._steady() / SECONDS + PATIENCE_SECONDS
        self._poll.unregister(self._wake)
        source.stop()
        while missing := self._progress.missing(source.undelivered()):
            if self._read(self._most) or source.more:
                continue
            left = deadline - self._steady() / SECONDS
            if left <= 0:
                _log.warning("%d packets are left in the kernel's ring", missing)
                break
            self._poll.poll(left * 1000)
        self._count_dropped(missing)
        return None if missing else now_ns - IN_FLIGHT_NS

    def _adopt(self) -> None:
        try:
            self._ring.adopt(self._ended)
        except Exception as exc:  # noqa: BLE001 - what is recorded now goes on
            _log.error("segments of an earlier run are missing", exc_info=exc)
