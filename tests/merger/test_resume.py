"""What a target is asked for after a break."""

from __future__ import annotations

import pytest

from ddump_common.api import CaptureQuery, Link, RingQuery
from ddump_common.pcap import Precision
from ddump_common.ring import RingNote
from ddump_merger.resume import Position, by_clock, keeps, resumed, started_anew
from ddump_merger.target import parse_target

SECOND = 1_000_000_000
OPENED = 1_700_000_000 * SECOND
BROKE = OPENED + 10 * SECOND
NOW = OPENED + 15 * SECOND


def target(query="", path=""):
    return parse_target(f"a=http://host:1{path}?{query}")


def position(**changes):
    fields = {"opened_ns": OPENED, "since_ns": BROKE, "packets": 30, "octets": 3000}
    return Position(**(fields | changes))


def ring(**changes):
    return RingNote(**({"link": Link.SLL, "recording": True} | changes))


def test_which_rings_have_it_all():
    assert keeps(ring(), CaptureQuery())
    assert not keeps(None, CaptureQuery())
    assert not keeps(ring(recording=False), CaptureQuery())
    assert not keeps(ring(partial=True), CaptureQuery())


def test_a_ring_has_what_came_out_of_it():
    """Whatever it keeps; what comes from now on, only while it is recorded."""
    for kept in (ring(recording=False), ring(partial=True), ring(link=Link.SLL2)):
        assert keeps(kept, RingQuery(since_ns=OPENED, interfaces=("eth0",)))
    assert keeps(ring(partial=True), RingQuery(follow=True))
    assert not keeps(ring(recording=False), RingQuery(follow=True))
    assert not keeps(None, RingQuery())


def test_an_interface_is_known_by_its_index_only():
    query = CaptureQuery(interfaces=("eth0",), link=Link.SLL2)
    assert keeps(ring(link=Link.SLL2), query)
    assert not keeps(ring(), CaptureQuery(interfaces=("eth0",)))


def test_what_is_converted_is_not_what_had_come():
    assert keeps(ring(link=Link.SLL2), CaptureQuery(link=Link.SLL2))
    assert not keeps(ring(link=Link.SLL2), CaptureQuery())
    assert not keeps(ring(), CaptureQuery(link=Link.SLL2))


def test_a_window_is_asked_for_by_the_clock_of_who_is_asked():
    asked = by_clock(target("since=1700000000&until=1700000060", "/ring"), 3 * SECOND)
    assert asked.query.since_ns == OPENED + 3 * SECOND
    assert asked.query.until_ns == OPENED + 63 * SECOND
    asked = by_clock(target("since=1700000000&follow=1", "/ring"), -SECOND)
    assert (asked.query.since_ns, asked.query.until_ns) == (OPENED - SECOND, None)
    assert by_clock(target("filter=tcp"), SECOND) == target("filter=tcp")


def test_the_ring_is_asked_for_the_same():
    asked = resumed(
        target(
            "filter=tcp&interface=eth0&snaplen=96&link=sll2&precision=nano&idle=60s"
        ),
        position(),
        now_ns=NOW,
    )
    assert asked.query == RingQuery(
        filter="tcp", interfaces=("eth0",), snaplen=96, link=Link.SLL2,
        precision=Precision.NANO, idle_ns=60 * SECOND, since_ns=BROKE, follow=True,
    )  # fmt: skip
    assert asked.url.startswith("http://host:1/ring?")
    assert asked.name == "a"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "/ring"), ("/", "/ring"), ("/web/", "/web/ring"), ("/x/capture", "/x/ring")],
)
def test_the_ring_is_behind_the_same_proxy(path, expected):
    assert resumed(target(path=path), position(), now_ns=NOW).path == expected


@pytest.mark.parametrize(
    ("query", "again", "left"),
    [
        ("packets=100", {}, 70),
        ("packets=100", {"again": 5}, 75),
        ("packets=31", {}, 1),
        ("packets=30", {}, None),
        ("packets=30", {"again": 5}, None),
        ("packets=29", {}, None),
    ],
)
def test_packets_go_on_from_where_they_were(query, again, left):
    asked = resumed(target(query), position(**again), now_ns=NOW)
    assert (asked and asked.query.packets) == left


