"""A source of packets that a test scripts, in the place of a capture."""

from __future__ import annotations

import collections
import os
import threading

from support.captures import Record, pcap_record


class ScriptedSource:
    """Delivers what ``feed`` is given, a batch at a time.

    The recorder's thread takes, the test's feeds. ``dropped`` is what the kernel would
    say that it dropped; ``error`` is raised by the next read; ``hidden`` packets are
    still in an open block.
    """

    def __init__(self) -> None:
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._batches: collections.deque[tuple[bytes, int]] = collections.deque()
        self._stopped = False
        self._fed = 0
        self.packets = 0
        self.data_bytes = 0
        self.dropped = 0
        self.hidden = 0
        self.error: Exception | None = None
        self.targets: list[int] = []
        self.closed = threading.Event()
        self.stopped = threading.Event()
        self.held = threading.Lock()  # who has it keeps the recorder from reading

    def feed(self, records: list[Record]) -> None:
        """Have ``records`` delivered as one batch."""
        batch = b"".join(pcap_record(each, nano=True) for each in records)
        self.feed_bytes(batch, len(records))

    def feed_bytes(self, batch: bytes, packets: int = 1) -> None:
        """Have bytes delivered as one batch, records or not."""
        # In this order: whoever finds the batch can take it off the counter.
        os.eventfd_write(self._ready, 1)
        self._fed += packets
        self._batches.append((batch, packets))

    def fail(self, error: Exception) -> None:
        """Have the next read raise ``error``."""
        self.error = error
        os.eventfd_write(self._ready, 1)

    def read_batch(self, target: int) -> bytes:
        with self.held:
            self.targets.append(target)
        if self.error is not None:
            raise self.error
        if not self._batches:
            return b""
        os.eventfd_read(self._ready)
        batch, packets = self._batches.popleft()
        self.packets += packets
        self.data_bytes += len(batch)
        return batch

    @property
    def more(self) -> bool:
        return bool(self._batches)

    @property
    def finished(self) -> bool:
        return self._stopped and not self._batches and not self.hidden

    def stop(self) -> None:
        self._stopped = True
        self.stopped.set()

    def undelivered(self) -> int:
        return self.hidden + self._fed - self.packets

    def statistics(self) -> tuple[int, int, int]:
        return self.packets + self.undelivered() + self.dropped, self.dropped, 0

    def fileno(self) -> int:
        return self._ready

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            os.close(self._ready)
