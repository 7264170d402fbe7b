"""Moments as people write them, for both programs.

::

    now                            this moment
    -5m  5m  1h30m                 that long ago
    14:03  14:03:00.250            the last time that it was so late
    2026-11-22 14:03               local time; a T may stand for the space
    2026-11-22T14:03:00Z           RFC 3339, with an offset
    1763820180.250                 seconds since the epoch

A moment is whole nanoseconds since the epoch; finer digits are cut off. What names no
zone is local to whoever wrote it: only there is it read, and sent on as absolute time,
so that one command means one window on all hosts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .errors import UsageError
from .units import SECONDS, parse_duration

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["format_time", "parse_time"]

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
_EPOCH_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
# Beyond, a pcap file's 32 bits of seconds have run over.
_LATEST_NS = (1 << 32) * SECONDS


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
        return int(match[1]) * SECONDS + _nanoseconds(match[2])
    if match := _TIME_OF_DAY.fullmatch(text):
        return _time_of_day(text, match, now_ns, _known(zone, text))
    if match := _DATE_TIME.fullmatch(text):
        return _date_time(text, match, zone)
    try:
        return now_ns - parse_duration(text.removeprefix("-"))
    except UsageError:
        raise UsageError(f"{text!r} is not a time", hint=_EXAMPLES) from None


def _known(zone: tzinfo | None, text: str) -> tzinfo:
    if zone is None:
        raise UsageError(
            f"{text!r} names no time zone",
            hint="write 2026-11-22T14:03:00Z, or with an offset",
        )
    return zone


def _time_of_day(text: str, match: re.Match[str], now_ns: int, zone: tzinfo) -> int:
    today = (_EPOCH_BEGIN + timedelta(seconds=now_ns // SECONDS)).astimezone(zone)
    moment = _on_day(text, match, today, zone)
    return (
        moment
        if moment <= now_ns
        else _on_day(text, match, today - timedelta(days=1), zone)
    )


def _on_day(text: str, match: re.Match[str], day: datetime, zone: tzinfo) -> int:
    date = (day.year, day.month, day.day)
    return _moment(text, date, match.group(1, 2, 3), zone) + _nanoseconds(match[4])


def _date_time(text: str, match: re.Match[str], zone: tzinfo | None) -> int:
    if match[8]:
        zone = UTC
    elif match[9]:
        offset = timedelta(hours=int(match[10]), minutes=int(match[11]))
        if int(match[10]) > 23 or int(match[11]) > 59:
            raise UsageError(f"{text!r} has no such offset", hint=_EXAMPLES)
        # The time is read as UTC, and the offset is taken from it.
        ahead = -offset if match[9] == "-" else offset
        utc = _moment(text, _date(match), match.group(4, 5, 6), UTC)
        return utc - int(ahead.total_seconds()) * SECONDS + _nanoseconds(match[7])
    date, clock = _date(match), match.group(4, 5, 6)
    return _moment(text, date, clock, _known(zone, text)) + _nanoseconds(match[7])


def _date(match: re.Match[str]) -> tuple[int, int, int]:
    return int(match[1]), int(match[2]), int(match[3])


def _moment(
    text: str,
    date: tuple[int, int, int],
    clock: tuple[str | None, ...],
    zone: tzinfo,
) -> int:
    hours, minutes, seconds = (int(part or 0) for part in clock)
    leap = seconds == 60  # RFC 3339 has it; it is the second after
    try:
        moment = datetime(*date, hours, minutes, 59 if leap else seconds, tzinfo=zone)
        since_epoch = moment - _EPOCH_BEGIN
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{text!r} is not a time: {exc}", hint=_EXAMPLES) from None
    return (since_epoch.days * 86400 + since_epoch.seconds + leap) * SECONDS


def _nanoseconds(digits: str | None) -> int:
    return int((digits or "")[:9].ljust(9, "0"))


def format_time(timestamp_ns: int) -> str:
    """Return a moment in RFC 3339, in UTC; ``parse_time`` reads it back."""
    seconds, fraction = divmod(timestamp_ns, SECONDS)
    shown = (_EPOCH_BEGIN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{shown}{digits}Z"