def test_bytes_go_on_from_where_they_were():
    asked = resumed(target("bytes=5000"), position(again_octets=50), now_ns=NOW)
    assert asked.query.bytes == 2050
    assert resumed(target("bytes=3000"), position(), now_ns=NOW) is None


@pytest.mark.parametrize(
    ("seconds", "follow"), [(60, True), (15.001, True), (15, False), (11, False)]
)
def test_a_duration_ends_when_it_would_have(seconds, follow):
    asked = resumed(target(f"duration={seconds}s"), position(), now_ns=NOW)
    assert asked.query.until_ns == OPENED + int(seconds * SECOND)
    assert asked.query.duration_ns is None
    assert asked.query.follow is follow


@pytest.mark.parametrize("seconds", [10, 9, 1])
def test_a_duration_that_is_over(seconds):
    assert resumed(target(f"duration={seconds}s"), position(), now_ns=NOW) is None


def follower(**changes):
    base = target("since=0&follow=1")
    fields = {"since_ns": 0, "follow": True}
    return type(base)(
        name="a", scheme="http", host="host", port=1, path="/ring",
        query=RingQuery(**(fields | changes)),
    )  # fmt: skip


def test_a_follower_goes_on_from_its_promise():
    asked = resumed(follower(filter="tcp"), position(), now_ns=NOW)
    assert asked.query == RingQuery(filter="tcp", since_ns=BROKE, follow=True)


def test_a_follower_ends_where_it_was_to_end():
    end = OPENED + 60 * SECOND
    asked = resumed(
        follower(until_ns=end, duration_ns=90 * SECOND), position(), now_ns=NOW
    )
    assert asked.query.until_ns == end
    assert resumed(follower(until_ns=BROKE), position(), now_ns=NOW) is None


def test_a_window_goes_on_with_what_is_left_of_it():
    until_ns = OPENED + 12 * SECOND
    asked = resumed(
        target(
            f"since={OPENED // SECOND}&until={until_ns // SECOND}&packets=50", "/ring"
        ),
        position(again=3),
        now_ns=NOW,
    )
    assert asked.query == RingQuery(since_ns=BROKE, until_ns=until_ns, packets=23)
    whole = target(f"until={BROKE // SECOND}", "/ring")
    assert resumed(whole, position(), now_ns=NOW) is None


@pytest.mark.parametrize("until_ns", [None, OPENED + 60 * SECOND])
def test_a_window_is_never_followed_that_was_not(until_ns):
    """It ended when it was opened, or ends in what is still to come."""
    begin = OPENED - 60 * SECOND
    query = RingQuery(since_ns=begin, until_ns=until_ns)
    asked = resumed(
        target().at("/ring", query), position(since_ns=begin + SECOND), now_ns=NOW
    )
    assert not asked.query.follow
    assert asked.query.until_ns == (OPENED if until_ns is None else until_ns)


@pytest.mark.parametrize(("seconds", "left"), [(20, 5), (15, None)])
def test_a_window_takes_no_longer_than_it_was_asked_to(seconds, left):
    asked = resumed(
        target(f"since=1700000000&until=1700000012&duration={seconds}", "/ring"),
        position(),
        now_ns=NOW,
    )
    if left is None:
        assert asked is None
    else:
        assert asked.query.duration_ns == left * SECOND
        assert asked.query.until_ns == OPENED + 12 * SECOND


def test_without_a_ring_it_goes_on_from_now():
    asked = started_anew(
        target("filter=tcp&packets=100&bytes=9000&duration=60s"),
        position(),
        now_ns=NOW,
    )
    assert asked.query == CaptureQuery(
        filter="tcp", packets=70, bytes=6000, duration_ns=45 * SECOND
    )
    assert asked.path == "/capture"


@pytest.mark.parametrize("query", ["packets=30", "bytes=3000", "duration=15s"])
def test_nothing_is_left(query):
    assert started_anew(target(query), position(), now_ns=NOW) is None


def test_a_follower_without_its_past_follows_from_now():
    end = OPENED + 60 * SECOND
    asked = started_anew(
        follower(until_ns=end, duration_ns=30 * SECOND), position(), now_ns=NOW
    )
    assert asked.query == RingQuery(
        since_ns=NOW, until_ns=OPENED + 30 * SECOND, follow=True
    )
