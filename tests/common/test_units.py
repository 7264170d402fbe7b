from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.errors import UsageError
from ddump_common.units import (
    MILLISECONDS,
    SECONDS,
    format_about,
    format_duration,
    format_size,
    format_size_like,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5", 5 * SECONDS),
        ("0.25", 250 * MILLISECONDS),
        ("250ms", 250 * MILLISECONDS),
        ("1h30m", 5400 * SECONDS),
        ("1.5s", 1500 * MILLISECONDS),
        ("1d", 86400 * SECONDS),
        ("7us", 7000),
        ("7µs", 7000),
        ("3ns", 3),
        ("0", 0),
    ],
)
def test_durations(text, nanoseconds):
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "-5m", "5M", "5 m", "1h30", "30m1", "1e3", "5x", "٣s", "1.s", "367d"],
)
def test_nonsense_is_not_a_duration(text):
    with pytest.raises(UsageError, match=r"is not a duration|longer than a year"):
        parse_duration(text)


@given(st.integers(0, 366 * 86400 * SECONDS))
def test_durations_read_back(nanoseconds):
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5k", 1500),
        ("0.5KiB", 512),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "2XB", "1e9", "2GBB", "99999999TB"])
def test_nonsense_is_not_a_size(text):
    with pytest.raises(UsageError, match=r"is not a size|larger than"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_sizes_read_back_to_three_digits(size):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (64 << 20, "64MiB"),
        (64_000_000, "64MB"),
        (2_000_000_000, "2GB"),
        (1_230_000_000, "1.23GB"),
        (999_999, "1000kB"),
    ],
)
def test_sizes_as_people_write_them(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (12614 << 10, "12.9MB"), (64 << 20, "67.1MB")]
)
def test_a_size_that_changes_keeps_its_kind_of_unit(size, text):
    assert format_about(size) == text


@pytest.mark.parametrize(
    ("size", "other", "text"),
    [
        (10223 << 10, 40_000_000, "10.5MB"),
        (2048, 2_000_000_000, "2.05kB"),
        (32 << 20, 256 << 20, "32MiB"),
        (33_000_000, 256 << 20, "31.5MiB"),
        ((1 << 20) - 1, 1 << 30, "1024KiB"),
        (7, 1 << 20, "7B"),
    ],
)
def test_a_size_in_the_units_of_another(size, other, text):
    assert format_size_like(size, other) == text
