from __future__ import annotations

import pytest

from ddump_common.errors import (
    BrokenStreamError,
    ExitCode,
    OutputError,
    UnreachableError,
    UsageError,
)
from ddump_common.units import SECONDS
from ddump_common.window import Interval, WindowReport
from ddump_merger._merge import Merge
from ddump_merger.counters import Counters
from ddump_merger.lane import Lane, LaneState
from ddump_merger.losses import Losses
from ddump_merger.outage import Outage
from ddump_merger.skew import Skew
from ddump_merger.summary import exit_code, failure_code, failures, summary_lines
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
    one.window, one.losses = window, Losses(skipped=skipped)
    assert exit_code([one, lane(1, "b")]) is expected


def test_a_window_has_counts_of_its_worker():
    one = lane(0, "http://a?last=5m")
    one.live, one.losses = False, Losses(dropped=3, skipped=70)
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


# 2023-11-22, 15:03:00 in Berlin
MOMENT = 1_700_661_780 * SECONDS


class Counted:
    """Stands where the merge does: every input has the same counters."""

    def __init__(self, **counts):
        self.counted = Counters(**counts)

    def counters(self, _index):
        return self.counted


def told(one, monkeypatch, **counts):
    monkeypatch.setattr("time.time_ns", lambda: MOMENT + 3600 * SECONDS)
    return list(summary_lines([one], Counted(**counts)))


def test_what_is_nothing_is_not_said(monkeypatch):
    one = lane(0, "web=http://a")
    one.losses = Losses(received=1, dropped=0, interface_dropped=0)
    one.window = WindowReport(covered=Interval(begin_ns=0, end_ns=1))
    assert told(one, monkeypatch, packets=1, joined=7) == [
        "web: 1 packet received, 0 dropped by kernel, 0 late"
    ]


def test_every_loss_is_said(monkeypatch):
    one = lane(0, "web=http://a")
    one.losses = Losses(dropped=1, interface_dropped=2, missing=3, skipped=4, surplus=8)
    counts = {"packets": 9, "late": 5, "refilled": 6, "cut": 7, "backwards": 1}
    assert told(one, monkeypatch, **counts) == [
        "web: 9 packets received, 1 dropped by kernel, 2 dropped by interface, 5 late, "
        "6 refilled, 3 missing, 8 more than were sent, up to 4 no longer in the ring, "
        "7 cut to the snapshot length, 1 heartbeat went backwards"
    ]


@pytest.mark.usefixtures("berlin")
def test_gaps_and_outages_are_said_in_local_time(monkeypatch):
    one = lane(0, "web=http://a")
    one.losses = Losses(dropped=0)
    one.window = WindowReport(
        covered=None,
        gaps=(Interval(begin_ns=MOMENT - 70 * SECONDS, end_ns=MOMENT),),
    )
    begin, end = MOMENT + SECONDS // 4, MOMENT + 5 * SECONDS + SECONDS // 2
    one.outages = [
        Outage(begin_ns=begin, end_ns=end, reason="x", refilled=1234, filled=True),
        Outage(begin_ns=begin, end_ns=end, reason="x", refilled=12),
        Outage(begin_ns=begin, end_ns=end, reason="x"),
        Outage(begin_ns=begin, reason="connection reset by peer: \x1b[2J"),
    ]
    lines = told(one, monkeypatch, packets=2)
    assert lines == [
        "web: 2 packets received, 0 dropped by kernel, 0 late",
        "    gap 15:01:50 to 15:03:00 (1m10s): the ring may lack packets",
        "    broken 15:03:00.250 to 15:03:05.500 (5s200ms): 1234 refilled, none missing",
        "    broken 15:03:00.250 to 15:03:05.500 (5s200ms): 12 refilled, "
        "may lack packets",
        "    broken 15:03:00.250 to 15:03:05.500 (5s200ms): may lack packets",
        "    broken since 15:03:00.250: connection reset by peer",
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("berlin")
def test_more_gaps_and_outages_than_help_are_counted(monkeypatch):
    one = lane(0, "web=http://a")
    gap = Interval(begin_ns=MOMENT, end_ns=MOMENT + SECONDS)
    one.window = WindowReport(covered=None, gaps=(gap,) * 6, omitted=10)
    one.outages = [Outage(begin_ns=MOMENT, end_ns=MOMENT + SECONDS, reason="x")] * 9
    lines = told(one, monkeypatch)[1:]
    assert [line.split()[0] for line in lines[:4]] == ["gap"] * 4
    assert lines[4] == "    12 more gaps"
    assert [line.split()[0] for line in lines[5:9]] == ["broken"] * 4
    assert lines[9:] == ["    broken 5 times more"]
    one.window = WindowReport(covered=None, gaps=(gap,) * 5)
    one.outages = one.outages[:5]
    lines = told(one, monkeypatch)
    assert (lines[5], lines[-1]) == ("    1 more gap", "    broken once more")


@pytest.mark.parametrize(
    ("offset_ns", "shift_ns", "said"),
    [
        (100_000, 0, ", clock +0.1 ms ± 0.4 ms"),
        (3_002_000_000, 0, ", clock +3.002 s ± 0.4 ms"),
        (3_002_000_000, -3_002_000_000, ", clock +3.002 s ± 0.4 ms corrected"),
    ],
)
def test_what_is_known_of_a_clock_is_said(monkeypatch, offset_ns, shift_ns, said):
    one = lane(0, "web=http://a")
    one.skew = Skew(offset_ns=offset_ns, error_ns=400_000)
    one.shift_ns = shift_ns
    (line,) = told(one, monkeypatch)
    assert line.endswith(said)


def test_what_was_not_captured_has_no_counts(monkeypatch):
    one = lane(0, "http://a", error=UnreachableError("refused"), has_header=False)
    one.losses = Losses(dropped=3)
    assert told(one, monkeypatch) == ["a: not captured: refused"]


@pytest.mark.parametrize(
    ("exc", "leaves", "code"),
    [
        (UnreachableError("x"), 1, ExitCode.FAILURE),
        (OutputError("x"), 1, ExitCode.OUTPUT),
        (UsageError("x"), 1, ExitCode.USAGE),
        (BrokenPipeError(), 1, ExitCode.OK),
        (KeyboardInterrupt(), 1, 130),
        (LookupError(), 1, ExitCode.FAILURE),
        (BaseExceptionGroup("", [BrokenPipeError()]), 1, ExitCode.OK),
        (BaseExceptionGroup("", [
            BrokenPipeError(),
            ExceptionGroup("", [OutputError("x"), UnreachableError("y")]),
        ]), 3, ExitCode.OUTPUT),
    ],
)  # fmt: skip
def test_what_ends_a_run_early_has_a_code(exc, leaves, code):
    assert len(list(failures(exc))) == leaves
    assert failure_code(exc) == code


def test_nothing_ends_most_runs_early():
    assert list(failures(None)) == []


def test_why_heartbeats_are_believed_no_more_is_said(monkeypatch):
    one = lane(0, "web=http://a")
    one.distrusted = "it promised the future \x1b"
    assert told(one, monkeypatch)[1:] == [
        r"    distrusted: it promised the future \x1b"
    ]
