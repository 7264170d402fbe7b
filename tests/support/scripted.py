"""A fan-in in this process: targets that follow a script, a real merge, a real sink."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddump_common.pcap import Precision
from ddump_merger._merge import Merge
from ddump_merger.config import Config
from ddump_merger.fanin import Fanin
from ddump_merger.header import OutputHeader
from ddump_merger.lane import Lane
from ddump_merger.output import Output
from ddump_merger.sink import Sink
from ddump_merger.target import HttpTarget, parse_target

if TYPE_CHECKING:
    from ddump_common.ring import RingNote
    from ddump_common.window import WindowReport
    from ddump_merger.skew import Skew

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


class Forever:
    """A step that never ends."""


@dataclass
class Script:
    """A source whose reads are given: bytes, errors, or things to wait for."""

    steps: list = field(default_factory=list)
    opening: object = None
    unread: list[bytes] = field(default_factory=list)
    closed: int = 0
    reads: int = 0
    window: WindowReport | None = None
    trusted: bool = False
    bounded: bool = False
    host: str = ""
    sample: Skew | None = None
    target: HttpTarget | None = None

    async def open(self):
        await self._take(self.opening)

    async def read(self):
        self.reads += 1
        await asyncio.sleep(0)  # as sockets and threads do: others have their turn
        while self.steps:
            step = self.steps[0]
            if not isinstance(step, bytes):
                await self._take(step)  # who gives up waiting finds it again
            self.steps.pop(0)
            if isinstance(step, bytes):
                return step
        return b""

    async def _take(self, step):
        match step:
            case None:
                pass
            case Exception():
                raise step
            case asyncio.Event():
                await step.wait()
            case type() if step is Forever:
                await asyncio.Event().wait()

    def arrived(self):
        return self.unread.pop(0) if self.unread else b""

    def close(self):
        self.closed += 1


@dataclass
class ScriptedPeer:
    """A worker that answers as it is told, for the streams that come after the first."""

    target: HttpTarget
    streams: list[Script] = field(default_factory=list)
    rings: list[RingNote | Exception | None] = field(default_factory=list)
    skews: list[Skew | None] = field(default_factory=list)
    asked: list[HttpTarget] = field(default_factory=list)

    def stream(self, target):
        self.asked.append(target)
        script = self.streams.pop(0) if self.streams else Script(opening=Forever)
        script.target = target
        return script

    async def skew(self):
        return self.skews.pop(0) if self.skews else None

    async def names(self):
        return {}

    async def ring(self):
        told = self.rings[0] if len(self.rings) == 1 else self.rings.pop(0)
        if isinstance(told, Exception):
            raise told
        return told


class Run:
    """A fan-in with all that it needs; its output goes to a file.

    ``peers`` are what ``ScriptedPeer`` takes, by the number of the target.
    """

    def __init__(self, path, scripts, output=None, peers=None, **options):
        self.path = path
        words = options.pop("words", None) or [
            f"http://h{n}" for n in range(len(scripts))
        ]
        self.config = Config(
            targets=tuple(parse_target(word) for word in words), output=path, **options
        )
        self.scripts = scripts
        self.merge = Merge(
            len(scripts),
            disorder_ns=self.config.disorder_ns,
            pcapng=self.config.pcapng,
            max_packets=self.config.count,
        )
        loop = asyncio.get_running_loop()
        self.lanes = []
        for index, (script, target) in enumerate(
            zip(scripts, self.config.targets, strict=True)
        ):
            live = isinstance(target, HttpTarget) and target.live
            script.target = target
            self.merge.limit(index, self.config.buffer_bytes, live=live)
            self.lanes.append(
                Lane(
                    index=index,
                    target=target,
                    source=script,
                    live=live,
                    heard=loop.time(),
                )
            )
        self.sink = Sink(output or Output(path))
        self.now_ns = START + 3600 * SECOND
        header = OutputHeader(pcapng=self.config.pcapng, precision=Precision.MICRO)
        self.peers = {
            index: ScriptedPeer(self.config.targets[index], **told)
            for index, told in (peers or {}).items()
        }
        self.fanin = Fanin(
            self.config, self.merge, self.lanes, self.sink, header,
            peers=self.peers, clock_ns=lambda: self.now_ns,
        )  # fmt: skip

    async def to_the_end(self):
        async with asyncio.timeout(5):
            await self.fanin.run()
            await self.sink.close()
        return self.path.read_bytes() if self.path.exists() else None

    @property
    def errors(self):
        return [lane.error and str(lane.error) for lane in self.lanes]


async def until(condition):
    """Let the others go on until something holds; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # what is watched has no event
        await asyncio.sleep(0)
