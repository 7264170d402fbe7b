"""Why somebody may not do what was asked, before anything was opened for it."""

from __future__ import annotations

from ddump_common.errors import DdumpError

__all__ = ["ForbiddenError", "MisdirectedError", "UnauthorizedError"]


class UnauthorizedError(DdumpError):
    """Nobody knows who asks, or what was shown is wrong: 401."""


class ForbiddenError(DdumpError):
    """Who asks is known, and may not: 403.

    ``retry_after_seconds`` is not 0 where it may be asked again later.
    """

    def __init__(
        self, message: str, *, hint: str = "", retry_after_seconds: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class MisdirectedError(DdumpError):
    """The request names a host that this worker is not: 421."""
