"""Durations and sizes as people write them: ``1h30m``, ``250ms``, ``2GB``, ``512MiB``.

Durations become whole nanoseconds, sizes whole bytes; nothing is kept in floats. A
plain number is seconds or bytes. Units of durations are case-sensitive (``m`` is
minutes, and there is no ``M``), those of sizes are not: ``2gb`` is ``2GB``.
"""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import UsageError

__all__ = [
    "MEBIBYTES",
    "MICROSECONDS",
    "MILLISECONDS",
    "SECONDS",
    "format_about",
    "format_duration",
    "format_size",
    "format_size_like",
    "parse_duration",
    "parse_size",
]

MICROSECONDS = 1_000
MILLISECONDS = 1_000_000
SECONDS = 1_000_000_000
"""Nanoseconds in a unit."""

MEBIBYTES = 1 << 20
"""Bytes in one."""

_DURATION_UNITS = {
    "": SECONDS,
    "ns": 1,
    "us": MICROSECONDS,
    "µs": MICROSECONDS,
    "ms": MILLISECONDS,
    "s": SECONDS,
    "m": 60 * SECONDS,
    "h": 3600 * SECONDS,
    "d": 86400 * SECONDS,
}
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_DECIMAL_UNITS = ((1000**4, "TB"), (1000**3, "GB"), (1000**2, "MB"), (1000, "kB"))
_BINARY_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TERM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([a-zµ]*)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([a-zA-Z]{0,3})", re.ASCII)
_LONGEST = 366 * 86400 * SECONDS
_LARGEST = 1 << 60


def parse_duration(text: str) -> int:
    """Return the nanoseconds of ``text``: ``5``, ``1.5s``, ``250ms``, ``1h30m``.

    Raises:
        UsageError: it is not a duration, or longer than a year.

    """
    terms = _TERM.findall(text)
    if not terms or "".join(number + unit for number, unit in terms) != text:
        raise _bad_duration(text)
    if len(terms) > 1 and any(not unit for _, unit in terms):
        raise _bad_duration(text)
    total = 0
    for number, unit in terms:
        if unit not in _DURATION_UNITS:
            raise _bad_duration(text)
        total += int(Decimal(number) * _DURATION_UNITS[unit])
    if total > _LONGEST:
        raise UsageError(f"{text!r} is longer than a year")
    return total


def _bad_duration(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not a duration", hint="for example 250ms, 5s or 1h30m"
    )


def parse_size(text: str) -> int:
    """Return the bytes of ``text``: ``65536``, ``2GB``, ``2gb``, ``512MiB``.

    Raises:
        UsageError: it is not a size.

    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else None
    if match is None or unit not in _SIZE_UNITS:
        raise UsageError(f"{text!r} is not a size", hint="for example 2GB or 512MiB")
    size = int(Decimal(match[1]) * _SIZE_UNITS[unit])
    if size > _LARGEST:
        raise UsageError(f"{text!r} is larger than any memory or disk")
    return size


def format_duration(nanoseconds: int) -> str:
    """Return ``nanoseconds`` as people write it; ``parse_duration`` reads it back."""
    if nanoseconds == 0:
        return "0s"
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
        count, nanoseconds = divmod(nanoseconds, _DURATION_UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def format_size(size: int) -> str:
    """Return ``size`` bytes to three digits or exactly: ``64MiB``, ``1.23GB``."""
    for unit, name in _DECIMAL_UNITS:
        if size % unit == 0 and 1 <= size // unit < 1000:
            return f"{size // unit}{name}"
    for unit, name in _BINARY_UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return _rounded_size(size, _DECIMAL_UNITS)


def format_about(size: int) -> str:
    """Return ``size`` bytes to three digits, never in MiB: as they change in a table."""
    return _rounded_size(size, _DECIMAL_UNITS)


def format_size_like(size: int, other: int) -> str:
    """Return ``size`` bytes to three digits, in the kind of units that ``other`` has.

    Those are MiB where that is how ``format_size`` has ``other``, else MB.
    """
    binary = format_size(other).endswith("iB")
    return _rounded_size(size, _BINARY_UNITS if binary else _DECIMAL_UNITS)


def _rounded_size(size: int, units: tuple[tuple[int, str], ...]) -> str:
    for unit, name in units:
        if size >= unit:
            return (
                f"{size / unit:.3g}{name}"
                if size < 999.5 * unit
                else f"{size / unit:.0f}{name}"
            )
    return f"{size}B"
