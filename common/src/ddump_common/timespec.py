"""Moments as people write them, for both programs.

::

    now                            this moment
    -5m  5m  1h30m                 that long ago
    14:03  14:03:00.250            the last time that it was so late
    2026-11-22 14:03               local time; a T may stand for the space
    2026-11-22                     local midnight, when that day began
    2026-11-22T14:03:00Z           RFC 3339, with an offset
    1763820180.250                 seconds since the epoch

A moment is whole nanoseconds since the epoch; finer digits are cut off. What names no
zone is local to whoever wrote it: only there is it read, and sent on as absolute time,
so that one command means one window on all hosts. Of a local time that came twice, as
clocks are put back, a date means the first and a time of day the last; one that clocks
were put past is refused. So are seconds since the epoch of fewer than nine
digits, but for 0: who writes ``--since 5`` or ``1400`` does not mean 1970.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from .errors import UsageError
from .units import SECONDS, parse_duration

__all__ = ["LOCAL", "format_time", "parse_time"]

_EXAMPLES = "for example -5m, 14:03, 2026-11-22T14:03:00Z or 1763820180.25"
_FRACTION = r"(?:\.([0-9]{1,18}))?"
_EPOCH = re.compile(r"([0-9]{1,11})" + _FRACTION, re.ASCII)
_CLOCK = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})" + _FRACTION + ")?"
_TIME_OF_DAY = re.compile(_CLOCK, re.ASCII)
# A + that was not encoded arrives from a query string as a space.
_DATE_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]"
    + _CLOCK
    + r"(?:([Zz])|([+ -])([0-9]{2}):?([0-9]{2}))?",
    re.ASCII,
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_MIDNIGHT = " 00:00"
_EPOCH_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
# Beyond, a pcap file's 32 bits of seconds have run over.
_LATEST_NS = (1 << 32) * SECONDS
# Before, in 1973, it was meant as something else.
_EARLIEST_EPOCH_NS = 10**8 * SECONDS
# A time of day that is yet to come was yesterday, or, where clocks were put past it
# then, the day before.
_DAYS_BACK = 3


class _LocalZone(tzinfo):
    """The zone of this process, as ``TZ`` and the system have it, at each date's rules."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, dt: datetime) -> datetime:
        return dt.replace(tzinfo=UTC).astimezone().replace(tzinfo=self)


LOCAL: tzinfo = _LocalZone()
"""The zone of whoever runs this process."""


def parse_time(text: str, *, now_ns: int, zone: tzinfo | None) -> int:
    """Return the nanoseconds since the epoch of the moment that ``text`` names.

    Args:
        text: see the module's table.
        now_ns: this moment.
        zone: of times without one; ``None`` refuses them.

    Raises:
        UsageError: it names none, or one that a capture cannot hold.

    """
    moment = _parse(text.strip(), now_ns, zone)
    if not 0 <= moment < _LATEST_NS:
        raise UsageError(f"{text!r} is not between 1970 and 2106")
    return moment


def _parse(text: str, now_ns: int, zone: tzinfo | None) -> int:
    if text == "now":
        return now_ns
    if match := _EPOCH.fullmatch(text):
        return _epoch(text, match)
    if match := _TIME_OF_DAY.fullmatch(text):
        return _time_of_day(text, match, now_ns, _known(zone, text))
    if _DATE.fullmatch(text):
        text += _MIDNIGHT
    if match := _DATE_TIME.fullmatch(text):
        return _date_time(text, match, zone)
    try:
        return now_ns - parse_duration(text.removeprefix("-"))
    except UsageError:
        raise UsageError(f"{text!r} is not a time", hint=_EXAMPLES) from None


def _epoch(text: str, match: re.Match[str]) -> int:
    moment = int(match[1]) * SECONDS + _nanoseconds(match[2])
    if 0 < moment < _EARLIEST_EPOCH_NS:
        raise UsageError(f"{text!r} is a moment of the seventies", hint=_meant(text))
    return moment


def _meant(text: str) -> str:
    """Return what somebody who wrote a small number may have wanted."""
    if re.fullmatch("[01]?[0-9]|2[0-3]", text):
        return f"meant {text}m or {text:0>2}:00?"
    if re.fullmatch("([01][0-9]|2[0-3])[0-5][0-9]", text):
        return f"meant {text[:2]}:{text[2:]}?"
    return _EXAMPLES


def _known(zone: tzinfo | None, text: str) -> tzinfo:
    if zone is None:
        raise UsageError(
            f"{text!r} names no time zone",
            hint="write 2026-11-22T14:03:00Z, or with an offset",
        )
    return zone


def _time_of_day(text: str, match: re.Match[str], now_ns: int, zone: tzinfo) -> int:
    today = (_EPOCH_BEGIN + timedelta(seconds=now_ns // SECONDS)).astimezone(zone)
    days = [today - timedelta(days=days) for days in range(_DAYS_BACK)]
    moments = [
        moment + _nanoseconds(match[4])
        for day in days
        for moment in _moments(
            text, (day.year, day.month, day.day), match.group(1, 2, 3), zone
        )
    ]
    return max(moment for moment in moments if moment <= now_ns)


def _date_time(text: str, match: re.Match[str], zone: tzinfo | None) -> int:
    date = int(match[1]), int(match[2]), int(match[3])
    ahead = timedelta()
    if match[8]:
        zone = UTC
    elif match[9]:
        # The time is read as UTC, and the offset is taken from it.
        zone = UTC
        hours, minutes = int(match[10]), int(match[11])
        if hours > 23 or minutes > 59:
            raise UsageError(f"{text!r} has no such offset", hint=_EXAMPLES)
        offset = timedelta(hours=hours, minutes=minutes)
        ahead = -offset if match[9] == "-" else offset
    moments = _moments(text, date, match.group(4, 5, 6), _known(zone, text))
    if not moments:
        raise UsageError(f"{text!r} was no time here: clocks were put forward past it")
    return moments[0] - int(ahead.total_seconds()) * SECONDS + _nanoseconds(match[7])


def _moments(
    text: str,
    date: tuple[int, int, int],
    clock: tuple[str | None, ...],
    zone: tzinfo,
) -> list[int]:
    """Return when clocks in ``zone`` showed this: once, twice, or never."""
    hours, minutes, seconds = (int(part or 0) for part in clock)
    leap = seconds == 60  # RFC 3339 has it; it is the second after
    try:
        shown = datetime(*date, hours, minutes, 59 if leap else seconds, tzinfo=zone)
        in_utc = [shown.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
        # A time that was skipped comes back as another.
        existing = {
            moment
            for moment in in_utc
            if moment.astimezone(zone).replace(tzinfo=None)
            == shown.replace(tzinfo=None)
        }
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{text!r} is not a time: {exc}", hint=_EXAMPLES) from None
    passed = [moment - _EPOCH_BEGIN for moment in sorted(existing)]
    return [(each.days * 86400 + each.seconds + leap) * SECONDS for each in passed]


def _nanoseconds(digits: str | None) -> int:
    return int((digits or "")[:9].ljust(9, "0"))


def format_time(timestamp_ns: int) -> str:
    """Return a moment in RFC 3339, in UTC; ``parse_time`` reads it back."""
    seconds, fraction = divmod(timestamp_ns, SECONDS)
    shown = (_EPOCH_BEGIN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{shown}{digits}Z"
