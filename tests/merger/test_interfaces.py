"""Interface blocks of a whole output, as tcpdump, tshark and capinfos read it."""

from __future__ import annotations

import re
import subprocess

import pytest

from ddump_common.errors import BrokenStreamError, UnreachableError
from ddump_common.pcap import Precision
from ddump_common.units import SECONDS
from ddump_common.window import Interval, WindowReport
from ddump_merger._merge import Merge
from ddump_merger.header import OutputHeader
from ddump_merger.interfaces import Interfaces
from ddump_merger.lane import Lane
from ddump_merger.losses import Losses
from ddump_merger.outage import Outage
from ddump_merger.skew import Skew
from ddump_merger.target import parse_target
from support.captures import SLL, SLL2, Cooked, Record, pcap

NOW = 1_700_661_780 * SECONDS  # 2023-11-22T14:03:00Z
# What tcpdump says of any file, and of any with indices of interfaces.
USUAL = (
    "reading from file",
    'Running as user "root"',
    "Warning: interface names might be incorrect",
)
DATAGRAM = bytes.fromhex(
    "4500002000000000401100000a0000010a000002 138807d0000c0000 70617373"
)


def lane(index, word, **fields):
    return Lane(
        index=index, target=parse_target(word), source=None, live=True, heard=0.0,
        **{"has_header": True} | fields,
    )  # fmt: skip


def written(path, lanes, packets, *, precision=Precision.NANO, per_interface=False):
    """Write a capture: ``packets`` are those of each lane, as (seconds, index)."""
    link_type = SLL2 if per_interface else SLL
    nano = precision is Precision.NANO
    merge = Merge(len(lanes), pcapng=True, nano=nano, per_interface=per_interface)
    merge.start(link_type)
    interfaces = Interfaces(
        link_type=link_type, precision=precision, per_interface=per_interface
    )
    data = OutputHeader(pcapng=True, precision=precision).serialize(link_type)
    for one, sent in zip(lanes, packets, strict=True):
        records = [
            Record(
                NOW + second * SECONDS, Cooked(ifindex=index, payload=DATAGRAM).sll2()
            )
            for second, index in sent
        ]
        merge.receive_data(one.index, pcap(records, nano=True, link_type=SLL2))
        merge.receive_eof(one.index)
    while True:
        while piece := merge.data_to_send():
            data += piece
        due = merge.undescribed()
        if due is None:
            break
        i, index = due
        block, number = interfaces.describe(lanes[i], index)
        data += block
        merge.describe(i, index, number)
    data += interfaces.closing(lanes, merge.counters, now_ns=NOW + 60 * SECONDS)
    path.write_bytes(data)


