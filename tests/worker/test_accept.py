"""Which format ``Accept`` asks for."""

from __future__ import annotations

import time

import pytest

from ddump_worker.accept import prefers_pcapng

NG = "application/x-pcapng"
PCAP = "application/vnd.tcpdump.pcap"


@pytest.mark.parametrize(
    "accept",
    [
        NG,
        f"{NG}, {PCAP};q=0.5",
        f"{PCAP};q=0.5,{NG}",
        f"{PCAP}, {NG}",
        f"{NG}, */*",
        f"{NG};q=0.3, {PCAP};q=0.3",
        f"{NG};q=0.3, {PCAP};q=0.2, */*",  # the more specific range counts
        f"{NG};q=0.3, */*;q=0.2",
        f"{NG};q=0.3, application/*;q=0.3, */*;q=1",
        f"{NG};q=0.001, {PCAP};q=0",
        "APPLICATION/X-PCAPNG ; Q=1.000",
        f" , ,\t{NG}\t;\tq=0.9 ,, text/html",
        f'text/plain;format="a,b;q=\\"0", {NG};',
        f"{NG};q=0.4;extension=1",
        f"{NG};q=0.4, {NG};q=0, {PCAP};q=0.4",
    ],
)
def test_pcapng_for_who_names_it(accept):
    assert prefers_pcapng(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/*",
        PCAP,
        "text/html",
        f"{NG};q=0",
        f"{NG};q=0.000, */*;q=0.1",
        f"{NG};q=0.5, {PCAP}",
        f"{NG};q=0.5, */*",
        f"{NG};q=0.5, application/*;q=0.6, */*;q=0.1",
        f"{NG};version=1",  # narrower than what there is
        f"{NG};version=1, {PCAP};q=0.1",
        "application/x-pcapng2",
        "application/pcapng",
        f'text/plain;format="{NG}"',
    ],
)
def test_classic_pcap_for_who_does_not(accept):
    assert not prefers_pcapng(accept)


@pytest.mark.parametrize(
    "accept",
    [
        f"{NG};q=2",
        f"{NG};q=1.001",
        f"{NG};q=0.1234",
        f"{NG};q=-1",
        f"{NG};q=.5",
        f"{NG};q=",
        f"{NG};q",
        f"{NG};q=nan",
        f'{NG};q="1"',
        f"{NG};q=\u0660",
        f"{NG} {PCAP}",
        f"{NG}, text",
        f"{NG}, /",
        f'{NG}, a/b;c="',
        f"{NG}\0",
        f"{NG}, \xff/b",
        f"{NG};q=1, a/b;q=x",
    ],
)
def test_classic_pcap_for_what_cannot_be_read(accept):
    assert not prefers_pcapng(accept)


@pytest.mark.parametrize(
    "piece", [" ", ";", "; ", ";  a=b", ",", 'a/b;c="\\', 'a/b;c="d"', "a", "a/b "]
)
@pytest.mark.parametrize("begin", ["", NG, f'{NG};a="'])
def test_a_hostile_field_costs_little(piece, begin):
    began = time.process_time()
    prefers_pcapng(begin + piece * (64_000 // len(piece)) + "\0")
    assert time.process_time() - began < 0.5
