"""Tables of what came from the network."""

from __future__ import annotations

import io

import pytest

from ddump_common.errors import ExitCode
from ddump_merger.survey import print_table, survey_code, told_size
from ddump_merger.target import parse_target

ROWS = [
    ["target", "packets", "host"],
    ["a\x07", "12", "ev\x1b[2Jil" * 40],
    ["b", "-", ""],
]


def test_cells_are_parted_by_tabs_and_safe(capsys):
    print_table(ROWS)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading == "target\tpackets\thost"
    assert first.startswith("a\\x07\t12\tev\\x1b[2Jilev")
    assert "…" in first
    assert second == "b\t-\t"


def test_on_a_terminal_numbers_stand_below_each_other(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    print_table([row[:2] for row in ROWS])
    assert [line.rstrip() for line in terminal.getvalue().splitlines()] == [
        "target  packets",
        "a\\x07        12",
        "b             -",
    ]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({}, ExitCode.NO_TARGET),
        ({"a": 1}, ExitCode.INCOMPLETE),
        ({"a": 1, "b": 2}, ExitCode.OK),
    ],
)
def test_the_exit_code(answers, code):
    targets = [parse_target("http://a"), parse_target("http://b")]
    assert survey_code(targets, answers) is code


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0B"), (2_000_000_000, "2GB"), (-1, "?"), (1 << 63, "?")]
)
def test_sizes(size, told):
    assert told_size(size) == told
