"""How streams begin."""

from __future__ import annotations

import platform

from ddump_common.api import CaptureQuery, Link
from ddump_common.pcap import PcapHeader, Precision
from ddump_worker import __version__
from ddump_worker.preamble import pcap_preamble, pcapng_preamble
from support.pcapng_streams import Interface, PcapngStream


def read(query: CaptureQuery, *, filter_run: str | None = None) -> PcapngStream:
    stream = PcapngStream()
    filter_run = query.filter if filter_run is None else filter_run
    stream.receive_data(pcapng_preamble(query, filter_run=filter_run))
    stream.receive_eof()
    return stream


def test_classic_pcap_has_its_header():
    query = CaptureQuery(link=Link.SLL2, snaplen=96, precision=Precision.NANO)
    header = PcapHeader(link_type=276, snaplen=96, precision=Precision.NANO)
    assert pcap_preamble(query) == header.serialize()


def test_pcapng_says_who_writes_it():
    assert read(CaptureQuery()).section == {
        1: f"host: {platform.node()}",
        3: f"Linux {platform.release()}",
        4: f"ddump-worker {__version__}",
    }


def test_its_interface_is_what_was_asked_for():
    assert read(CaptureQuery()).interface == Interface(
        link_type=113, snaplen=262144, name="any", filter=""
    )
    query = CaptureQuery(
        filter="port 80",
        interfaces=("eth0", "lo"),
        snaplen=64,
        link=Link.SLL2,
        precision=Precision.MICRO,  # of classic pcap
    )
    assert read(query).interface == Interface(
        link_type=276, snaplen=64, name="eth0,lo", filter="port 80"
    )


def test_the_longest_filter_is_whole():
    words = "udp or " * 583 + "udp"
    assert read(CaptureQuery(filter=words)).interface.filter == words


def test_its_filter_is_the_one_that_was_run():
    query = CaptureQuery(filter="udp")
    run = "(not port 22) and (udp)"
    assert read(query, filter_run=run).interface.filter == run
