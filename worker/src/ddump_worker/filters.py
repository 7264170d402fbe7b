"""Filters, compiled in helper processes that cannot hold the worker up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ddump_common.errors import CaptureError, FilterError
from ddump_common.text import printable

from .compiler import (
    COMPILED,
    EXCLUSIONS_REFUSED,
    NICENESS,
    SEPARATOR,
    STORED,
    WALL_SECONDS,
)
from .helper import Helper
from .programs import Programs, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddump_common.pcap import LinkType

    from .programs import Making

__all__ = ["SHARE", "BusyError", "FilterCompiler"]

CONCURRENCY = 32
SHARE = 8
PLAIN = 8
QUEUE_SECONDS = 2.0
"""Of ``WALL_SECONDS``; the rest is more than a helper may compute."""

# -P: nothing is imported from the directory that the worker happens to run in.
# Capturing goes first, before its imports too: many that begin at once take long.
_COMMAND = (
    *("-P", "-c"),
    f"import os; os.nice({NICENESS}); from ddump_worker.compiler import main; main()",
)
_TOO_SLOW = "the filter takes too long to compile"
_COOKED_HINT = (
    "this worker captures the device any, cooked: what needs a link-layer header, such "
    "as vlan, ether host or broadcast, does not compile"
)
# What libpcap says of filters that need another link layer, and what cook() says.
_LINK_LAYER = re.compile(r"cooked|link|ethernet|802\.11|radio")
_SHORTER_HINT = (
    "use ranges (portrange 1-300) and addresses in place of long lists and names"
)


_SHORT_OF = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class BusyError(CaptureError):
    """No more filters can be compiled at the moment."""


class FilterCompiler:
    """Compiles filters, so many at a time, and so many of them for one client.

    What waits for a resolver costs no processor time: that many wait at once is
    harmless, that they keep others waiting is not. Requests without a filter of their
    own need little, and have places of their own. Who asks for what is being compiled
    already, or was lately, needs no place.
    """

    def __init__(
        self, *, concurrency: int = CONCURRENCY, share: int = SHARE, plain: int = PLAIN
    ) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._plain = asyncio.Semaphore(plain)
        self._programs = Programs()
        # Whoever has a place has a thread. They end with this object.
        self._threads = ThreadPoolExecutor(
            concurrency + plain, thread_name_prefix="filters"
        )
        self._share = share
        # Those of clients that have nothing compiled are forgotten.
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = (
            WeakValueDictionary()
        )

    async def compile(
        self,
        expression: str,
        *,
        exclusions: Sequence[str] = (),
        link_type: LinkType,
        snaplen: int,
        client: str = "",
        stored: bool = False,
    ) -> bytes:
        """Return the program that the kernel shall run, or one for stored packets.

        It accepts what matches ``expression`` (an empty one matches all) and each of
        ``exclusions``. ``client`` is whose share this takes. Within ``WALL_SECONDS``
        it has ended. Cancelling leaves a process behind only for others who wait for
        the same program.

        Raises:
            FilterError: there is none, with libpcap's words.
            BusyError: others were being compiled all the time.
            CaptureError: this host cannot compile, or not the exclusions.

        """
        text = SEPARATOR.join(each.encode() for each in (expression, *exclusions))
        source = Source(text, link_type, snaplen, stored)
        deadline = asyncio.get_running_loop().time() + WALL_SECONDS
        found = self._found(source)
        if found is None:
            with await self._place(expression, client) as places:
                # It may have been made while this waited.
                found = self._found(source) or self._programs.make(
                    source,
                    self._compile(expression, source),
                    on_end=places.pop_all().close,
                )
        if isinstance(found, bytes):
            return found
        try:
            async with asyncio.timeout_at(deadline):
                return await found.wait()
        except TimeoutError as exc:
            raise _too_slow(expression) from exc

    async def _compile(self, expression: str, source: Source) -> bytes:
        """Return what a helper makes of ``source``; cancelling leaves none behind."""
        stored = (STORED,) if source.stored else ()
        command = (
            *(sys.executable, *_COMMAND),
            *(str(int(source.link_type)), str(source.snaplen), *stored),
        )
        try:
            outcome = await Helper(command, source.text).run(self._threads)
        except (OSError, RuntimeError) as exc:
            raise _not_started(exc) from exc
        if outcome.answer.startswith(COMPILED):
            return outcome.answer[len(COMPILED) :]
        if outcome.status in (-signal.SIGXCPU, -signal.SIGALRM):
            raise _too_slow(expression)
        if outcome.status == 0:
            raise _refusal(outcome.answer)
        words = printable(outcome.complaint.decode(errors="replace").strip()[-300:])
        raise CaptureError(
            f"compiling the filter failed (status {outcome.status}): {words}"
        )

    def _found(self, source: Source) -> bytes | Making | None:
        return self._programs.kept(source) or self._programs.under_way(source)

    async def _place(self, expression: str, client: str) -> contextlib.ExitStack:
        """Return a place to compile in, which closing it gives back."""
        share = self._shares.setdefault(client, asyncio.Semaphore(self._share))
        needed = (share, self._places) if expression.strip() else (self._plain,)
        with contextlib.ExitStack() as places:
            try:
                async with asyncio.timeout(QUEUE_SECONDS):
                    for place in needed:
                        await place.acquire()
                        places.callback(place.release)
            except TimeoutError as exc:
                raise BusyError("too many filters are being compiled") from exc
            return places.pop_all()


def _not_started(exc: OSError | RuntimeError) -> CaptureError:
    words = "cannot start the process that compiles filters"
    match exc:
        case OSError(errno=number, strerror=str(reason)):
            kind = BusyError if number in _SHORT_OF else CaptureError
            return kind(f"{words}: {reason}")
        case _:
            return BusyError(f"{words}: {exc}")


def _too_slow(expression: str) -> CaptureError:
    if expression.strip():
        return FilterError(_TOO_SLOW, hint=_SHORTER_HINT)
    return CaptureError("what the worker excludes takes too long to compile")


def _refusal(answer: bytes) -> CaptureError:
    kind, reason = answer[:1], printable(answer[1:].decode(errors="replace"))
    if kind == EXCLUSIONS_REFUSED:
        return CaptureError(f"what the worker excludes does not compile: {reason}")
    is_cooked = _LINK_LAYER.search(reason) is not None
    return FilterError(reason, hint=_COOKED_HINT if is_cooked else "")
