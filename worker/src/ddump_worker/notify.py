"""What the service manager is told: sd_notify(3), where it started this worker.

A manager that wants to know says so in the environment: ``NOTIFY_SOCKET`` is where to,
``WATCHDOG_USEC`` how often it wants to hear that the worker is alive, if at all. It is
told when all addresses take requests, when what SIGHUP asks for begins and is done, and
when the end begins. That the worker is alive is said only while it does its work: the
event loop turns, and the recorder has come round since it was last said. Who is silent
for too long is started anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from ddump_common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Notifier"]

_log = logging.getLogger(__name__)

# Of the time after which silence is death: one message may come late, none is missed.
_SHARE = 3


class Notifier:
    """The service manager of this process, or nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read who wants to know.

        Raises:
            UsageError: ``environment`` does not say it as sd_notify(3) has it.

        """
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._pause_seconds = _watchdog_seconds(environment) / _SHARE

    async def ready(self) -> None:
        """Say that the worker takes requests, or has done what SIGHUP asked for."""
        await self._send("READY=1")

    async def reloading(self) -> None:
        """Say that what SIGHUP asks for begins."""
        # The time tells a manager that sent the signal that this is the answer to it.
        await self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def stopping(self) -> None:
        """Say that the worker is ending."""
        await self._send("STOPPING=1")

    async def keep_alive(self, advances: Callable[[], bool]) -> None:
        """Say that the worker is alive, as often as is wanted; ended by being cancelled.

        ``advances`` tells whether the work has gone on since it was last asked.
        """
        is_silent = False
        while self._pause_seconds:
            await asyncio.sleep(self._pause_seconds)
            if advances():
                await self._send("WATCHDOG=1")
                is_silent = False
            elif not is_silent:
                _log.error("the recorder does not go on: the watchdog is not told")
                is_silent = True

    async def _send(self, message: str) -> None:
        # A socket for each: the manager's may be another one after it was updated.
        if not self._address:
            return
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            ) as manager:
                manager.connect(self._address)
                await asyncio.get_running_loop().sock_sendall(manager, message.encode())
        except OSError as exc:
            _log.warning("the service manager cannot be told: %s", exc.strerror or exc)


def _address(text: str) -> str:
    if text and text[0] not in "/@":
        raise UsageError("NOTIFY_SOCKET is neither a path nor an abstract address")
    return text.replace("@", "\0", 1) if text.startswith("@") else text


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise UsageError("WATCHDOG_USEC is not a number of microseconds")
    return int(text) / 1e6
