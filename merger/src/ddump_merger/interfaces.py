"""The interfaces of a pcapng output: who and where each packet comes from.

Every target is one, ``web``, or, where packets have the index of the interface that
they crossed, every interface of every target that packets come from, ``web/eth0``. Each
is described just before its first packet, for only then is it known that there is one;
targets that brought none are described at the end, so that all are there. All have one
link type and one snapshot length: libpcap reads no other capture.

At the end each has a statistics block. The counts of a target stand in that of its
first interface, for nobody counts by interface what was lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddump_common.pcapng import InterfaceDescription, Statistics
from ddump_common.text import printable
from ddump_common.timespec import format_time

from .target import HttpTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ddump_common.pcap import Precision

    from .counters import Counters
    from .lane import Lane
    from .outage import Outage

__all__ = ["Interfaces"]

# Longer names come from the network, and name nothing.
_LONGEST_NAME = 200

# More outages are counted; the report of the run has all.
_MOST_OUTAGES = 100

# A counter of pcapng has 64 bits; what workers tell may add up to more.
_GREATEST = (1 << 64) - 1


class Interfaces:
    """The interface blocks of one output, numbered in the order that they are made in."""

    def __init__(
        self, *, link_type: int, precision: Precision, per_interface: bool
    ) -> None:
        """``link_type`` and ``precision`` are the output's.

        ``per_interface`` is whether packets are told apart by their interfaces.
        """
        self._link_type = link_type
        self._precision = precision
        self._per_interface = per_interface
        self._owners: list[Lane] = []  # of each interface, by its number

    def describe(self, lane: Lane, index: int) -> tuple[bytes, int]:
        """Return the block of an interface of the target's, and its number.

        ``index`` is what the host calls it by; 0 is the target as a whole.
        """
        name = lane.name
        if self._per_interface and index:
            name += f"/{lane.interfaces.get(index, f'if{index}')}"
        target = lane.target
        number = len(self._owners)
        self._owners.append(lane)
        block = InterfaceDescription(
            link_type=self._link_type,
            name=printable(name, limit=_LONGEST_NAME),
            description=printable(lane.host, limit=_LONGEST_NAME),
            filter_expression=(
                target.query.filter if isinstance(target, HttpTarget) else ""
            ),
            comment=_told_clock(lane),
            precision=self._precision,
        )
        return block.serialize(), number

    def closing(
        self, lanes: Iterable[Lane], counters: Callable[[int], Counters], *, now_ns: int
    ) -> bytes:
        """Return what the capture ends with.

        Those are the targets that were not described yet, and what was counted of each.
        """
        described = {lane.index for lane in self._owners}
        blocks = [
            self.describe(lane, 0)[0] for lane in lanes if lane.index not in described
        ]
        counted: set[int] = set()
        for number, lane in enumerate(self._owners):
            if lane.index in counted:
                block = Statistics(
                    time_ns=now_ns, interface=number, precision=self._precision
                )
            else:
                counted.add(lane.index)
                block = self._statistics(number, lane, counters(lane.index), now_ns)
            blocks.append(block.serialize())
        return b"".join(blocks)

    def _statistics(
        self, number: int, lane: Lane, counters: Counters, now_ns: int
    ) -> Statistics:
        losses = lane.losses
        return Statistics(
            time_ns=now_ns,
            interface=number,
            received=_bounded(losses.received),
            interface_dropped=_bounded(losses.interface_dropped),
            dropped=_bounded(losses.dropped),
            delivered=counters.packets,
            comment="; ".join(_told_losses(lane)),
            precision=self._precision,
        )


def _bounded(count: int | None) -> int | None:
    return None if count is None else min(max(count, 0), _GREATEST)


def _told_clock(lane: Lane) -> str:
    """Return by what the target's times were corrected; empty when they were not."""
    if not lane.shift_ns or lane.skew is None:
        return ""
    return f"{lane.shift_ns} ns were added to all times: the clock was {lane.skew}"


def _told_losses(lane: Lane) -> list[str]:
    """Return what a comment says of that no counter has."""
    told = []
    if lane.error is not None:
        told.append(
            printable(
                f"{'truncated' if lane.has_header else 'not captured'}: {lane.error}"
            )
        )
    if lane.losses.missing:
        told.append(f"missing: {lane.losses.missing}")
    if lane.losses.surplus:
        told.append(f"surplus: {lane.losses.surplus}")
    if lane.losses.skipped:
        told.append(f"skipped: {lane.losses.skipped}")
    if lane.window is not None:
        told += [f"gap: {gap}" for gap in lane.window.gaps]
    told += [
        f"from {format_time(moment_ns)} on {shift_ns} ns were added to all times"
        for moment_ns, shift_ns in lane.shifts[1:][:_MOST_OUTAGES]
    ]
    told += [_told_outage(outage) for outage in lane.outages[:_MOST_OUTAGES]]
    if len(lane.outages) > _MOST_OUTAGES:
        told.append(f"outages besides: {len(lane.outages) - _MOST_OUTAGES}")
    return told


def _told_outage(outage: Outage) -> str:
    begin = format_time(outage.begin_ns)
    end = "" if outage.end_ns is None else format_time(outage.end_ns)
    found = "filled" if outage.filled else "not filled"
    reason = printable(outage.reason, limit=_LONGEST_NAME)
    return f"outage: {begin}/{end}, {outage.refilled} refilled, {found}: {reason}"