def told(*command):
    """Return what a tool prints; that it complains of nothing is checked."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    complaints = [
        line for line in done.stderr.splitlines() if not line.startswith(USUAL)
    ]
    assert complaints == []
    return done.stdout


def packets_in(path):
    """Return of each packet which interface tshark says it is of; tcpdump reads it, too."""
    names = told(
        "tshark", "-nr", path, "-T", "fields", "-e", "frame.interface_name"
    ).split()
    assert told("tcpdump", "-nr", path).count("UDP") == len(names)
    return names


def capinfos(path):
    text = told("capinfos", path)
    return {
        "names": re.findall(r"^ +Name = (.+)$", text, re.MULTILINE),
        "descriptions": re.findall(r"^ +Description = (.+)$", text, re.MULTILINE),
        "comments": re.findall(r"^ +Comment = (.+)$", text, re.MULTILINE),
        "filters": re.findall(r"^ +Filter string = (.+)$", text, re.MULTILINE),
        "lengths": re.findall(r"^ +Capture length = (\d+)$", text, re.MULTILINE),
        "kinds": re.findall(r"^ +Encapsulation = ([^(]+?) \(", text, re.MULTILINE),
        "entries": re.findall(r"Number of stat entries = (\d+)", text),
    }


@pytest.mark.parametrize("precision", list(Precision))
def test_every_target_is_an_interface_also_one_that_brought_nothing(
    tmp_path, precision
):
    path = tmp_path / "out.pcapng"
    lanes = [
        lane(0, "web=http://web"),
        lane(1, "quiet=http://q?filter=udp port 53", host="quiet.example"),
        lane(2, "db=http://db", host="db.example"),
    ]
    written(path, lanes, [[(1, 2), (4, 2)], [], [(0, 3)]], precision=precision)
    assert packets_in(path) == ["db", "web", "web"]
    facts = capinfos(path)
    assert facts["names"] == ["db", "web", "quiet"]
    assert facts["descriptions"] == ["db.example", "quiet.example"]
    assert facts["filters"] == ["udp port 53"]
    assert facts["lengths"] == ["262144"] * 3
    assert len(set(facts["kinds"])) == 1
    assert facts["entries"] == ["1"] * 3
    assert facts["comments"] == []


def test_every_interface_of_a_target_is_one(tmp_path):
    path = tmp_path / "out.pcapng"
    lanes = [
        lane(0, "web=http://web", interfaces={2: "eth0", 3: "eth\x1b1"}),
        lane(1, "db=http://db"),
        lane(2, "quiet=http://quiet", interfaces={2: "eth0"}),
    ]
    written(
        path, lanes, [[(0, 2), (2, 3), (3, 2)], [(1, 7), (4, 0)], []],
        per_interface=True,
    )  # fmt: skip
    assert packets_in(path) == [
        "web/eth0", "db/if7", r"web/eth\x1b1", "web/eth0", "db",
    ]  # fmt: skip
    facts = capinfos(path)
    assert facts["names"] == [
        "web/eth0", "db/if7", r"web/eth\x1b1", "db", "quiet",
    ]  # fmt: skip
    assert facts["entries"] == ["1"] * 5
    assert len(set(facts["kinds"])) == 1


def closing(one):
    """Return the last block of an output of one target."""
    interfaces = Interfaces(
        link_type=SLL, precision=Precision.NANO, per_interface=False
    )
    interfaces.describe(one, 0)
    return interfaces.closing([one], Merge(1).counters, now_ns=NOW)


def option(block, code):
    """Return the values of an option of a statistics block."""
    at, found = 20, []
    while at < len(block) - 4:
        kind, size = (
            int.from_bytes(block[at + n : at + n + 2], "little") for n in (0, 2)
        )
        if kind == code:
            found.append(block[at + 4 : at + 4 + size])
        at += 4 + (size + 3) // 4 * 4
    return found


IFRECV, IFDROP, OSDROP, USRDELIV, COMMENT = 4, 5, 7, 8, 1


def test_counts_that_nobody_tells_are_left_out():
    block = closing(lane(0, "http://web"))
    assert [option(block, code) for code in (IFRECV, IFDROP, OSDROP)] == [[], [], []]
    assert option(block, USRDELIV) == [bytes(8)]
    assert option(block, COMMENT) == []


def test_what_is_known_to_be_lost_is_counted():
    losses = Losses(received=1000, dropped=7, interface_dropped=0)
    block = closing(lane(0, "http://web", losses=losses))
    values = [option(block, code)[0] for code in (IFRECV, OSDROP, IFDROP)]
    assert [int.from_bytes(value, "little") for value in values] == [1000, 7, 0]


def test_counts_that_no_counter_holds_are_its_greatest():
    losses = Losses(received=1 << 65, dropped=-1)
    block = closing(lane(0, "http://web", losses=losses))
    assert option(block, IFRECV) == [b"\xff" * 8]
    assert option(block, OSDROP) == [bytes(8)]


def comment(**fields):
    (text,) = option(closing(lane(0, "http://web", **fields)), COMMENT)
    return text.decode()


def test_outages_are_told_in_a_comment():
    outages = [
        Outage(begin_ns=NOW, end_ns=NOW + 5 * SECONDS + 1, reason="connection reset",
               refilled=12, filled=True),
        Outage(begin_ns=NOW + 9 * SECONDS, reason="gone\x1b"),
    ]  # fmt: skip
    assert comment(outages=outages) == (
        "outage: 2023-11-22T14:03:00Z/2023-11-22T14:03:05.000000001Z, 12 refilled, "
        "filled: connection reset; "
        r"outage: 2023-11-22T14:03:09Z/, 0 refilled, not filled: gone\x1b"
    )


def test_corrections_that_begin_later_are_told_in_a_comment():
    shifts = [(NOW, 0), (NOW + SECONDS, -3 * SECONDS), (NOW + 5 * SECONDS, 7)]
    assert comment(shifts=shifts) == (
        "from 2023-11-22T14:03:01Z on -3000000000 ns were added to all times; "
        "from 2023-11-22T14:03:05Z on 7 ns were added to all times"
    )


def test_more_outages_than_a_comment_holds_are_counted():
    outage = Outage(begin_ns=NOW, end_ns=NOW + 1, reason="é" * 5000)
    text = comment(outages=[outage] * 1000)
    assert text.count("outage: ") == 100
    assert text.endswith("outages besides: 900")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"losses": Losses(missing=3, skipped=5)}, "missing: 3; skipped: 5"),
        ({"losses": Losses(surplus=4)}, "surplus: 4"),
        ({"error": BrokenStreamError("cut")}, "truncated: cut"),
        ({"error": UnreachableError("refused"), "has_header": False},
         "not captured: refused"),
        ({"window": WindowReport(covered=None, gaps=(
            Interval(begin_ns=NOW, end_ns=NOW + SECONDS),))},
         "gap: 2023-11-22T14:03:00Z/2023-11-22T14:03:01Z"),
    ],
)  # fmt: skip
def test_what_else_is_missing_is_told_in_a_comment(fields, text):
    assert comment(**fields) == text


def test_a_clock_that_was_corrected_is_told_where_its_packets_are(tmp_path):
    path = tmp_path / "out.pcapng"
    skew = Skew(offset_ns=3_002_000_000, error_ns=400_000)
    lanes = [
        lane(0, "a=http://a", skew=skew, shift_ns=-skew.offset_ns),
        lane(1, "b=http://b", skew=skew),
    ]
    written(path, lanes, [[(0, 1)], [(1, 1)]])
    assert capinfos(path)["comments"] == [
        "-3002000000 ns were added to all times: the clock was +3.002 s ± 0.4 ms"
    ]


def test_a_name_that_is_no_text(tmp_path):
    path = tmp_path / "out.pcapng"
    written(path, [lane(0, "x\udce9.pcap")], [[(0, 1)]])
    assert packets_in(path) == [r"x\udce9.pcap"]
