from __future__ import annotations

import pytest

from ddump_common.api import RingQuery
from ddump_common.errors import ParameterError
from ddump_common.units import SECONDS
from ddump_common.window import Interval, WindowReport
from ddump_merger.window import (
    parse_window,
    told_duration,
    told_gaps,
    told_interval,
    told_outside,
    told_time,
)

pytestmark = pytest.mark.usefixtures("berlin")

NOW = 1_700_661_780 * SECONDS  # 2023-11-22T14:03:00Z


def ago(seconds):
    return NOW - int(seconds * SECONDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"last": "5m"}, {"since_ns": ago(300), "until_ns": NOW}),
        ({"last": "5m", "follow": "1"}, {"since_ns": ago(300), "follow": True}),
        ({"last": "-5m"}, {"since_ns": ago(300), "until_ns": NOW}),
        ({"since": "2023-11-22"}, {"since_ns": ago(15 * 3600 + 180), "until_ns": NOW}),
        ({"last": "5m", "follow": "0"}, {"since_ns": ago(300), "until_ns": NOW}),
        ({"last": "1m", "follow": "1", "until": "2023-11-22 15:04"},
         {"since_ns": ago(60), "until_ns": ago(-60), "follow": True}),
        ({"since": "15:01"}, {"since_ns": ago(120), "until_ns": NOW}),
        ({"since": "15:01", "until": "15:02:00.5"}, {"since_ns": ago(120), "until_ns": ago(59.5)}),
        ({"since": "-2m", "until": "now"}, {"since_ns": ago(120), "until_ns": NOW}),
        ({"until": "-1m"}, {"until_ns": ago(60)}),
        ({"since": "2023-11-22T14:01:00Z"}, {"since_ns": ago(120), "until_ns": NOW}),
        ({"follow": "1"}, {"since_ns": NOW, "follow": True}),
        ({"follow": "1", "since": "0"}, {"since_ns": 0, "follow": True}),
        ({"since": "2023-11-22 15:04"}, {"since_ns": ago(-60)}),
        ({}, {}),
        ({"filter": "icmp"}, {"filter": "icmp"}),
    ],
)  # fmt: skip
def test_windows(words, expected):
    assert parse_window(words.items(), now_ns=NOW) == RingQuery(**expected)


@pytest.mark.parametrize(
    ("words", "name", "complaint"),
    [
        ({"last": "5m", "since": "-5m"}, "last", "since is given as well"),
        ({"last": "5m", "until": "-1m"}, "last", "ends now.*give since with until"),
        ({"last": "0"}, "last", "is no time at all"),
        ({"last": "14:03"}, "last", "is not a duration"),
        ({"since": "14"}, "since", r"seventies \(meant 14m or 14:00\?\)"),
        ({"since": "soon"}, "since", r"is not a time \(for example"),
        ({"until": "24:00"}, "until", "is not a time"),
        ({"since": "-1m", "until": "-2m"}, "until", "is not after since"),
        ({"follow": "1", "until": "-1m"}, "until", "is past, so there is nothing to follow"),
        ({"follow": "1", "until": "16:00"}, "until", "a time of day means its last one"),
        ({"follow": "maybe"}, "follow", "is not one of"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(words, name, complaint):
    with pytest.raises(ParameterError, match=complaint) as caught:
        parse_window(words.items(), now_ns=NOW)
    assert caught.value.parameter == name


# --- What is told ---


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        (NOW, "15:03:00"),
        (NOW + 250_000_000, "15:03:00.250"),
        (NOW + 999_999, "15:03:00"),
        (ago(16 * 3600), "2023-11-21 23:03:00"),
        (10**40, "?"),
        (-(10**40), "?"),
    ],
)
def test_times(moment, told):
    assert told_time(moment, now_ns=NOW) == told


@pytest.mark.parametrize(
    ("length", "told"),
    [
        (0, "0s"),
        (37_500, "37us"),
        (3_900_000, "3ms"),
        (2_560_000_000, "2s500ms"),
        (70 * SECONDS + 999, "1m10s"),
        (-1, "?"),
        (1 << 63, "?"),
    ],
)
def test_lengths(length, told):
    assert told_duration(length) == told


def test_an_interval():
    assert (
        told_interval(ago(180), ago(110), now_ns=NOW) == "15:00:00 to 15:01:10 (1m10s)"
    )


def report(*gaps, omitted=0):
    return WindowReport(
        covered=None,
        gaps=tuple(Interval(begin_ns=ago(a), end_ns=ago(b)) for a, b in gaps),
        omitted=omitted,
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (report(), ""),
        (report((180, 110)), "the ring may lack what came from 15:00:00 to 15:01:10 (1m10s)"),
        (report((180, 110), (60, 50)),
         "the ring may lack what came from 15:00:00 to 15:01:10 (1m10s), "
         "from 15:02:00 to 15:02:10 (10s)"),
        (report(*[(60 - n * 10, 59 - n * 10) for n in range(5)]),
         "the ring may lack what came from 15:02:00 to 15:02:01 (1s), from 15:02:10 to 15:02:11 (1s), "
         "from 15:02:20 to 15:02:21 (1s), from 15:02:30 to 15:02:31 (1s), in one more gap"),
        (report((60, 50), omitted=7),
         "the ring may lack what came from 15:02:00 to 15:02:10 (10s), in 7 more gaps"),
        (report(omitted=999), "the ring may lack what came in 999 gaps"),
        (report(omitted=1), "the ring may lack what came in one gap"),
    ],
)  # fmt: skip
def test_gaps(told, expected):
    assert told_gaps(told, now_ns=NOW) == expected


def test_a_window_that_is_outside():
    words = "the ring has nothing of the window"
    assert told_outside(report(), now_ns=NOW) == words
    assert (
        told_outside(report((180, 110)), now_ns=NOW)
        == f"{words}: 15:00:00 to 15:01:10 (1m10s)"
    )
