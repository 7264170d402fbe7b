from __future__ import annotations

import pytest

from ddump_common.errors import BrokenStreamError, ExitCode, UnreachableError
from ddump_common.window import Interval, WindowReport
from ddump_merger._merge import Merge
from ddump_merger.lane import Lane, LaneState
from ddump_merger.summary import exit_code, summary_lines
from ddump_merger.target import parse_target
from support.captures import SLL, Cooked, Record, pcap

START = 1_700_000_000_000_000_000


def lane(index, word, *, error=None, has_header=True):
    return Lane(
        index=index,
        target=parse_target(word),
        source=None,
        live=word.startswith("http"),
        heard=0.0,
        error=error,
        has_header=has_header,
    )


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ([(None, True)], ExitCode.OK),
        ([(None, True), (None, False)], ExitCode.OK),
        ([(None, False)], ExitCode.NO_TARGET),
        ([("x", True), (None, True)], ExitCode.INCOMPLETE),
        ([("x", False), (None, True)], ExitCode.INCOMPLETE),
        ([("x", True)], ExitCode.INCOMPLETE),
        ([("x", False), ("y", False)], ExitCode.NO_TARGET),
        ([("x", False), (None, False)], ExitCode.NO_TARGET),
    ],
)
def test_the_exit_code(lanes, expected):
    built = [
        lane(n, "a", error=error and UnreachableError(error), has_header=has_header)
        for n, (error, has_header) in enumerate(lanes)
    ]
    assert exit_code(built) is expected


def test_every_target_has_a_line():
    merge = Merge(5)
    merge.start(276)
    merge.receive_data(0, pcap([Record(START, Cooked().sll())]))
    merge.receive_data(1, pcap([Record(START, b"b")] * 2, link_type=276))
    merge.receive_data(
        2, pcap([Record(START, Cooked(payload=bytes(262_100)).sll())] * 2)
    )
    for index in range(5):
        merge.receive_eof(index) if index < 3 else merge.refuse(index)
    while merge.data_to_send():
        pass
    merge_late = list(
        summary_lines(
            [
                lane(0, "http://a"),
                lane(1, "b.pcap"),
                lane(2, "http://c", error=BrokenStreamError("cut \x1b short")),
                lane(
                    3, "d=http://d", error=UnreachableError("refused"), has_header=False
                ),
                lane(4, "e"),
            ],
            merge,
        )
    )
    assert merge_late == [
        "a: 1 packet received, - dropped by kernel, 0 late",
        "b.pcap: 2 packets received, 0 late",
        "c: 2 packets received, - dropped by kernel, 0 late, "
        r"truncated: cut \x1b short",
        "d: not captured: refused",
        "e: 0 packets received, 0 late",
        "all: 5 packets received, 0 late",
    ]


def test_what_was_cut_is_said():
    merge = Merge(1)
    merge.start(276)
    whole = Cooked(payload=bytes(262_144 - 16)).sll()  # four bytes too long as SLL2
    merge.receive_data(0, pcap([Record(START, whole)], link_type=SLL))
    merge.receive_eof(0)
    assert merge.data_to_send()
    assert list(summary_lines([lane(0, "a")], merge)) == [
        "a: 1 packet received, 0 late, 1 cut to the snapshot length"
    ]


@pytest.mark.parametrize(
    ("window", "skipped", "expected"),
    [
        (None, 0, ExitCode.OK),
        (WindowReport(covered=None), 0, ExitCode.OK),
        (WindowReport(covered=None, gaps=(Interval(begin_ns=0, end_ns=1),)), 0,
         ExitCode.INCOMPLETE),
        (WindowReport(covered=None, omitted=999), 0, ExitCode.INCOMPLETE),
        (None, 1, ExitCode.INCOMPLETE),
    ],
)  # fmt: skip
def test_what_a_window_lacks_is_missing(window, skipped, expected):
    one = lane(0, "http://a?last=5m")
    one.window, one.skipped = window, skipped
    assert exit_code([one, lane(1, "b")]) is expected


def test_a_window_has_counts_of_its_worker():
    one = lane(0, "http://a?last=5m")
    one.live, one.dropped, one.skipped = False, 3, 70
    merge = Merge(1)
    assert list(summary_lines([one], merge)) == [
        "a: 0 packets received, 3 dropped by kernel, 0 late, "
        "up to 70 no longer in the ring"
    ]


def test_a_lane_knows_when_it_has_ended():
    one = lane(0, "a.pcap")
    assert (one.name, one.state, one.ended) == ("a.pcap", LaneState.CONNECTING, False)
    one.state = LaneState.ENDED
    assert one.ended


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("connection refused", "connection refused"),
        ("404: There is no ring: it was not asked for", "404: There is no ring"),
        ("400: filter: The filter does not compile: x", "400: filter: The filter does not compile"),
        ("the ring has nothing of the window: 14:00:00 to 14:01:00 (1m)",
         "the ring has nothing of the window"),
        ("x" * 61, "x" * 59 + "…"),
    ],
)  # fmt: skip
def test_what_was_said_in_full_is_only_brought_to_mind(message, told):
    one = lane(
        0, "http://a", error=UnreachableError(message, hint="do"), has_header=False
    )
    assert list(summary_lines([one], Merge(1))) == [f"a: not captured: {told}"]
