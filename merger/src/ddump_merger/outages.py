"""The outages of one target, as they begin and end, and what is said of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .outage import Outage
from .window import told_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lane import Lane
    from .losses import Losses

__all__ = ["Outages"]

logger = logging.getLogger(__name__)


class Outages:
    """Keeps those of ``lane``; ``refilled`` returns how many packets came once more.

    ``now_ns`` is this moment, for what is told.
    """

    def __init__(
        self, lane: Lane, *, refilled: Callable[[], int], now_ns: Callable[[], int]
    ) -> None:
        self._lane = lane
        self._refilled = refilled
        self._now_ns = now_ns
        self._refilled_before = 0
        self._settled = True
        self._exact = True

    @property
    def last(self) -> Outage:
        """The last one."""
        return self._lane.outages[-1]

    @property
    def open(self) -> bool:
        """Whether it is not known yet what the last one cost."""
        return not self._settled

    def begin(self, *, begin_ns: int, reason: str) -> None:
        """Begin one, or go on with the last, if what it cost is not known yet."""
        logger.warning("%s: %s; trying it again", self._lane.name, reason)
        if self.open:
            self._replace(end_ns=None)
            return
        self.count()
        self._refilled_before = self._refilled()
        self._settled = False
        self._exact = True
        self._lane.outages.append(Outage(begin_ns=begin_ns, reason=reason))

    def set_back(self, *, begin_ns: int) -> None:
        """Say that the clock was set back in the last one: by it, that began then."""
        self._exact = False
        self._replace(begin_ns=min(begin_ns, self.last.begin_ns))

    def refill(self, *, end_ns: int, exact: bool) -> None:
        """Say that what came before ``end_ns`` is coming now.

        ``exact`` is whether it is all of that, as far as is known.
        """
        self._exact = self._exact and exact
        self._replace(end_ns=max(end_ns, self.last.begin_ns))

    def give_up(self) -> None:
        """Say that nobody has what came during the last one."""
        self._exact = False

    def check(self, promised_ns: int, lost: Losses, *, joined: bool) -> None:
        """See whether the refill is over; ``lost`` was what it brings.

        ``joined`` is whether all has come again that had come and was asked for again.
        """
        end_ns = self.last.end_ns
        if self.open and end_ns is not None and promised_ns >= end_ns:
            unknown = lost.dropped is None
            whole = not (lost.dropped or lost.skipped or lost.missing or unknown)
            self.settle(end_ns=end_ns, filled=self._exact and whole and joined)

    def settle(self, *, end_ns: int, filled: bool) -> None:
        """End the last one, and say what it cost."""
        self._settled = True
        self._replace(end_ns=max(end_ns, self.last.begin_ns), filled=filled)
        self.count()
        when = told_interval(
            self.last.begin_ns, self.last.end_ns or end_ns, now_ns=self._now_ns()
        )
        if filled:
            logger.warning("%s: back, and nothing is lost of %s", self._lane.name, when)
        else:
            logger.error(
                "%s: back; of what came from %s packets may be missing",
                self._lane.name,
                when,
            )

    def count(self) -> None:
        """Note how many packets of the last one have come out of the merge."""
        if self._lane.outages:
            self._replace(refilled=self._refilled() - self._refilled_before)

    def _replace(self, **changes: int | bool | None) -> None:
        self._lane.outages[-1] = replace(self.last, **changes)  # type: ignore[arg-type]  # by name
