"""A share of something: ``1GB``, ``5%``, or ``1GB,5%``, which is the greater of both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ddump_common.errors import UsageError
from ddump_common.units import format_size, parse_size

__all__ = ["Share"]

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many bytes, or so many percent of a whole, whichever is more."""

    size: int = 0
    percent: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 0 or self.percent < 0:
            raise UsageError(f"a negative share: {self.size} bytes, {self.percent:g}%")

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read what people write.

        Raises:
            UsageError: it is neither, or one of both is there twice.

        """
        fields: dict[str, Any] = {}
        for part in text.split(","):
            match = _PERCENT.fullmatch(part.strip())
            name, value = (
                ("percent", float(match[1]))
                if match
                else ("size", _size(part.strip(), text))
            )
            if name in fields or (match and value > 100):
                raise _no_share(text)
            fields[name] = value
        return cls(**fields)

    def of(self, whole: int) -> int:
        """Return the bytes that this is of ``whole``."""
        return max(self.size, int(whole * self.percent / 100))

    def __str__(self) -> str:
        parts = [format_size(self.size)] if self.size else []
        if self.percent or not parts:
            parts.append(f"{self.percent:g}%")
        return ",".join(parts)


def _size(part: str, text: str) -> int:
    try:
        return parse_size(part)
    except UsageError:
        raise _no_share(text) from None


def _no_share(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not a size, a percentage or one of each",
        hint="for example 1GB, 5% or 1GB,5%",
    )
