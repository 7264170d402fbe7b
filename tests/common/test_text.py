from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, ünïcode", "plain words, ünïcode"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("two\nlines\r\t", r"two\x0alines\x0d\x09"),
        ("\x9b31m", r"\x9b31m"),
        ("‮right to left", r"\u202eright to left"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("nbsp\xa0", r"nbsp\xa0"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, shown):
    assert printable(text) == shown


def test_long_text_is_cut():
    assert printable("x" * 501) == "x" * 499 + "…"
    assert printable("x" * 500) == "x" * 500


@given(st.text())
def test_one_printable_line_for_anything(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()  # no surrogate is left
