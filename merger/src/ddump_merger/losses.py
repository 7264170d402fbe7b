"""What of a target's packets is known to be lost, and where."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Losses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sums over all streams that a target was read by.

    Of those ``received`` by the kernel that the filter let through, it ``dropped`` some
    as its ring was full; ``interface_dropped`` by network interfaces; all ``None`` when
    nobody tells. What was received is known only when every stream has ended with its
    worker's last counts: before, it would be less than what came.
    ``skipped`` at most were recorded and could no longer be read.
    ``missing`` were sent, as the worker counts, and did not come; ``surplus`` at most
    came beside those that were sent.
    """

    received: int | None = None
    dropped: int | None = None
    interface_dropped: int | None = None
    skipped: int = 0
    missing: int = 0
    surplus: int = 0
