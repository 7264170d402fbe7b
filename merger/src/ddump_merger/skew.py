"""How far a target's clock is from ours, as NTP estimates it (RFC 5905, section 8).

A worker says in ``Ddump-Time`` what its clock showed as it answered. That was between
our question and its answer: at the middle, give or take half of the round trip, however
unequal the two ways are.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Skew"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """A clock that is ``offset_ns`` ahead of ours, give or take ``error_ns``."""

    offset_ns: int
    error_ns: int
