"""The account of a run: its shape, and what every outcome looks like in it."""

from __future__ import annotations

import json

import msgspec
import pytest

import ddump_merger
from ddump_common.errors import BrokenStreamError, UnreachableError
from ddump_common.units import SECONDS
from ddump_common.window import Interval, WindowReport
from ddump_merger.counters import Counters
from ddump_merger.credentials import Keyring
from ddump_merger.lane import Lane
from ddump_merger.losses import Losses
from ddump_merger.outage import Outage
from ddump_merger.report import Report, compose, serialized
from ddump_merger.skew import Skew
from ddump_merger.target import parse_target

NOW = 1_700_661_780 * SECONDS  # 2023-11-22T14:03:00Z


def lane(index, word, **fields):
    return Lane(
        index=index, target=parse_target(word, keyring=Keyring()), source=None,
        live=True, heard=0.0, **{"has_header": True} | fields,
    )  # fmt: skip


NOTHING = Counters()


def report(*lanes, counters=NOTHING, targets=(), tried=True, error=""):
    """Return the report as it is written, read as JSON."""
    composed = compose(
        targets, lanes, (lambda _: counters) if tried else None,
        begun_ns=NOW, ended_ns=NOW + 1, exit_code=4, error=error, output="out.pcap",
    )  # fmt: skip
    data = serialized(composed)
    assert msgspec.json.decode(data, type=Report) == composed
    return json.loads(data)


EMPTY = {
    "host": None, "error": None, "packets": 0, "bytes": 0, "late": 0, "refilled": 0,
    "joined": 0, "cut": 0, "received": None, "dropped": None, "interface_dropped": None,
    "skipped": 0, "missing": 0, "surplus": 0, "backwards": 0, "distrusted": None,
    "window": None, "outages": [], "clock": None,
}  # fmt: skip


def test_the_whole_of_it():
    counters = Counters(
        packets=10, octets=1000, late=1, cut=2, refilled=3, joined=4, backwards=5
    )
    web = lane(
        0, "web=http://alice:secret@web1?filter=udp", host="web1.example",
        losses=Losses(received=20, dropped=6, interface_dropped=7, skipped=8, missing=9,
                      surplus=10),
        distrusted="it promised the future",
        window=WindowReport(
            covered=Interval(begin_ns=NOW, end_ns=NOW + SECONDS),
            gaps=(Interval(begin_ns=NOW - SECONDS, end_ns=NOW),), omitted=2,
        ),
        outages=[
            Outage(begin_ns=NOW, end_ns=NOW + 5, reason="reset", refilled=3, filled=True),
            Outage(begin_ns=NOW + 9, reason="gone"),
        ],
        skew=Skew(offset_ns=-3_002_000_000, error_ns=400_000), shift_ns=3_002_000_000,
    )  # fmt: skip
    told = report(web, lane(1, "old.pcap"), counters=counters)
    assert told == {
        "version": ddump_merger.__version__,
        "begun": "2023-11-22T14:03:00Z",
        "begun_ns": NOW,
        "ended": "2023-11-22T14:03:00.000000001Z",
        "ended_ns": NOW + 1,
        "exit_code": 4,
        "error": None,
        "output": "out.pcap",
        "totals": {
            "targets": 2, "captured": 2, "packets": 20, "bytes": 2000, "late": 2,
            "refilled": 6, "joined": 8, "cut": 4, "dropped": 6, "interface_dropped": 7,
            "skipped": 8, "missing": 9, "surplus": 10,
        },
        "targets": [
            {
                "name": "web", "url": "http://web1:8475/capture?filter=udp",
                "file": None, "outcome": "incomplete", "host": "web1.example",
                "error": None, "packets": 10, "bytes": 1000, "late": 1, "refilled": 3,
                "joined": 4, "cut": 2, "received": 20, "dropped": 6,
                "interface_dropped": 7, "skipped": 8, "missing": 9, "surplus": 10,
                "backwards": 5, "distrusted": "it promised the future",
                "window": {
                    "covered": {
                        "begin": "2023-11-22T14:03:00Z", "begin_ns": NOW,
                        "end": "2023-11-22T14:03:01Z", "end_ns": NOW + SECONDS,
                    },
                    "gaps": [{
                        "begin": "2023-11-22T14:02:59Z", "begin_ns": NOW - SECONDS,
                        "end": "2023-11-22T14:03:00Z", "end_ns": NOW,
                    }],
                    "omitted": 2,
                },
                "outages": [
                    {
                        "begin": "2023-11-22T14:03:00Z", "begin_ns": NOW,
                        "end": "2023-11-22T14:03:00.000000005Z", "end_ns": NOW + 5,
                        "reason": "reset", "refilled": 3, "filled": True,
                    },
                    {
                        "begin": "2023-11-22T14:03:00.000000009Z", "begin_ns": NOW + 9,
                        "end": None, "end_ns": None,
                        "reason": "gone", "refilled": 0, "filled": False,
                    },
                ],
                "clock": {"offset_ns": -3_002_000_000, "error_ns": 400_000,
                          "corrected": True},
            },
            EMPTY | {
                "name": "old.pcap", "url": None, "file": "old.pcap",
                "outcome": "complete", "packets": 10, "bytes": 1000, "late": 1,
                "refilled": 3, "joined": 4, "cut": 2, "backwards": 5,
            },
        ],
    }  # fmt: skip


