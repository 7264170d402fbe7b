"""The end of the ring that grows: batches are written, segments begun and closed.

A batch is one write and then one step of the index: what the index has is in the file,
and nobody reads beyond it. Where a batch does not go to the disk whole, the file's end
is taken back to where it was.

A new segment is made before an old one is evicted for it. Where none can be made, the
growing one does not grow beyond its size: what comes is counted as lost until one can.

Consecutive segments share the instant at which one followed the other. Until it is
known that all packets before that instant were read, the older one *settles*: its end
is how far is known, as the end of the growing one is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING

from ddump_common.api import Link
from ddump_common.errors import CaptureError
from ddump_common.pcap import PcapHeader

from ._ring import Index, preallocate
from .ring import RECORDING
from .sidecar import write_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .ring import Ring
    from .segment import Segment

__all__ = ["Tail"]

_log = logging.getLogger(__name__)

_NOT_TAKEN = "the disk does not take packets"
_NOT_MADE = "no segment can be made"

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Tail:
    """The growing segment of ``ring`` and the one or two that settle before it.

    It belongs to one thread. ``names`` tells the interfaces of the moment by index.

    Raises:
        OSError: no segment can be made.

    """

    def __init__(
        self, ring: Ring, *, now_ns: int, names: Callable[[], Mapping[int, str]]
    ) -> None:
        self._ring = ring
        self._names = names
        self._settling: list[tuple[Segment, int]] = []
        self._unwritten: list[Segment] = []
        self._troubles: dict[str, str] = {}
        self._lost = 0
        self._segment, self._descriptor = self._create(now_ns)
        ring.add(self._segment)
        self._note_names()

    def fits(self, batch: bytes) -> bool:
        """Whether ``batch`` belongs into the growing segment, which is still there."""
        size = self._segment.size
        return not self._segment.revoked and (
            size + len(batch) <= self._ring.options.segment_size
            or size == PcapHeader.SIZE
        )

    def append(self, batch: bytes, packets: int) -> None:
        """Write the records of ``batch``; the ``packets`` that cannot be are counted.

        Raises:
            CaptureError: the batch does not consist of records.

        """
        segment = self._segment
        if not self.fits(batch):
            self._lose(batch, packets)  # it was said why no other could be made
            return
        try:
            self._write(batch, segment.size)
        except OSError as exc:
            self._lose(batch, packets)
            self._fail(_NOT_TAKEN, exc.strerror or str(exc))
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, segment.size)
            return
        taken = segment.index.append(batch)
        segment.size = segment.index.committed
        segment.disk_bytes = max(segment.disk_bytes, segment.size)
        _check_taken(taken, batch)
        self._recover(_NOT_TAKEN)

    def _lose(self, batch: bytes, packets: int) -> None:
        # When they were is told by their own times, as windows are.
        lost = Index(link_type=self._segment.link_type)
        _check_taken(lost.append(batch), batch)
        self._segment.losses.add(
            packets, since_ns=lost.least_ns or 0, until_ns=lost.greatest_ns or 0
        )
        self._lost += packets

    def _write(self, batch: bytes, offset: int) -> None:
        written = 0
        while written < len(batch):
            try:
                written += os.pwrite(
                    self._descriptor, memoryview(batch)[written:], offset + written
                )
            except OSError as exc:
                if exc.errno not in _FULL or not self._ring.give_way():
                    raise

    def _fail(self, what: str, why: str) -> None:
        # Said once per trouble, not with each batch.
        if what not in self._troubles:
            _log.error("%s: %s", what, why)
        self._troubles[what] = why
        self._tell()

    def _recover(self, what: str) -> None:
        if self._troubles.pop(what, None) is not None:
            _log.warning("no longer: %s; %d packets were lost", what, self._lost)
            self._lost = 0
            self._tell()

    def _tell(self) -> None:
        self._ring.state = (
            RECORDING
            if not self._troubles
            else "; ".join(f"{what}: {why}" for what, why in self._troubles.items())
        )

    def rotate(self, now_ns: int) -> None:
        """Begin a new segment; where that cannot be, the old one is the last still."""
        try:
            segment, descriptor = self._create(now_ns)
        except OSError as exc:
            self._fail(_NOT_MADE, exc.strerror or str(exc))
            return
        until_ns = self._segment.end_ns if self._lost else now_ns
        self._recover(_NOT_MADE)
        self._release()
        self._segment.growing = False
        self._settling.append((self._segment, until_ns))
        self._segment, self._descriptor = segment, descriptor
        self._ring.add(segment)
        self._note_names()

    def step(self, now_ns: int) -> None:
        """Begin a new segment after the clock was set; it covers nothing of before."""
        old = self._segment
        self._ring.flushed_ns = 0  # by the new clock nothing is known yet
        # What it will not take is no reason to evict anything.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, old.size)
        old.disk_bytes = old.size
        self.rotate(now_ns)
        if old is not self._segment:
            for segment, _ in self._settling:
                self._close(segment)
            self._settling.clear()

    def _create(self, now_ns: int) -> tuple[Segment, int]:
        ring = self._ring
        if ring.is_stuck:
            # A file that cannot be given up could not be taken away again either.
            ring.make_room()
        segment, descriptor = self._create_empty(now_ns)
        try:
            ring.make_room()
            self._take_ahead(descriptor)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # why it cannot be made says more
                ring.directory.discard(segment)
            raise
        segment.disk_bytes = ring.options.segment_size
        return segment, descriptor

    def _create_empty(self, now_ns: int) -> tuple[Segment, int]:
        while True:
            try:
                return self._ring.directory.create(now_ns)
            except OSError as exc:
                if exc.errno not in _FULL or not self._ring.give_way():
                    raise

    def _take_ahead(self, descriptor: int) -> None:
        while True:
            try:
                preallocate(descriptor, self._ring.options.segment_size)
            except OSError as exc:
                if exc.errno not in _FULL:
                    raise
                if self._ring.give_way():
                    continue
            return  # all of it, or as much as there is

    def _release(self) -> None:
        # What was taken ahead and is not needed, and the descriptor.
        segment = self._segment
        try:
            if not segment.revoked:
                os.ftruncate(self._descriptor, segment.size)
                segment.disk_bytes = segment.size
        except OSError as exc:
            _log.error("%s cannot be cut: %s", segment.path, exc.strerror)
        os.close(self._descriptor)

    def flush(self, flushed_ns: int) -> None:
        """All packets that came before ``flushed_ns`` are in the ring."""
        while self._settling and self._settling[0][1] <= flushed_ns:
            segment, until_ns = self._settling.pop(0)
            segment.end_ns = max(segment.begin_ns, until_ns)
            self._close(segment)
        growing = () if self._lost else (self._segment,)  # what is lost is not covered
        for segment in (*(each for each, _ in self._settling), *growing):
            segment.end_ns = max(segment.begin_ns, flushed_ns)
        self._ring.flushed_ns = flushed_ns

    def count_dropped(self, packets: int, *, since_ns: int, until_ns: int) -> None:
        """Note that the kernel dropped ``packets`` between the two moments."""
        self._segment.drops.add(packets, since_ns=since_ns, until_ns=until_ns)

    def refresh(self) -> None:
        """Write down what is known of the segments whose sidecars are behind.

        The growing one is forgotten here if a stranger deleted or cut its file.
        """
        wrong = self._segment.judge(self._descriptor, self._segment.size)
        if wrong:
            self._ring.forget(self._segment, wrong)
        self._note_names()
        unwritten, self._unwritten = self._unwritten, []
        for segment in (
            *unwritten,
            *(each for each, _ in self._settling),
            self._segment,
        ):
            self._write_down(segment)

    def _note_names(self) -> None:
        if self._ring.options.link is not Link.SLL2:
            return
        known = self._segment.interfaces
        try:
            names = self._names()
        except CaptureError as exc:
            _log.warning("the interfaces' names are not known: %s", exc)
            return
        self._segment.interfaces = {
            index: known.get(index, frozenset()) | {names[index]}
            if index in names
            else known[index]
            for index in {*known, *names}
        }

    def _close(self, segment: Segment) -> None:
        segment.closed = True
        self._write_down(segment)

    def _write_down(self, segment: Segment) -> None:
        if segment.revoked:
            return  # evicted meanwhile: its sidecar is not to come back
        try:
            write_sidecar(segment.sidecar_path, segment.sidecar())
        except OSError as exc:
            if segment.closed:
                self._unwritten.append(segment)
            _log.warning("%s cannot be written: %s", segment.sidecar_path, exc.strerror)

    def close(self, flushed_ns: int) -> None:
        """Close the growing segment; it ends with ``flushed_ns``."""
        self._release()
        self._segment.growing = False
        self.flush(flushed_ns)
        for segment in (*(each for each, _ in self._settling), self._segment):
            self._close(segment)
        self._settling.clear()


def _check_taken(taken: int, batch: bytes) -> None:
    if taken != len(batch):
        raise CaptureError(
            f"byte {taken} of {len(batch)} that were captured begins no record"
        )
