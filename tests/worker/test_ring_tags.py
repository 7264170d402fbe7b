"""What filters see of packets with VLAN tags: the same from the ring as live.

Real frames arrive with their tags, of which the kernel takes the first one off before
any filter runs; libpcap puts it back into LINUX_SLL, and so it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import aiohttp
import dpkt
import pytest

from ddump_common.api import MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG
from support.captures import parse_pcap
from support.namespaces import network
from support.pcapng_streams import read_stream
from support.workers import worker

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "16MB", "--segment-size", "1MB", "--ring-reserve", "0")

TAGGED, SERVICE, OLD = (
    struct.pack(">HH", kind, 7) for kind in (0x8100, 0x88A8, 0x9100)
)
# In front of the protocol. The kernel takes each off but that of 0x9100. Two tags are not
# of this test: from Linux 6.11 on a record does not tell the second one, which a live
# filter sees.
TAGS = [b"", TAGGED, SERVICE, OLD]
SSH, HTTP, END = 22, 80, 4000
FRAMES = [(tags, port) for tags in TAGS for port in (SSH, HTTP)]
LAST = len(FRAMES)
FRAMES.append((b"", END))  # which every filter takes

# What each takes.
FILTERS = {
    "port 22": lambda tags, port: tags != OLD and port == SSH,
    "not port 22": lambda tags, port: tags == OLD or port != SSH,
    "ether proto 0x8100": lambda *_: False,
}
MARK = b"number:"


def frame(number: int) -> bytes:
    """Return the Ethernet frame whose payload is its number among ``FRAMES``."""
    tags, port = FRAMES[number]
    datagram = dpkt.udp.UDP(
        sport=40000, dport=port, ulen=16, data=MARK + bytes([number])
    )
    packet = dpkt.ip.IP(
        src=b"\x0a\x4d\x00\x09",
        dst=b"\x0a\x4d\x00\x08",
        p=dpkt.ip.IP_PROTO_UDP,
        data=datagram,
    )
    return bytes(12) + tags + b"\x08\x00" + bytes(packet)


def numbers(data: bytes, form: str) -> list[int]:
    """Return which frames a stream has."""
    is_pcap = form == MEDIA_TYPE_PCAP
    found = parse_pcap(data) if is_pcap else read_stream(data).records
    assert all(each.data[-8:-1] == MARK for each in found)
    return [each.data[-1] for each in found]


@contextlib.asynccontextmanager
async def recording(tmp_path, link):
    """Run a worker with a ring on a host with a second interface; yield a client of it,
    and a socket whose frames arrive at that interface."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(1, prefix="ddump-tags"))
        far = stack.enter_context(net.feed(1))
        with net.client.entered():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        stack.enter_context(sender)
        sender.bind((far, 0))
        stack.enter_context(net.hosts[0].entered())
        ring = ("--ring-dir", str(tmp_path / "ring"), "--ring-link", link, *RING)
        async with (
            worker(*ring) as running,
            aiohttp.ClientSession(
                running.url, timeout=aiohttp.ClientTimeout(total=20)
            ) as http,
        ):
            yield http, sender


async def read(response) -> bytes:
    async with response:
        data = await response.read()
    assert response.status == 200, data
    return data


@pytest.mark.parametrize("link", ["sll", "sll2"])
async def test_from_the_ring_filters_take_what_they_take_live(tmp_path, link):
    expected = {
        expression: [n for n in range(LAST) if takes(*FRAMES[n])] + [LAST]
        for expression, takes in FILTERS.items()
    }
    async with recording(tmp_path, link) as (http, sender):
        cases = [
            (path, more, form, expression)
            for path, more in (("/capture", {}), ("/ring", {"last": "1m"}))
            for form in (MEDIA_TYPE_PCAP, MEDIA_TYPE_PCAPNG)
            for expression in FILTERS
        ]

        def ask(path, more, form, expression):
            return http.get(
                path,
                # The bridge's own IGMP is none of it.
                params={"filter": f"({expression} or port {END}) and not igmp"} | more,
                headers={"Accept": form},
            )

        async with asyncio.TaskGroup() as tasks:
            following = []
            for path, more, form, expression in cases:
                until = {"packets": str(len(expected[expression])), "duration": "10"}
                if path == "/ring":
                    until["follow"] = "1"
                response = await ask(path, more | until, form, expression)
                following.append(tasks.create_task(read(response)))
            for number in range(len(FRAMES)):
                sender.send(frame(number))
        windows = [await read(await ask(*case)) for case in cases if case[1]]
    found = [task.result() for task in following] + windows
    cases += [case for case in cases if case[1]]
    for (path, _, form, expression), data in zip(cases, found, strict=True):
        assert numbers(data, form) == expected[expression], (path, expression)
