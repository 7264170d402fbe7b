from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.api import CaptureQuery, Link, RingQuery, check_filter, join_filters
from ddump_common.errors import ParameterError
from ddump_common.pcap import MAX_SNAPLEN, LinkType, Precision
from ddump_common.units import SECONDS

counts = st.none() | st.integers(1, 1 << 40)
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200
)
parameters = {
    "filter": texts,
    "interfaces": st.lists(
        st.from_regex(r"[a-z0-9.:@-]{1,15}", fullmatch=True), max_size=64
    ).map(tuple),
    "snaplen": st.integers(1, MAX_SNAPLEN),
    "packets": counts,
    "bytes": counts,
    "duration_ns": counts,
    "idle_ns": counts,
    "link": st.sampled_from(Link),
    "precision": st.sampled_from(Precision),
}
queries = st.builds(CaptureQuery, **parameters)
moments = st.none() | st.integers(0, (1 << 32) * SECONDS - 1)
NOW = 1_763_820_180 * SECONDS


@given(queries)
def test_queries_read_back(query):
    assert CaptureQuery.parse(query.pairs()) == query


def test_no_parameter_is_every_default():
    assert CaptureQuery.parse([]) == CaptureQuery()
    assert CaptureQuery().pairs() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("snaplen", "0"),
        ("snaplen", "262145"),
        ("snaplen", "-1"),
        ("snaplen", "1e3"),
        ("snaplen", "٣"),
        ("packets", "0"),
        ("packets", "9" * 19),
        ("bytes", ""),
        ("duration", "soon"),
        ("duration", "0"),
        ("idle", "1y"),
        ("link", "ethernet"),
        ("precision", "pico"),
        ("interface", ""),
        ("interface", "eth0/1"),
        ("interface", "sixteen-letters-"),
        ("filter", "icmp\0"),
        ("filter", "x" * 4097),
        ("filter", "ü" * 2049),
        ("filter", "\udcff"),
    ],
)
def test_bad_values_name_their_parameter(name, value):
    with pytest.raises(ParameterError) as caught:
        CaptureQuery.parse([(name, value)])
    assert caught.value.parameter == name
    assert str(caught.value).startswith(f"{name}: ")


def test_unknown_parameters_are_named():
    with pytest.raises(ParameterError, match=r"unknown parameter.*%26"):
        CaptureQuery.parse([("x" * 100, "")])


@pytest.mark.parametrize("name", ["filter", "snaplen", "duration"])
def test_repeated_parameters_are_named(name):
    with pytest.raises(ParameterError, match=f"{name}: given more than once"):
        CaptureQuery.parse([(name, "1"), (name, "1")])


def test_interfaces_repeat_up_to_a_bound():
    assert CaptureQuery.parse([("interface", "a"), ("interface", "b")]).interfaces == (
        "a",
        "b",
    )
    with pytest.raises(ParameterError, match="interface: is given more than 64 times"):
        CaptureQuery.parse([("interface", "a")] * 65)


def test_the_longest_filter_is_taken():
    check_filter("ü" * 2048)


@pytest.mark.parametrize(
    ("expressions", "joined"),
    [
        ((), ""),
        (("", " "), ""),
        (("icmp", ""), "icmp"),
        (("a or b", "not c"), "(a or b) and (not c)"),
    ],
)
def test_filters_are_joined_in_parentheses(expressions, joined):
    assert join_filters(*expressions) == joined


@pytest.mark.parametrize("expression", ["a) or (b", "a)", "(a", ")("])
def test_a_filter_does_not_reach_out_of_its_parentheses(expression):
    with pytest.raises(ParameterError, match=r"filter: the parentheses of .* match"):
        join_filters("c", expression)
    assert join_filters(expression) == expression  # the worker has its own words


def test_links():
    assert [link.link_type for link in Link] == [
        LinkType.LINUX_SLL,
        LinkType.LINUX_SLL2,
    ]


# --- The ring ---


@given(st.builds(dict, **parameters), moments, moments, st.booleans())
def test_windows_read_back(fields, one, other, follow):
    if one is not None and other is not None:
        one, other = min(one, other), max(one, other)
        if one == other:
            one = None
    query = RingQuery(**fields, since_ns=one, until_ns=other, follow=follow)
    assert RingQuery.parse_at(query.pairs(), now_ns=NOW) == query


def window(*pairs):
    return RingQuery.parse_at(pairs, now_ns=NOW)


def test_no_parameter_is_the_whole_ring():
    assert window() == RingQuery()
    assert RingQuery().pairs() == []


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("last", "5m")], {"since_ns": NOW - 300 * SECONDS}),
        ([("last", "90")], {"since_ns": NOW - 90 * SECONDS}),
        ([("last", "-5m")], {"since_ns": NOW - 300 * SECONDS}),
        ([("since", "-5m")], {"since_ns": NOW - 300 * SECONDS}),
        ([("since", "5m"), ("until", "now")], {"since_ns": NOW - 300 * SECONDS, "until_ns": NOW}),
        ([("since", "2025-11-22T15:03:00 01:00")], {"since_ns": NOW}),
        ([("until", "1763820180.5")], {"until_ns": NOW + SECONDS // 2}),
        ([("last", "1m"), ("until", "-30s")],
         {"since_ns": NOW - 60 * SECONDS, "until_ns": NOW - 30 * SECONDS}),
        ([("follow", "1"), ("filter", "icmp")], {"follow": True, "filter": "icmp"}),
        ([("follow", "")], {"follow": True}),
        ([("follow", "true")], {"follow": True}),
        ([("follow", "0")], {}),
        ([("follow", "false")], {}),
    ],
)  # fmt: skip
def test_windows(pairs, expected):
    assert window(*pairs) == RingQuery(**expected)


def test_last_reaches_back_to_the_epoch_at_most():
    assert RingQuery.parse_at([("last", "1h")], now_ns=SECONDS).since_ns == 0


@pytest.mark.parametrize(
    ("pairs", "name", "complaint"),
    [
        ([("since", "14:03")], "since", "names no time zone"),
        ([("until", "soon")], "until", "is not a time"),
        ([("last", "--5m")], "last", "is not a duration"),
        ([("follow", "yes")], "follow", "is not one of 1, true, 0, false"),
        ([("last", "1m"), ("since", "-1m")], "last", "since is given as well"),
        ([("since", "-1m"), ("since", "-1m")], "since", "given more than once"),
        ([("follow", "1"), ("follow", "1")], "follow", "given more than once"),
        ([("since", "-1m"), ("until", "-2m")], "until", "is not after since"),
        ([("since", "-1m"), ("until", "-1m")], "until", "is not after since"),
        ([("snaplen", "0")], "snaplen", "out of range"),
        ([("sinze", "-1m")], "sinze", "there are since, until, last, follow, interface"),
    ],
)  # fmt: skip
def test_bad_windows_name_their_parameter(pairs, name, complaint):
    with pytest.raises(ParameterError, match=complaint) as caught:
        window(*pairs)
    assert caught.value.parameter == name


def test_a_live_capture_has_no_window():
    with pytest.raises(ParameterError, match="since: unknown parameter"):
        CaptureQuery.parse([("since", "-5m")])
