"""The worker's log, on stderr: lines for people, or JSON objects, one a line.

What is logged with ``extra={"fields": {...}}`` has these as ``name=value`` behind its
words, or as members of the object.
"""

from __future__ import annotations

import enum
import json
import logging
import re
import sys
from typing import TYPE_CHECKING

from ddump_common.text import printable
from ddump_common.timespec import format_time
from ddump_common.units import MILLISECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LogFormat", "configure"]

_PLAIN = re.compile(r"[\w.:/@*=,\[\]+-]+", re.ASCII)


class LogFormat(enum.StrEnum):
    """How lines of the log are written."""

    TEXT = "text"
    JSON = "json"


def configure(log_format: LogFormat) -> None:
    """Have all that this process logs from now on written to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log_format is LogFormat.JSON else TextFormatter()
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(capture=True)  # of libraries: they would be no JSON


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    """A line for people, and what belongs to it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """Return the line, without a traceback."""
        words = [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        return " ".join([super().formatMessage(record), *words])


def _word(value: object) -> str:
    if isinstance(value, str):
        text = printable(value, limit=len(value))
        return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
    return json.dumps(value, default=str)


class JsonFormatter(logging.Formatter):
    """One JSON object, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
        time_ns = round(record.created * 1000) * MILLISECONDS
        members: dict[str, object] = {
            "time": format_time(time_ns),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps(members, default=str)
