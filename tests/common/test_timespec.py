from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.errors import UsageError
from ddump_common.timespec import LOCAL, format_time, parse_time
from ddump_common.units import SECONDS

BERLIN = ZoneInfo("Europe/Berlin")  # in winter an hour ahead, in summer two
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.integers(0, (1 << 32) * SECONDS - 1)


def ns(text):
    """Return the moment of a text in the standard library's grammar."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1) * 1000


NOW = ns("2026-11-22T14:08:30+00:00")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        (" now ", NOW),
        ("-5m", NOW - 300 * SECONDS),
        ("5m", NOW - 300 * SECONDS),
        ("1h30m", NOW - 5400 * SECONDS),
        ("-250ms", NOW - SECONDS // 4),
        ("-5", NOW - 5 * SECONDS),  # a plain number is seconds
        ("-0", NOW),
        ("15:03", ns("2026-11-22T15:03:00+01:00")),
        ("15:03:00.250", ns("2026-11-22T15:03:00.250+01:00")),
        ("15:08:30", NOW),
        ("15:08:30.000000001", NOW - 86400 * SECONDS + 1),  # it is yet to come
        ("15:09", ns("2026-11-21T15:09:00+01:00")),
        ("00:00", ns("2026-11-22T00:00:00+01:00")),
        ("23:59:60", ns("2026-11-22T00:00:00+01:00")),
        ("2026-11-22 14:03", ns("2026-11-22T14:03:00+01:00")),
        ("2026-07-22T14:03", ns("2026-07-22T14:03:00+02:00")),
        ("2026-11-22T14:03:00Z", ns("2026-11-22T14:03:00+00:00")),
        ("2026-11-22t14:03:00z", ns("2026-11-22T14:03:00+00:00")),
        ("2026-11-22T14:03Z", ns("2026-11-22T14:03:00+00:00")),
        ("2026-11-22T14:03:00+05:30", ns("2026-11-22T14:03:00+05:30")),
        ("2026-11-22T14:03:00+0530", ns("2026-11-22T14:03:00+05:30")),
        ("2026-11-22T14:03:00 05:30", ns("2026-11-22T14:03:00+05:30")),
        ("2026-11-22T14:03:00-08:00", ns("2026-11-22T14:03:00-08:00")),
        ("2026-11-22T14:03:00.1234567899-23:59", ns("2026-11-23T14:02:00+00:00") + 123456789),
        ("2016-12-31T23:59:60Z", ns("2017-01-01T00:00:00+00:00")),
        ("1763820180", 1763820180 * SECONDS),
        ("1763820180.250", 1763820180 * SECONDS + SECONDS // 4),
        ("1763820180.0000000019", 1763820180 * SECONDS + 1),
        ("0", 0),
        ("0.0", 0),
        ("100000000", 10**8 * SECONDS),
        ("2026-11-22", ns("2026-11-22T00:00:00+01:00")),
        ("2026-07-22", ns("2026-07-22T00:00:00+02:00")),
        ("4294967295.999999999", (1 << 32) * SECONDS - 1),
        ("2026-11-23T14:03:00Z", ns("2026-11-23T14:03:00+00:00")),  # it is yet to come
    ],
)  # fmt: skip
def test_moments(text, moment):
    assert parse_time(text, now_ns=NOW, zone=BERLIN) == moment


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-", "--5m", "+5m", "5x", "m", "soon", "NOW", "-now", "367d", "1e9",
        "1763820180250", "1763820180.", ".5", "1.2.3", "14:", "14:3", "1:03",
        "24:00", "14:60", "14:03:61", "14:03:00.", "14:03:00,5", "14:03Z", "-14:03",
        "2026-11-31", "2026-11-22Z", "2026-11-22T", "2026-13-01T00:00Z", "2026-02-29T00:00:00Z",
        "2026-11-22T14:03:00ZZ", "2026-11-22T14:03:00+24:00", "2026-11-22T14:03:00+01:60",
        "2026-11-22T14:03:00+1", "2026-11-22  14:03", "2026-11-22_14:03", "22.11.2026 14:03",
        "٢٠٢٦-11-22T14:03:00Z", "14:03\0", "2026-11-22T14:03:00\nZ", "9" * 5000,
        "0000-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"is not a time|no such offset") as caught:
        parse_time(text, now_ns=NOW, zone=BERLIN)
    assert "for example -5m, 14:03, 2026-11-22T14:03:00Z or 1763820180.25" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "text",
    ["4294967296", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00+01:00",
     "9999-12-31T23:59:59Z", "2106-02-07T06:28:16Z"],
)  # fmt: skip
def test_what_a_capture_cannot_hold_is_refused(text):
    with pytest.raises(UsageError, match="is not between 1970 and 2106"):
        parse_time(text, now_ns=NOW, zone=BERLIN)


def test_nothing_was_before_1970():
    with pytest.raises(UsageError, match="is not between 1970 and 2106"):
        parse_time("-1h", now_ns=SECONDS, zone=None)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5", "meant 5m or 05:00?"),
        ("14", "meant 14m or 14:00?"),
        ("1403", "meant 14:03?"),
        ("90", "for example -5m, "),
        ("2500", "for example -5m, "),
        ("20261122", "for example -5m, "),
        ("0.5", "for example -5m, "),
        ("99999999.999999999", "for example -5m, "),
    ],
)
def test_a_small_number_is_no_moment_of_1970(text, hint):
    with pytest.raises(UsageError, match="is a moment of the seventies") as caught:
        parse_time(text, now_ns=NOW, zone=None)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text", ["14:03", "2026-11-22T14:03:00", "2026-11-22 14:03", "2026-11-22"]
)
def test_without_a_zone_a_time_has_to_name_one(text):
    with pytest.raises(UsageError, match=r"names no time zone.*with an offset"):
        parse_time(text, now_ns=NOW, zone=None)


@pytest.mark.parametrize("text", ["now", "-5m", "1763820180.25", "2026-11-22T14:03Z"])
def test_what_is_absolute_or_relative_needs_no_zone(text):
    assert parse_time(text, now_ns=NOW, zone=None) == parse_time(
        text, now_ns=NOW, zone=BERLIN
    )


# --- When clocks are put forward and back ---


@pytest.mark.parametrize("zone", [BERLIN, LOCAL])
@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        # A date means the first of two: a window that begins there has it all.
        ("2026-10-25 02:30", "2026-11-22T14:03:00Z", "2026-10-25T00:30:00Z"),
        ("2026-10-25 01:59", "2026-11-22T14:03:00Z", "2026-10-24T23:59:00Z"),
        ("2026-10-25 03:00", "2026-11-22T14:03:00Z", "2026-10-25T02:00:00Z"),
        # A time of day is the last that has been.
        ("02:30", "2026-10-25T02:00:00Z", "2026-10-25T01:30:00Z"),
        ("02:30", "2026-10-25T01:29:59Z", "2026-10-25T00:30:00Z"),
        ("02:30", "2026-10-25T00:29:59Z", "2026-10-24T00:30:00Z"),
        # Today's was skipped, so it is yesterday's,
        ("02:30", "2026-03-29T12:00:00Z", "2026-03-28T01:30:00Z"),
        # and yesterday's was, while today's is yet to come.
        ("02:30", "2026-03-29T23:00:00Z", "2026-03-28T01:30:00Z"),
        ("02:30", "2026-03-30T00:30:00Z", "2026-03-30T00:30:00Z"),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_clocks_are_put_back(zone, text, now, expected):
    now_ns = parse_time(now, now_ns=0, zone=None)
    assert format_time(parse_time(text, now_ns=now_ns, zone=zone)) == expected


@pytest.mark.parametrize("zone", [BERLIN, LOCAL])
@pytest.mark.usefixtures("berlin")
def test_a_time_that_clocks_were_put_past_is_refused(zone):
    with pytest.raises(UsageError, match="02:30' was no time here: clocks were put"):
        parse_time("2026-03-29 02:30", now_ns=NOW, zone=zone)


# --- The zone of this process ---


@given(moments)
def test_the_local_zone_is_the_system_s(moment):
    shown = datetime.fromtimestamp(moment // SECONDS, LOCAL)
    assert shown.replace(tzinfo=None, fold=0) == datetime.fromtimestamp(
        moment // SECONDS
    ).replace(fold=0)
    assert shown.timestamp() == moment // SECONDS


@pytest.mark.usefixtures("berlin")
def test_the_local_zone_has_each_date_s_rules():
    winter, summer = (datetime(2026, month, 1, tzinfo=LOCAL) for month in (1, 7))
    assert (winter.utcoffset(), summer.utcoffset()) == (
        timedelta(hours=1),
        timedelta(hours=2),
    )
    assert (winter.tzname(), summer.tzname()) == ("CET", "CEST")
    assert winter.dst() is None


def test_the_local_zone_alone_has_no_offset():
    assert LOCAL.utcoffset(None) is None
    assert LOCAL.tzname(None) is None


# --- Written out ---


@given(moments)
def test_times_read_back(moment):
    assert parse_time(format_time(moment), now_ns=0, zone=None) == moment


@given(moments)
def test_times_are_what_the_standard_library_reads(moment):
    read = datetime.fromisoformat(format_time(moment))  # it cuts finer digits off
    assert (read - EPOCH) // timedelta(microseconds=1) == moment // 1000


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (NOW, "2026-11-22T14:08:30Z"),
        (NOW + 250_000_000, "2026-11-22T14:08:30.25Z"),
        (NOW + 1, "2026-11-22T14:08:30.000000001Z"),
    ],
)
def test_times_are_as_short_as_they_can_be(moment, text):
    assert format_time(moment) == text


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_a_usage_error(text):
    try:
        moment = parse_time(text, now_ns=NOW, zone=BERLIN)
    except UsageError:
        return
    assert 0 <= moment < (1 << 32) * SECONDS


@given(st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{5,8}[Z+ -]?[0-9:]{0,5}", fullmatch=True))  # fmt: skip
def test_what_looks_like_a_time_agrees_with_the_standard_library(text):
    try:
        moment = parse_time(text, now_ns=NOW, zone=UTC)
    except UsageError:
        return
    if ":60" in text:
        return  # a leap second is nothing that the library knows
    tail = text[11:].replace(" ", "+")
    read = datetime.fromisoformat(text[:11] + tail)
    assert (read.replace(tzinfo=read.tzinfo or UTC) - EPOCH) // timedelta(
        microseconds=1
    ) * 1000 == moment
