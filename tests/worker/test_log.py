"""The log's lines: for people and as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from ddump_worker.log import JsonFormatter, LogFormat, TextFormatter


def record(message="said %s", *args, level=logging.INFO, exc_info=None, **fields):
    made = logging.LogRecord(
        "ddump_worker.x", level, __file__, 1, message, args, exc_info
    )
    made.created = 1_700_000_000.25
    if fields:
        made.fields = fields
    return made


def traceback():
    try:
        int("no\nnumber")
    except ValueError:
        return sys.exc_info()


FIELDS = {
    "identity": "cert:CN=alice",
    "path": "/a b",
    "filter": "port 80",
    "none": None,
    "many": ["eth0", "lo"],
    "number": 5,
    "terminal": "a\x1b[31m\nb\x9b\u202e",
    "quote": 'say "x" \\',
    "empty": "",
}


def test_a_line_for_people_has_its_fields_behind_it():
    line = TextFormatter().format(record("said %s", "this", **FIELDS))
    assert line.endswith(
        r' INFO said this identity=cert:CN=alice path="/a b" filter="port 80" none=null '
        r'many=["eth0", "lo"] number=5 terminal="a\\x1b[31m\\x0ab\\x9b\\u202e" '
        r'quote="say \"x\" \\" empty=""'
    )
    assert "\n" not in line


def test_without_fields_it_is_as_it_ever_was():
    line = TextFormatter().format(record("plain", level=logging.WARNING))
    assert line.endswith(" WARNING plain")


def test_a_long_field_is_whole():
    text = "udp or " * 583 + "udp"
    assert text in TextFormatter().format(record("x", filter=text))


def test_json_is_one_object_a_line_in_ascii():
    line = JsonFormatter().format(record("said %s", "this", **FIELDS))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.25Z",
        "level": "info",
        "message": "said this",
        **FIELDS,
    }


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_traceback_is_told(formatter):
    line = formatter.format(record("failed", exc_info=traceback(), path="/"))
    assert "ValueError: invalid literal" in line
    if isinstance(formatter, JsonFormatter):
        assert "\n" not in line
        assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize("log_format", LogFormat)
def test_configured_all_is_written_to_stderr(log_format):
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout == ""
    logged, warned, *_ = said.stderr.splitlines()
    if log_format is LogFormat.JSON:
        logged, warned = (json.loads(line)["message"] for line in (logged, warned))
    assert logged.endswith("a word")
    assert "UserWarning: odd" in warned


PROGRAM = """
import logging, sys, warnings
from ddump_worker.log import LogFormat, configure
configure(LogFormat(sys.argv[1]))
logging.getLogger("x").info("a word")
logging.getLogger("x").debug("not this")
warnings.warn("odd")
"""
