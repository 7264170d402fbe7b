"""The public vocabulary as a caller uses it. Only type-checked, never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddump_common.api import CaptureQuery, Link, RingQuery, join_filters
from ddump_common.errors import FormatError
from ddump_common.pcap import MAX_SNAPLEN, LinkType, PcapHeader, Precision
from ddump_common.pcapng import InterfaceDescription, SectionHeader
from ddump_common.pki import Authority, Issued, RevocationList
from ddump_common.text import printable
from ddump_common.timespec import LOCAL, format_time, parse_time
from ddump_common.tls import client_context
from ddump_common.units import parse_duration, parse_size
from ddump_common.window import Interval, WindowReport
from ddump_merger._merge import Merge, Seam

if TYPE_CHECKING:
    from ssl import SSLContext


def query() -> list[tuple[str, str]]:
    asked = CaptureQuery(
        filter=join_filters("icmp", "host 10.0.0.5"),
        interfaces=("eth0",),
        snaplen=MAX_SNAPLEN,
        bytes=parse_size("2GB"),
        duration_ns=parse_duration("1h30m"),
        link=Link.SLL2,
        precision=Precision.NANO,
    )
    return CaptureQuery.parse(asked.pairs()).pairs()


def certificates(now_ns: int) -> tuple[bytes, bytes]:
    authority = Authority.create(now_ns=now_ns)
    server = authority.server(["web1", "10.0.0.1"], now_ns=now_ns)
    issued = Issued.parse(authority.client("alice", now_ns=now_ns).certificate_pem)
    revocations = RevocationList().adding([issued.serial], now_ns=now_ns)
    signed = authority.sign_revocations(revocations, now_ns=now_ns)
    return server.key_pem + server.certificate_pem, signed


def window(now_ns: int) -> RingQuery:
    asked = RingQuery(
        since_ns=parse_time("14:03", now_ns=now_ns, zone=LOCAL),
        until_ns=parse_time("-5m", now_ns=now_ns, zone=None),
        follow=False,
    )
    return RingQuery.parse_at(asked.pairs(), now_ns=now_ns)


def missing(header: str) -> list[str]:
    report: WindowReport = WindowReport.parse(header)
    covered: Interval | None = report.covered
    begin: list[str] = [] if covered is None else [format_time(covered.begin_ns)]
    return begin + [str(gap) for gap in report.gaps]


def headers() -> bytes:
    header: PcapHeader = PcapHeader.parse(
        PcapHeader(link_type=LinkType.LINUX_SLL).serialize()
    )
    block = InterfaceDescription(link_type=header.link_type, name="web1")
    return SectionHeader(application="mine").serialize() + block.serialize()


def merged(captures: list[bytes]) -> bytes:
    merge = Merge(len(captures), disorder_ns=0)
    merge.start(LinkType.LINUX_SLL)
    for number, capture in enumerate(captures):
        try:
            merge.receive_data(number, capture)
            merge.receive_eof(number)
        except FormatError as exc:
            offset: int = exc.offset
            raise ValueError(printable(f"{exc.message} {offset}")) from exc
    parts: list[bytes] = []
    while part := merge.data_to_send():
        parts.append(part)
    return b"".join(parts)


def taken_up(merge: Merge, kept: bytes) -> str:
    offset, first, newest = merge.progress(0)
    seam = Seam(since_ns=merge.watermark(0))
    seam.receive_data(kept[:first] + kept[offset:])
    merge.reopen(0, since_ns=newest, seam=seam)
    beat = merge.heartbeat(0)
    dropped: int | None = None if beat is None else beat.dropped
    return f"{dropped} {len(seam)} {merge.counters(0).joined}"


def context() -> SSLContext:
    return client_context(ca=Path("ca.pem"))
