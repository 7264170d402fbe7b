from __future__ import annotations

import io

import pytest

from ddump_merger.table import print_table, table_lines

ROWS = [
    ["target", "state", "packets", "begin"],
    ["10.88.123.201", "recording", "7", "2026-11-22 14:03:00"],
    ["漢字", "", "12345", "-"],
]


HOSTILE = [
    ["target", "packets", "host"],
    ["a\x07", "12", "ev\x1b[2Jil" * 40],
    ["b", "-", ""],
]


def test_a_table_with_room():
    assert list(table_lines(ROWS, width=80)) == [
        "target         state      packets                begin",
        "10.88.123.201  recording        7  2026-11-22 14:03:00",
        "漢字                        12345                    -",
    ]


@pytest.mark.parametrize("width", [54, 53])
def test_what_just_fits_and_what_does_not(width):
    assert len(list(table_lines(ROWS, width=width))) == (3 if width == 54 else 6)


def test_columns_without_room_are_below():
    assert list(table_lines(ROWS, width=26)) == [
        "target         state",
        "    packets",
        "                  begin",
        "10.88.123.201  recording",
        "          7",
        "    2026-11-22 14:03:00",
        "漢字",
        "      12345",
        "                      -",
    ]


def test_a_cell_that_is_wider_than_all_is_not_cut():
    assert list(table_lines([["a", "b"], ["x" * 50, "y"]], width=10))[2:] == [
        "x" * 50,
        "    y",
    ]


def test_cells_are_parted_by_tabs_and_safe(capsys):
    print_table(HOSTILE)
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
    print_table([row[:2] for row in HOSTILE])
    assert [line.rstrip() for line in terminal.getvalue().splitlines()] == [
        "target  packets",
        "a\\x07        12",
        "b             -",
    ]
