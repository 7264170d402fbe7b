"""No filter changes what another one means, with real packets.

In libpcap ``pppoes`` and ``geneve`` move the offsets of all that comes after them in the
same expression: joined to one, ``(not pppoes) and (not port 22)`` would look for the
port where there is none, and let port 22 pass.
"""

from __future__ import annotations

import contextlib
from urllib.parse import urlsplit

import aiohttp
import pytest

from support.loopback import payloads, records, talker, tcpdump
from support.namespaces import network
from support.workers import worker

pytestmark = [pytest.mark.live, pytest.mark.process]

RING = ("--ring-size", "16MB", "--segment-size", "1MB", "--ring-reserve", "0")

LIVE = ["not pppoes", "not pppoes 7", "not (pppoes 1 or pppoes 2)"]
STORED = ["not pppoes", "not geneve", "not (geneve 7)"]


@pytest.fixture(scope="module", autouse=True)
def own_network():
    """All of this in a namespace of its own: what others send would be captured."""
    with network(0) as net, net.client.entered():
        yield


@contextlib.asynccontextmanager
async def serving(*options):
    async with (
        worker(*options) as running,
        aiohttp.ClientSession(
            running.url, timeout=aiohttp.ClientTimeout(total=20)
        ) as http,
    ):
        yield running, http


def beside(data: bytes, wanted: list[bytes], port: int) -> list[str]:
    """Return what a capture has of ``port``; all of ``wanted`` is in it."""
    assert [each for each in payloads(data) if each in wanted] == wanted
    return tcpdump(data, f"port {port}")


@pytest.mark.parametrize("asked", LIVE)
@pytest.mark.parametrize("link", ["sll", "sll2"])
async def test_live_the_worker_and_what_is_excluded_stay_out(asked, link):
    with talker() as udp, talker() as secret:
        async with serving("--exclude", f"port {secret.port}") as (running, http):
            parameters = {"filter": asked, "duration": "0.5", "link": link}
            async with http.get("/capture", params=parameters) as response:
                secret.send(5)
                sent = udp.send(5)
                # Requests cross loopback as well, to the worker's own port.
                async with http.get("/api/v1/health") as health:
                    assert health.status == 200
                data = await response.read()
        found = tcpdump(data, f"udp port {udp.port}")
        assert len(found) == len(sent)
        assert tcpdump(data, f"port {secret.port}") == []
        assert tcpdump(data, f"tcp port {urlsplit(running.url).port}") == []


async def test_one_exclusion_does_not_undo_the_next():
    with talker() as udp, talker() as secret:
        async with serving(
            "--exclude", "pppoes", "--exclude", f"port {secret.port}",
        ) as (_, http):  # fmt: skip
            # And what is asked means what it means alone.
            parameters = {"filter": udp.filter, "packets": "5", "idle": "0.5"}
            async with http.get("/capture", params=parameters) as response:
                udp.send(5)
                assert len(payloads(await response.read())) == 5
            async with http.get("/capture", params={"duration": "0.3"}) as response:
                secret.send(5)
                sent = udp.send(5)
                assert beside(await response.read(), sent, secret.port) == []


async def test_the_ring_s_filter_lets_nothing_in_that_is_excluded(tmp_path):
    with talker() as udp, talker() as secret:
        async with serving(
            "--ring-dir", str(tmp_path / "ring"), *RING,
            "--ring-filter", "not pppoes", "--exclude", f"port {secret.port}",
        ) as (running, http):  # fmt: skip
            secret.send(5)
            sent = udp.send(5)
            async with http.get("/ring", params={"last": "1m"}) as response:
                data = await response.read()
        assert beside(data, sent, secret.port) == []
        assert tcpdump(data, f"tcp port {urlsplit(running.url).port}") == []


@pytest.mark.parametrize("asked", STORED)
async def test_from_the_ring_only_the_interface_that_was_named(tmp_path, asked):
    async with serving(
        "--ring-dir", str(tmp_path / "ring"), *RING, "--ring-link", "sll2"
    ) as (_, http):
        with talker() as udp:
            udp.send(5)
        parameters = {"last": "1m", "filter": asked}
        # The bridge of this namespace: nothing crosses it.
        async with http.get(
            "/ring", params=[*parameters.items(), ("interface", "eth0")]
        ) as response:
            assert records(await response.read()) == []
        async with http.get(
            "/ring", params=[*parameters.items(), ("interface", "lo")]
        ) as response:
            assert len(records(await response.read())) == 5
