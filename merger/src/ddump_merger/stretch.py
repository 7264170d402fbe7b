"""What is known of a lane's stream while it is read: one stretch from open to break.

Here the heartbeats of a trusted stream become what a person is told: what was lost, and
where; and what the next stretch needs to go on where this one broke.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ddump_common.api import HEARTBEAT_NS, RingQuery
from ddump_common.errors import FormatError
from ddump_common.units import SECONDS, format_duration
from ddump_common.window import WindowReport

from ._merge import Seam
from .config import ClockMode
from .heartbeats import LATEST_NS, PATIENCE_NS, Heartbeats
from .ledger import Ledger
from .outages import Outages
from .resume import Position
from .tail import Tail
from .target import HttpTarget

if TYPE_CHECKING:
    from ddump_common.errors import BrokenStreamError
    from ddump_common.note import EndReason

    from .counters import Heartbeat
    from .inlet import Inlet
    from .lane import Lane
    from .skew import Skew
    from .source import Source

__all__ = ["Stretch"]

logger = logging.getLogger(__name__)

# What the merge can shift by; a clock that is 146 years wrong is none. And what one
# can show: an answer from the network may say anything.
_MAX_SHIFT_NS = 1 << 62
_LATEST_NS = 1 << 62
_EARLIEST_NS = 1

_WHOLE = WindowReport(covered=None)


class Stretch:
    """The streams of ``lane``, one after the other.

    ``follows`` is whether the one that is read now goes on out of a ring,
    ``suspended`` whether the merge does not wait for it, ``doubtful`` whether it does
    not fit to what is known of its worker's clock: that is then to be measured anew and
    ``judge`` to be called. ``opened_ns`` is when the first was opened, by that clock.
    """

    def __init__(self, lane: Lane, inlet: Inlet) -> None:
        self.follows = lane.follows
        self.suspended = False
        self.doubtful = False
        self.opened_ns = 0
        self.outages = Outages(
            lane,
            refilled=lambda: inlet.merge.counters(lane.index).refilled,
            now_ns=inlet.clock_ns,
        )
        self.ledger = Ledger(lane, inlet)
        self.tails: list[Tail] = []
        self._lane = lane
        self._inlet = inlet
        self._merge = inlet.merge
        self._heartbeats: Heartbeats | None = None
        self._lags = False
        # All of before that has come; from there on a ring was asked last.
        self._since_ns = 0
        self._asked_since_ns = 0
        self._exact = True
        # How many are to have been joined after the last refill.
        self._joined = 0
        # How many had come when the stream began that is read now.
        self._known_packets = 0
        self._said_skew = False

    @property
    def promised_ns(self) -> int | None:
        """The last promise of the stream, by its worker's clock."""
        last = None if self._heartbeats is None else self._heartbeats.last
        return None if last is None else last.promised_ns

    @property
    def behind_ns(self) -> int | None:
        """How old the stream's last promise is at least; ``None`` if that is not known."""
        skew, promised_ns = self._lane.skew, self.promised_ns
        if skew is None or promised_ns is None:
            return None
        return self.present_ns() - skew.error_ns - promised_ns

    @property
    def standing_ns(self) -> int:
        """For how long the stream has brought nothing but the same promise."""
        return 0 if self._heartbeats is None else self._heartbeats.standing_ns

    @property
    def end(self) -> EndReason | None:
        """Why the stream ended, as its worker says."""
        return None if self._heartbeats is None else self._heartbeats.end

    def present_ns(self) -> int:
        """Return what the worker's clock shows now, as far as is known."""
        skew = self._lane.skew
        present_ns = self._inlet.clock_ns() + (0 if skew is None else skew.offset_ns)
        return min(max(present_ns, 0), _LATEST_NS)

    # The life of a stream

    def begin(self) -> None:
        """Begin with the lane's source, which was opened, or opened anew."""
        lane, source = self._lane, self._lane.source
        lane.trusted = source.trusted
        lane.host = source.host or lane.host
        self.measured(source.sample)
        self.doubtful = self._lags = False
        if not self.opened_ns:
            self.opened_ns = self.present_ns()
            self._since_ns = self._asked_from_ns()
        self._heartbeats = None
        self._known_packets, _ = self._merge.received(lane.index)
        if lane.trusted:
            self._merge.trust(lane.index)
            if self._inlet.config.reconnect:
                self.tails.append(Tail(self._inlet.config.buffer_bytes))
            self._heartbeats = Heartbeats(
                self._merge, lane.index, books=self.ledger.books, tails=self.tails
            )

    def _asked_from_ns(self) -> int:
        """Return from when on the lane's packets are asked for."""
        asked = self._recorded
        if asked is not None:
            return asked.since_ns or _EARLIEST_NS
        return self.opened_ns - HEARTBEAT_NS

    def _asked_until_ns(self) -> int:
        """Return the present, or where what is asked for ends before it."""
        asked, present_ns = self._recorded, self.present_ns()
        if asked is None or asked.until_ns is None:
            return present_ns
        return min(present_ns, asked.until_ns)

    @property
    def _recorded(self) -> RingQuery | None:
        """What a ring was asked for that the stream comes out of, if it does."""
        target = self._lane.source.target
        query = target.query if isinstance(target, HttpTarget) else None
        return query if isinstance(query, RingQuery) else None

    def receive_data(self, data: bytes, *, seconds: float) -> None:
        """See what is told by bytes that the merge was given."""
        heartbeats = self._heartbeats
        if heartbeats is not None:
            heartbeat = heartbeats.receive_data(data, seconds=seconds)
            if self._lane.trusted:
                self._doubt(heartbeats, seconds)
            if heartbeat is not None:
                self._learn(heartbeat)
        if self.suspended:
            self._see_whether_back()

    def stop(self, reason: BrokenStreamError) -> None:
        """End the stream: it broke. If the lane is live, the merge waits for it no more."""
        index = self._lane.index
        _, _, newest_ns = self._merge.progress(index)
        if self._lane.trusted and self.promised_ns is not None:
            # A ring promises no more at first than it was asked for.
            self._since_ns = max(self.promised_ns, self._asked_since_ns)
        elif not self._lane.trusted and newest_ns >= 0:
            self._since_ns = newest_ns
        self.ledger.close()
        packets, _ = self._merge.received(index)
        kept = self._heartbeats is not None and len(self.tails) > 1
        if kept and packets == self._known_packets:
            del self.tails[-1]  # what it has is in the others
        if self._lane.live:
            self.suspend()
        self.outages.begin(begin_ns=self._since_ns, reason=f"{reason}")

    def suspend(self) -> None:
        """Have the merge not wait for the lane until it is where the others are."""
        self._merge.suspend(self._lane.index)
        self.suspended = True
        self._inlet.wake.set()

    @property
    def _keeps_too_much(self) -> bool:
        return sum(map(len, self.tails)) > self._inlet.config.buffer_bytes

    async def seam(self) -> Seam | None:
        """Return what has come already of what a ring will be asked for.

        ``None`` when there is no telling: then it is asked for what is later than all
        that has come. Cancelling it loses nothing.
        """
        since_ns = max(self._since_ns, *(each.since_ns for each in self.tails), 0)
        self._exact = all(each.exact for each in self.tails)
        while len(self.tails) > 1 and self._keeps_too_much:
            newest_ns = self.tails.pop(0).newest_ns
            if newest_ns >= since_ns:
                since_ns, self._exact = newest_ns + 1, False
        self._asked_since_ns = since_ns
        seam = Seam(since_ns)
        try:
            for tail in self.tails:
                seam.next_stream()
                for piece in tail.pieces():
                    seam.receive_data(piece)
                    await asyncio.sleep(0)  # there may be much of it
        except FormatError as exc:
            logger.warning(
                "%s: what came last cannot be joined: %s", self._lane.name, exc
            )
            self._exact = False
            newest_ns = max(each.newest_ns for each in self.tails)
            self._asked_since_ns = max(since_ns, newest_ns + 1)
            return None
        return seam

    def compare_clock(self) -> bool:
        """See whether the worker's clock was set back since its last promise.

        What came then has times from before that, and is not asked for: nobody could
        tell it from what had come. Return whether the clock is where it was: else all
        of it would be.
        """
        skew = self._lane.skew
        if skew is None:
            return True
        elapsed = asyncio.get_running_loop().time() - self._lane.heard
        heard_ns = self.present_ns() - int(elapsed * SECONDS)
        if heard_ns + skew.error_ns < self._asked_since_ns:
            self._exact = False
            self.outages.set_back(begin_ns=heard_ns - skew.error_ns)
        return self.present_ns() + skew.error_ns >= self._asked_since_ns

    def position(self, seam: Seam | None) -> Position:
        """Return where the lane is, when what is in ``seam`` is to come again."""
        packets, octets = self._merge.received(self._lane.index)
        return Position(
            opened_ns=self.opened_ns,
            since_ns=self._asked_since_ns,
            packets=packets,
            octets=octets,
            again=0 if seam is None else len(seam),
            again_octets=0 if seam is None else seam.octets,
        )

    def reopen(self, source: Source, *, seam: Seam | None) -> None:
        """Have the merge take another stream for the lane's: ``source`` is open."""
        lane = self._lane
        lane.source = source
        target = source.target
        self.follows = isinstance(target, HttpTarget) and target.follows
        again = 0 if seam is None else len(seam)
        self._joined = self._merge.counters(lane.index).joined + again
        since_ns = min(self._asked_since_ns, self.present_ns())
        self._merge.reopen(lane.index, since_ns=since_ns, seam=seam)
        self._merge.limit(
            lane.index,
            self._inlet.config.buffer_bytes,
            live=lane.live and not self.follows,
        )

    def refill(self) -> None:
        """Say that the stream, which has begun, brings what came during the outage."""
        lane, source = self._lane, self._lane.source
        window, known = source.window, lane.window or _WHOLE
        whole = window is not None and not window.lacks_more_than(known)
        complete = source.trusted and whole
        certain = self.ledger.refilled(since_ns=self._asked_since_ns)
        end_ns = self._asked_until_ns()
        if complete and not lane.live:
            # The past has not moved: what is later than all that had come is no refill.
            end_ns = 1 + max(each.newest_ns for each in self.tails)
        self._merge.refill(lane.index, end_ns if lane.live else self._asked_since_ns)
        self.outages.refill(end_ns=end_ns, exact=self._exact and complete and certain)
        if not source.trusted:
            self.outages.settle(end_ns=end_ns, filled=False)

    def lose(self) -> None:
        """Say that the stream, which has begun, brings nothing of the outage."""
        self._asked_since_ns = 0
        self._since_ns = self.present_ns() - HEARTBEAT_NS
        self.outages.give_up()
        self.ledger.begin()
        self.tails = self.tails[-1:] if self._lane.trusted else []
        if self._heartbeats is not None:
            self._heartbeats.tails = self.tails
        if not self._lane.trusted:
            self.outages.settle(end_ns=self.present_ns(), filled=False)

    def over(self, *, filled: bool) -> None:
        """Say that nothing more is to come; ``filled`` is whether nothing was to."""
        self.outages.settle(end_ns=self._asked_until_ns(), filled=filled)

    def finish(self) -> None:
        """End the stream: it ended as it should."""
        if self.outages.open:
            # What a promise would have told is told by the end.
            self._check_refill(_LATEST_NS)
        self.ledger.close()

    def settle(self) -> None:
        """Tell what there is to tell when all has come out of the merge."""
        self.ledger.close()
        self.outages.count()

    # What is learned

    def measured(self, skew: Skew | None) -> None:
        """Take a new measurement of the worker's clock.

        The best one before the target is opened counts, and what is shifted by it goes
        on so, unless it is certain that the clock was set.
        """
        known = self._lane.skew
        if skew is None:
            return
        if known is not None and self.opened_ns and not known.differs(skew):
            return
        if known is not None and not self.opened_ns and skew.error_ns >= known.error_ns:
            return
        self._note_skew(skew)

    def _note_skew(self, skew: Skew) -> None:
        lane = self._lane
        lane.skew = skew
        if skew.notable and not self._said_skew:
            self._said_skew = True
            logger.warning("%s: its clock is %s from ours", lane.name, skew)
        if self._inlet.config.clock is ClockMode.CORRECT:
            shift_ns = -skew.offset_ns if skew.certain else 0
            lane.shift_ns = max(min(shift_ns, _MAX_SHIFT_NS), -_MAX_SHIFT_NS)
            if not self.opened_ns:
                lane.shifts.clear()  # none of it was used
            lane.shifts.append((self._inlet.clock_ns(), lane.shift_ns))
            self._merge.shift(lane.index, lane.shift_ns)

    def _learn(self, last: Heartbeat) -> None:
        """See what a new heartbeat says."""
        counted_ns = last.note.counted_ns
        exact = counted_ns is not None
        if self._recorded:
            # Of a ring is told what is before the promise, and no more.
            counted_ns, exact = last.promised_ns, True
        elif counted_ns is None:
            error_ns = 0 if self._lane.skew is None else self._lane.skew.error_ns
            counted_ns = self.present_ns() + error_ns
        self.ledger.check(counted_ns=counted_ns, exact=exact)
        while len(self.tails) > 1 and self.tails[0].empty:
            del self.tails[0]
        if not self.outages.open:
            return
        if self.outages.last.end_ns is None:
            # Nobody refills it: it is over since the worker captures again.
            began_ns = last.started_ns or last.promised_ns
            self.outages.settle(end_ns=began_ns, filled=False)
        else:
            self._check_refill(last.promised_ns)

    def _check_refill(self, promised_ns: int) -> None:
        joined = self._merge.counters(self._lane.index).joined >= self._joined
        self.outages.check(promised_ns, self.ledger.books.current, joined=joined)

    def _doubt(self, heartbeats: Heartbeats, seconds: float) -> None:
        """See whether the stream keeps its promises, and nobody waits for it too long."""
        lane = self._lane
        if heartbeats.withheld:
            patience = format_duration(PATIENCE_NS)
            self._distrust(f"no heartbeat for {patience}, though they were promised")
            return
        if not lane.live or (self.suspended and not self._lags):
            return
        lag = heartbeats.lag(late_ns=self.behind_ns, seconds=seconds)
        if self._lags:
            if not lag:
                self._lags = False
                logger.warning("%s: its heartbeats are in time again", lane.name)
        elif lag or self._early(heartbeats):
            self.doubtful = True
        elif not lane.shift_ns and _is_old(lane.skew):
            # Its promises are true, and old by all other clocks.
            self._merge.advance(lane.index, self._inlet.clock_ns() - PATIENCE_NS)

    def judge(self) -> None:
        """Believe no promise that cannot be, and wait for none that is too late.

        One that is late may be as true as any: what it is about is late with it, as in
        a network that has less room than is sent. It is not waited for until it is in
        time again, and that is all.
        """
        self.doubtful = False
        lane, heartbeats = self._lane, self._heartbeats
        if heartbeats is None:
            return
        if self._early(heartbeats):
            self._distrust("its heartbeats promise what is yet to come")
        elif lag := heartbeats.lag(late_ns=self.behind_ns, seconds=0.0):
            self._lags = True
            logger.warning(
                "%s: %s; nobody waits for it until they are in time again",
                lane.name,
                lag,
            )
            self.suspend()

    def _early(self, heartbeats: Heartbeats) -> bool:
        skew = self._lane.skew
        return skew is not None and heartbeats.early(
            present_ns=self.present_ns() + skew.error_ns
        )

    def _distrust(self, reason: str) -> None:
        """Go on with a stream that keeps no promise as with one that made none."""
        lane = self._lane
        lane.trusted = self._lags = False
        lane.distrusted = reason
        if lane.follows:
            lane.live = True
        logger.warning(
            "%s: %s; from now on its silence counts as it does without them",
            lane.name,
            reason,
        )
        if self.outages.open:
            self.outages.settle(end_ns=self.present_ns(), filled=False)
        self._inlet.listen(lane)

    def _see_whether_back(self) -> None:
        """Have the merge wait for the lane again when it is where the others are."""
        if not self._lags and self._is_back():
            self.suspended = False
            self._merge.resume(self._lane.index)
            self._inlet.wake.set()

    def _is_back(self) -> bool:
        """Whether it is where it would be had it not broken.

        That is for its own clock to say, which may be behind the others', and its
        promises. Of who makes none it is where the others are.
        """
        if self._lane.trusted and (behind_ns := self.behind_ns) is not None:
            return not self.outages.open and behind_ns <= LATEST_NS
        index, config = self._lane.index, self._inlet.config
        slack_ns = config.hold_ns + config.disorder_ns
        return self._merge.watermark(index) >= self._merge.released_ns - slack_ns


def _is_old(skew: Skew | None) -> bool:
    """Whether a clock is so far behind ours that nobody waits for it."""
    return skew is not None and skew.offset_ns + skew.error_ns < -PATIENCE_NS
