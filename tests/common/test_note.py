"""What the comments of statistics blocks say, in words that are read back."""

from __future__ import annotations

import pytest

from ddump_common.note import EndReason, StreamNote

MOST = (1 << 63) - 1


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (StreamNote(), ""),
        (StreamNote(ended=EndReason.IDLE), "ended: idle"),
        (StreamNote(counted_ns=0), "counted: 0"),
        (StreamNote(skipped=7), "skipped: 7"),
        (
            StreamNote(ended=EndReason.COMPLETE, counted_ns=17, skipped=12),
            "ended: complete; counted: 17; skipped: 12",
        ),
    ],
)
def test_it_is_read_as_it_was_written(note, words):
    assert str(note) == words
    assert StreamNote.parse(words) == note


@pytest.mark.parametrize(
    "words",
    [
        "two hosts",
        "ended: tomorrow",
        "ended: idler",
        "not ended: idle",
        "counted: -1",
        "counted: 1e9",
        "counted: 9223372036854775808",
        "counted: 12345678901234567890",
        "counted: \u0661",
        "skipped: 1234567890123456789",
        "skipped:7",
        "counted: 17 skipped: 7",
    ],
)
def test_what_is_not_understood_is_left_alone(words):
    assert StreamNote.parse(words) == StreamNote()


def test_what_is_understood_stands_among_what_is_not():
    assert StreamNote.parse("by x; skipped: 3; y; ended: cap") == StreamNote(
        ended=EndReason.CAP, skipped=3
    )


def test_the_latest_time():
    for latest_ns in (10**18 - 1, 10**18, MOST - MOST % 10**18 - 1):
        assert StreamNote.parse(f"counted: {latest_ns}").counted_ns == latest_ns
    assert StreamNote.parse(f"counted: {MOST}").counted_ns is None  # in 2262
