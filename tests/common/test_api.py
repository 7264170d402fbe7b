from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddump_common.api import CaptureQuery, Link, check_filter, join_filters
from ddump_common.errors import ParameterError
from ddump_common.pcap import MAX_SNAPLEN, LinkType, Precision

counts = st.none() | st.integers(1, 1 << 40)
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200
)
queries = st.builds(
    CaptureQuery,
    filter=texts,
    interfaces=st.lists(st.from_regex(r"[a-z0-9.:@-]{1,15}", fullmatch=True)).map(
        tuple
    ),
    snaplen=st.integers(1, MAX_SNAPLEN),
    packets=counts,
    bytes=counts,
    duration_ns=counts,
    idle_ns=counts,
    link=st.sampled_from(Link),
    precision=st.sampled_from(Precision),
)


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