FILLED = Outage(begin_ns=1, end_ns=2, reason="x", filled=True)


@pytest.mark.parametrize(
    ("fields", "outcome", "error"),
    [
        ({}, "complete", None),
        ({"outages": [FILLED]}, "complete", None),
        ({"losses": Losses(dropped=5)}, "complete", None),
        ({"outages": [Outage(begin_ns=1, reason="x")]}, "incomplete", None),
        ({"losses": Losses(missing=1)}, "incomplete", None),
        ({"losses": Losses(skipped=1)}, "incomplete", None),
        ({"window": WindowReport(covered=None, omitted=1)}, "incomplete", None),
        ({"error": BrokenStreamError("cut")}, "truncated", "cut"),
        ({"error": UnreachableError("no", hint="do"), "has_header": False},
         "not captured", "no (do)"),
        ({"has_header": False}, "not captured", None),
    ],
)  # fmt: skip
def test_outcomes(fields, outcome, error):
    (told,) = report(lane(0, "http://a", **fields))["targets"]
    assert (told["outcome"], told["error"]) == (outcome, error)


def test_before_anything_was_tried_its_targets_are_named():
    targets = [
        parse_target(word, keyring=Keyring()) for word in ("x=http://u:p@h", "a", "-")
    ]
    told = report(targets=targets, tried=False, error="cannot write out.pcap")
    assert told["error"] == "cannot write out.pcap"
    assert told["targets"] == [
        EMPTY | {"name": name, "url": url, "file": file, "outcome": "not captured"}
        for name, url, file in (
            ("x", "http://h:8475/capture", None), ("a", None, "a"), ("-", None, "-"),
        )
    ]  # fmt: skip
    assert told["totals"]["targets"] == 3
    assert told["totals"]["captured"] == 0


def test_what_nobody_tells_is_not_nothing():
    totals = report(lane(0, "http://a"), lane(1, "b"))["totals"]
    assert (totals["dropped"], totals["interface_dropped"]) == (None, None)
    told = lane(0, "http://a", losses=Losses(dropped=0)), lane(1, "http://b")
    assert report(*told)["totals"]["dropped"] == 0


def test_what_comes_from_the_network_is_made_printable_and_finite():
    huge = 1 << 70
    one = lane(
        0, "x\udce9.pcap", host="\x1b[2J" + "h" * 10_000,
        error=BrokenStreamError("\x00\ud800"),
        losses=Losses(received=huge, dropped=huge, interface_dropped=-1, skipped=huge,
                      missing=huge),
        outages=[Outage(begin_ns=(1 << 64) - 1, end_ns=0, reason="\x1b]0;x\x07")],
    )  # fmt: skip
    told = report(one, one)
    (first, _) = told["targets"]
    assert first["name"] == first["file"] == r"x\udce9.pcap"
    assert first["host"].startswith(r"\x1b[2Jhhh")
    assert len(first["host"]) < 5000
    assert first["error"] == r"\x00\ud800"
    most = (1 << 63) - 1
    assert (first["received"], first["dropped"], first["skipped"], first["missing"]) == (
        most, most, most, most,
    )  # fmt: skip
    assert first["interface_dropped"] == 0
    assert told["totals"]["missing"] == told["totals"]["dropped"] == most
    (outage,) = first["outages"]
    assert outage["reason"] == r"\x1b]0;x\x07"
    assert outage["begin"].startswith("2554-")
