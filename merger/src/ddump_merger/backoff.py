"""How long to wait before a target is tried again.

The longest wait doubles with every try, and any time up to it is as likely: workers that
a network took away from many at once are not asked by all of them at once. Pure: the
caller waits, and gives the chance.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ddump_common.units import MILLISECONDS, SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff"]

_FIRST_NS = 250 * MILLISECONDS
_LONGEST_NS = 10 * SECONDS

# A server may ask to be left alone; one that asks for days is tried all the same.
_LONGEST_ASKED_NS = 60 * SECONDS


class Backoff:
    """The waits of one target; ``chance`` returns a number from 0 on, below 1."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._longest_ns = _FIRST_NS

    def next_ns(self, *, asked_ns: int = 0) -> int:
        """Return how long to wait now, and wait longer after that.

        ``asked_ns`` is what the other side wants it to be at least.
        """
        wait_ns = int(self._longest_ns * self._chance())
        self._longest_ns = min(self._longest_ns * 2, _LONGEST_NS)
        return max(wait_ns, min(asked_ns, _LONGEST_ASKED_NS))

    def reset(self, *, lived_ns: int) -> None:
        """Begin with short waits again, if a stream lived for longer than is waited now.

        One that breaks as soon as it was opened is a failed try.
        """
        if lived_ns >= self._longest_ns // 2:
            self._longest_ns = _FIRST_NS
