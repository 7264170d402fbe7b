from __future__ import annotations

import string
import time
from itertools import pairwise

import http_sfv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.errors import UsageError
from ddump_common.fields import MAX_HEADER_BYTES
from ddump_common.units import SECONDS
from ddump_common.window import (
    MAX_GAPS,
    Interval,
    WindowReport,
    gaps,
    merge_intervals,
)

LATEST = (1 << 32) * SECONDS - 1
EXAMPLE = (
    'covered="2026-11-22T14:03:00Z/2026-11-22T14:08:00Z", '
    'gaps=("2026-11-22T14:04:10.5Z/2026-11-22T14:04:12Z"), omitted=3'
)


def interval(begin, end):
    return Interval(begin_ns=begin, end_ns=end)


def intervals_up_to(most):
    pair = st.tuples(st.integers(0, most), st.integers(0, most))
    return pair.map(lambda two: interval(min(two), max(two)))


small = st.lists(intervals_up_to(40), max_size=8)


def moments(intervals):
    return {
        moment for each in intervals for moment in range(each.begin_ns, each.end_ns)
    }


# --- Intervals ---


def test_an_interval_does_not_end_before_it_begins():
    assert interval(5, 5) < interval(5, 6)
    with pytest.raises(ValueError, match="ends 2 ns early"):
        interval(5, 3)


@given(intervals_up_to(LATEST))
def test_intervals_read_back(each):
    assert Interval.parse(str(each)) == each


@pytest.mark.parametrize(
    "text",
    ["", "/", "now", "2026-11-22T14:03:00Z", "2026-11-22T14:03:00Z/",
     "2026-11-22T14:03:00Z/2026-11-22T14:02:00Z", "2026-11-22T14:03:00/2026-11-22T14:04:00",
     "2026-11-22T14:03:00Z/2026-11-22T14:03:00Z/2026-11-22T14:03:00Z"],
)  # fmt: skip
def test_what_is_no_interval(text):
    with pytest.raises(UsageError):
        Interval.parse(text)


@given(intervals_up_to(40), intervals_up_to(40))
def test_an_intersection_is_what_is_in_both(one, other):
    common = one.intersection(other)
    assert moments([] if common is None else [common]) == moments([one]) & moments(
        [other]
    )


@given(small)
def test_merged_are_the_same_moments_and_do_not_touch(intervals):
    merged = merge_intervals(intervals)
    assert moments(merged) == moments(intervals)
    assert all(a.end_ns < b.begin_ns for a, b in pairwise(merged))


@given(intervals_up_to(40), small)
def test_gaps_are_what_is_in_none(window, covered):
    missing = gaps(window, covered)
    assert moments(missing) == moments([window]) - moments(covered)
    assert missing == merge_intervals(missing)
    assert all(each.begin_ns < each.end_ns for each in missing)


# --- The header ---


def test_the_example():
    report = WindowReport.parse(EXAMPLE)
    assert str(report.covered) == "2026-11-22T14:03:00Z/2026-11-22T14:08:00Z"
    assert [str(gap) for gap in report.gaps] == [
        "2026-11-22T14:04:10.5Z/2026-11-22T14:04:12Z"
    ]
    assert report.omitted == 3
    assert report.serialize() == EXAMPLE


@given(intervals_up_to(40), small)
def test_what_a_ring_has_of_a_window(window, coverage):
    report = WindowReport.of(window, coverage)
    inside = moments([window]) & moments(coverage)
    if report.covered is None:
        assert not inside
    else:
        assert (report.covered.begin_ns, report.covered.end_ns) == (
            min(inside),
            max(inside) + 1,
        )
    assert report.gaps == gaps(window, coverage)
    assert report.omitted == 0


def test_a_header_is_no_place_for_thousands():
    coverage = [interval(n * 10, n * 10 + 5) for n in range(2000)]
    report = WindowReport.of(interval(0, 20_000), coverage)
    assert len(report.gaps) == MAX_GAPS
    assert report.omitted == 2000 - MAX_GAPS
    assert report.gaps[0] == interval(5, 10)


reports = st.builds(
    WindowReport,
    covered=st.none() | intervals_up_to(LATEST),
    gaps=st.lists(intervals_up_to(LATEST), max_size=MAX_GAPS).map(tuple),
    omitted=st.integers(0, 10**15 - 1),
)


@given(reports)
def test_reports_read_back_here_and_by_a_parser_of_structured_fields(report):
    value = report.serialize()
    assert len(value) <= MAX_HEADER_BYTES
    assert WindowReport.parse(value) == report
    field = http_sfv.Dictionary()
    field.parse(value.encode())
    assert str(field) == value
    covered = field["covered"].value if report.covered else None
    assert covered == (report.covered and str(report.covered))
    assert [item.value for item in field["gaps"]] == [str(gap) for gap in report.gaps]
    assert (field["omitted"].value if report.omitted else 0) == report.omitted


