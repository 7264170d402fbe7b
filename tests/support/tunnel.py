"""A way between two namespaces on which IP packets are late, out of order, or lost.

It is a pair of TUN devices, and this process is the wire between them. The same seed
does the same to the same packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import itertools
import os
import random
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.namespaces import Host

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_MTU = 1500
_BURST = 64
_QUEUE = 4096  # packets on the way; what comes beyond is lost, as in a router


class Tunnel:
    """Packets are ``delay`` seconds late, give or take ``jitter``.

    ``ordered`` is whether one never overtakes another; ``loss`` is the part that is
    lost. Nothing passes between ``stall`` and ``go_on``. ``overtaken`` and ``lost``
    count.
    """

    def __init__(self, near: int, far: int, *, seed: int) -> None:
        self.delay = 0.0
        self.jitter = 0.0
        self.loss = 0.0
        self.ordered = False
        self.overtaken = 0
        self.lost = 0
        self._random = random.Random(seed)  # noqa: S311 (the same fate for a seed)
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._late: list[tuple[float, int, int, bytes]] = []
        self._newest = {near: 0.0, far: 0.0}
        self._other = {near: far, far: near}
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = False
        for device in (near, far):
            self._loop.add_reader(device, self._take, device)

    def stall(self) -> None:
        """Hold packets back."""
        self._stalled = True

    def go_on(self) -> None:
        """Let pass what was held back."""
        self._stalled = False
        self._give()

    def close(self) -> None:
        """Let nothing pass any more."""
        for device in self._other:
            self._loop.remove_reader(device)
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, device: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BURST):
                self._accept(device, os.read(device, _MTU))
        self._give()

    def _accept(self, device: int, packet: bytes) -> None:
        if self._random.random() < self.loss or len(self._late) >= _QUEUE:
            self.lost += 1
            return
        delay = self.delay + self._random.uniform(-self.jitter, self.jitter)
        due = self._loop.time() + delay
        newest = self._newest[device]
        if self.ordered:
            due = max(due, newest)
        self.overtaken += due < newest
        self._newest[device] = max(due, newest)
        heapq.heappush(
            self._late, (due, next(self._numbers), self._other[device], packet)
        )

    def _give(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._late and not self._stalled:
            due, _, device, packet = self._late[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._give)
                return
            heapq.heappop(self._late)
            try:
                os.write(device, packet)
            except BlockingIOError:
                self.lost += 1


@contextlib.asynccontextmanager
async def tunnel(
    near: Host, far: Host, *, number: int = 1, seed: int = 1
) -> AsyncIterator[Tunnel]:
    """Join two hosts by one more way: there ``near`` is 10.78.NUMBER.1, ``far`` is .2."""
    with contextlib.ExitStack() as stack:
        devices = []
        for host, own, other in ((near, 1, 2), (far, 2, 1)):
            devices.append(_open(host, name := f"tun{number}"))
            stack.callback(os.close, devices[-1])
            host.run(
                "ip", "addr", "add", f"10.78.{number}.{own}", "peer",
                f"10.78.{number}.{other}", "dev", name,
            )  # fmt: skip
            host.run("ip", "link", "set", name, "up")
        made = Tunnel(*devices, seed=seed)
        stack.callback(made.close)
        yield made


def _open(host: Host, name: str) -> int:
    # The device is made in the namespace of whoever opens it.
    with host.entered():
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(device, _TUNSETIFF, flags)
        except OSError:
            os.close(device)
            raise
    return device
