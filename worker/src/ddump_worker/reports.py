"""What strangers can have written into the log: so many lines a minute, and no more."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["Reports"]

_log = logging.getLogger(__name__)

_REPORTS_SECONDS = 60


class Reports:
    """A bound on what is logged of those whom nobody knows: ``most`` lines a minute."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._omitted = 0
        self._since = 0.0
        self._said = 0

    def allow(self) -> bool:
        """Return whether one more line may be written; tell how many before may not."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= _REPORTS_SECONDS:
            self._since, self._said = now, 0
        if self._said >= self._most:
            self._omitted += 1
            return False
        self._said += 1
        if self._omitted:
            _log.warning("%d lines like the next were left out", self._omitted)
            self._omitted = 0
        return True
