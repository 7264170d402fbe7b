"""A process that records until it is killed, over and over, in the same directory.

It is a program: for each line on its standard input, which says after how many seconds,
it forks a child that records as fast as it can and kills that with SIGKILL. Packets are
numbered from 0 in each child, and the child's own number is before that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = struct.Struct("<II")
SEGMENT_SIZE = 1_000_000
RING_SIZE = 8 * SEGMENT_SIZE
_BATCH = 300  # about 256 KiB


class EndlessSource:
    """Always has packets; of many sizes, and none like another."""

    more = True
    finished = False

    def __init__(self, life: int) -> None:
        self.packets = 0
        self.data_bytes = 0
        self._life = life
        self._ready, self._other = os.pipe()
        os.write(self._other, b"x")

    def read_batch(self, _target: int) -> bytes:
        parts = []
        for number in range(self.packets, self.packets + _BATCH):
            data = NUMBER.pack(self._life, number) + bytes(50 + number * 7919 % 1400)
            seconds, fraction = divmod(time.time_ns(), 10**9)
            parts.append(
                struct.pack("<IIII", seconds, fraction, len(data), len(data)) + data
            )
        self.packets += _BATCH
        # Not always all is read: then the recorder flushes.
        self.more = self.packets // _BATCH % 16 != 0
        return b"".join(parts)

    def statistics(self) -> tuple[int, int, int]:
        return self.packets, 0, 0

    def fileno(self) -> int:
        return self._ready

    def stop(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.finished = True


def _record(directory: Path, life: int, ready: int) -> None:
    from ddump_worker.recorder import Recorder
    from ddump_worker.ring import Ring, RingOptions
    from ddump_worker.share import Share

    ring = Ring(
        RingOptions(
            directory=directory,
            size=RING_SIZE,
            segment_size=SEGMENT_SIZE,
            reserve=Share(),
        )
    )
    Recorder(ring, EndlessSource(life)).start()
    os.write(ready, b"x")
    while True:
        signal.pause()


def main(directory: Path) -> None:
    """Answer each line of the standard input."""
    import ddump_worker.recorder  # noqa: F401 - once, and not in each child

    for life, line in enumerate(sys.stdin):
        began, ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _record(directory, life, ready)
            finally:
                os._exit(1)
        os.close(ready)
        alive = os.read(began, 1)
        os.close(began)
        time.sleep(float(line))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = bool(alive) and os.WIFSIGNALED(status)
        sys.stdout.write(f"{'killed' if killed else 'ended by itself'}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def victim(directory: Path) -> Iterator[Victim]:
    """Start the program for the time of the body."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        yield Victim(process)
    finally:
        process.communicate(timeout=10)


class Victim:
    """The test's end of the program."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def kill_after(self, seconds: float) -> None:
        """Have a child record for so long, and be killed."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
