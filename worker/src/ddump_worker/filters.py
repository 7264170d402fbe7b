"""Filters, compiled in helper processes that cannot hold the worker up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from ddump_common.errors import CaptureError, FilterError
from ddump_common.text import printable

from .compiler import COMPILED, REFUSED, SEPARATOR, WALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ddump_common.pcap import LinkType

__all__ = ["BusyError", "FilterCompiler"]

# -P: nothing is imported from the directory that the worker happens to run in.
_COMMAND = ("-P", "-c", "from ddump_worker.compiler import main; main()")
_TOO_SLOW = "the filter takes too long to compile"
_COOKED_HINT = (
    "this worker captures the device any, cooked: what needs a link-layer header, such "
    "as vlan, ether host or broadcast, does not compile"
)
_SHORTER_HINT = (
    "use ranges (portrange 1-300) and addresses in place of long lists and names"
)


class BusyError(CaptureError):
    """Too many filters are being compiled at the moment."""


class FilterCompiler:
    """Compiles filters, a few at a time, first come first served."""

    def __init__(self, *, concurrency: int = 8) -> None:
        self._slots = asyncio.Semaphore(concurrency)

    async def compile(
        self,
        expression: str,
        *,
        exclusions: Sequence[str] = (),
        link_type: LinkType,
        snaplen: int,
    ) -> bytes:
        """Return the program that the kernel shall run.

        It accepts what matches ``expression`` (an empty one matches all) and each of
        ``exclusions``. Cancelling leaves no process behind.

        Raises:
            FilterError: there is none, with libpcap's words.
            BusyError: others were being compiled all the time.

        """
        text = expression.encode() + SEPARATOR + _joined(exclusions).encode()
        async with self._slot(), _helper(link_type, snaplen) as process:
            try:
                async with asyncio.timeout(WALL_SECONDS):
                    answer, complaint = await process.communicate(text)
            except TimeoutError as exc:
                raise FilterError(_TOO_SLOW, hint=_SHORTER_HINT) from exc
        if answer.startswith(COMPILED):
            return answer[len(COMPILED) :]
        if answer.startswith(REFUSED):
            reason = answer[len(REFUSED) :].decode(errors="replace")
            raise FilterError(printable(reason), hint=_COOKED_HINT)
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
            raise FilterError(_TOO_SLOW, hint=_SHORTER_HINT)
        words = printable(complaint.decode(errors="replace").strip()[-300:])
        raise FilterError(
            f"compiling the filter failed (status {process.returncode}): {words}"
        )

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WALL_SECONDS):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise BusyError("too many filters are being compiled") from exc
        try:
            yield
        finally:
            self._slots.release()


def _joined(exclusions: Sequence[str]) -> str:
    return " and ".join(f"({exclusion})" for exclusion in exclusions)


@contextlib.asynccontextmanager
async def _helper(
    link_type: LinkType, snaplen: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *_COMMAND,
        str(int(link_type)),
        str(snaplen),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