@pytest.mark.parametrize(
    "value",
    [
        "gaps=()",
        " gaps=( ) ",
        "gaps=();a;b=1",
        'x=1, y="gaps=(", gaps=()',
        'discovered="1970-01-01T00:00:00Z/1970-01-01T00:00:01Z",gaps=()',
        'a=?1, b, c;d, e=:YWJj:, f=@1659578233, g=%"f%c3%bc", h=-1.5, i=t/o:k*n, gaps=()',
        'l=(1 "a, b" tok;p="x"), gaps=(),  m="\\"\\\\",\tn=1',
        'gaps=("1970-01-01T00:00:00Z/1970-01-01T00:00:01Z"), gaps=()',
    ],
)
def test_what_is_not_known_is_left_alone(value):
    http_sfv.Dictionary().parse(value.encode())
    assert WindowReport.parse(value) == WindowReport(covered=None)


@pytest.mark.parametrize(
    "value",
    [
        "gaps=(),",
        "gaps=( ",
        "gaps=())",
        "gaps=() x",
        "=1",
        "A=1, gaps=()",
        'gaps=("a""b")',
        'gaps=(("a"))',
        'x="\x07", gaps=()',
        'x="\\a", gaps=()',
        "x=ü, gaps=(",
        "gaps=()\nx=1",
    ],
)
def test_what_is_no_structured_field(value):
    with pytest.raises(ValueError):  # noqa: PT011  # it has no words for what is wrong
        http_sfv.Dictionary().parse(value.encode())
    with pytest.raises(UsageError, match="is no structured field"):
        WindowReport.parse(value)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "no structured field"),
        ('covered="1970-01-01T00:00:00Z/1970-01-01T00:00:01Z"', "names no gaps"),
        ('gaps=("soon")', "is no interval"),
        ("gaps=(1)", "is no interval"),
        (
            'gaps=(), covered="1970-01-01T00:00:02Z/1970-01-01T00:00:01Z"',
            "ends before it begins",
        ),
        ('gaps=(), covered="99999999999/0"', "is not between"),
        ("gaps=(), covered=1", "is no interval"),
        ("gaps=(), covered", "is no interval"),
        ("gaps=(), omitted=-1", "is no number of gaps"),
        ("gaps=(), omitted", "is no number of gaps"),
        ("gaps=(), omitted=1.5", "is no number of gaps"),
        ("gaps=(), omitted=1.5;a", "is no number of gaps"),
        ("gaps=(), omitted=3x", "is no number of gaps"),
        ("gaps=()" + " " * 9000, "too long"),
    ],
)
def test_what_is_no_report(value, complaint):
    with pytest.raises(UsageError, match=complaint):
        WindowReport.parse(value)


def test_parameters_of_a_number_are_left_alone():
    assert WindowReport.parse("gaps=(), omitted=3;a=1").omitted == 3


@pytest.mark.parametrize(
    ("value", "complete"),
    [
        ("gaps=()", True),
        ("gaps=(), omitted=999", False),
        ('gaps=("1970-01-01T00:00:00Z/1970-01-01T00:00:01Z")', False),
    ],
)
def test_what_is_complete(value, complete):
    assert WindowReport.parse(value).complete is complete


letters = string.ascii_lowercase[:3] + '"\\()=;, %:@*?19'


@given(st.text(letters, max_size=30))
def test_what_a_parser_of_structured_fields_reads_is_read(value):
    field = http_sfv.Dictionary()
    try:
        field.parse(value.encode())
    except ValueError:
        return
    if not field:
        return
    WindowReport.parse(f"{value.strip(' ')}, gaps=()")


@pytest.mark.parametrize(
    "value",
    ["gaps=(" + '" ' * 4000, "a" * 8000 + '"', "gaps=(" + "a;" * 4000, '"\\' * 4000,
     "a=" + "b;c=" * 2000, "gaps=(" + "a " * 4000, "gaps=(" + " " * 8000, "a" + ";a " * 2600,
     "a," * 4000, "gaps=(" + 'a;a="a" ' * 1000],
)  # fmt: skip
def test_hostile_headers_cost_little(value):
    began = time.process_time()
    with pytest.raises(UsageError):
        WindowReport.parse(value)
    assert time.process_time() - began < 0.1


def test_what_was_known_to_be_missing_is_no_more_than_that():
    first = WindowReport(covered=None, gaps=(interval(0, 10), interval(20, 30)))
    for lacks, more in (
        ((), False),
        ((interval(5, 10),), False),
        ((interval(0, 10), interval(20, 30)), False),
        ((interval(5, 11),), True),
        ((interval(5, 10), interval(12, 13)), True),
    ):
        again = WindowReport(covered=None, gaps=lacks)
        assert again.lacks_more_than(first) is more
    assert WindowReport(covered=None, omitted=1).lacks_more_than(first)
