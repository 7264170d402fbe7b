"""How long nginx waits: for a stream that is silent, for a client that pauses.

Days pass here by nginx's clock, and only by its.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from urllib.parse import quote

import pytest

from support.captures import parse_pcap
from support.clock import Clock
from support.machines import await_fact
from support.nginx import PORT as NGINX_PORT
from support.nginx import USER, socket_path
from support.programs import started
from support.site import bearer, certificate, site
from support.traffic import FILTER, PORT

pytestmark = [pytest.mark.live, pytest.mark.process]

PING = "icmp[icmptype] == icmp-echo"
DAY = 24 * 3600
PIPELINED = 1000


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


@pytest.fixture
def place(clock):
    with site(clock.environment) as made:
        yield made


def test_a_silent_stream_lives_for_days(place, clock):
    mine = place.authority.client("responder")
    with place.streaming(mine, f"filter={quote(PING)}") as curl:
        for _ in range(2):  # each packet begins a week anew
            clock.advance(6 * DAY)
            place.nginx.wake()
            assert curl.poll() is None
            place.ping()
            assert len(curl.stdout.read(16 + 100)) == 16 + 100
        assert place.running() == 1
        # And it is this clock that nginx goes by.
        clock.advance(8 * DAY)
        place.nginx.wake()
        assert curl.wait(5) != 0
        place.await_running(0, seconds=2)


def test_a_client_may_pause_for_days_and_misses_nothing(place, clock):
    mine = place.authority.client("responder")
    count = 8000
    with (
        place.connect(place.context(mine), receive_buffer=1 << 16) as client,
        place.client.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        query = f"filter={quote(FILTER)}&packets={count}"
        client.sendall(
            f"GET /capture?{query} HTTP/1.1\r\nHost: {place.host.address}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        place.await_running(1)
        for number in range(count):
            payload = number.to_bytes(4, "big") + bytes(1400)
            sender.sendto(payload, (place.host.address, PORT))
        held = await_stalled(place)
        assert held < count
        clock.advance(6 * DAY)
        place.nginx.wake()
        assert place.running() == 1
        whole = b"".join(iter(lambda: client.recv(1 << 20), b""))
    head, _, body = whole.partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert body.endswith(b"\r\n0\r\n\r\n")
    records = parse_pcap(dechunked(body))
    numbers = [int.from_bytes(each.data[44:48], "big") for each in records]
    assert numbers == list(range(count))


def await_stalled(place):
    """Wait until the one stream does not get on; return its packets."""
    packets = -1
    while True:
        answer = place.curl(*bearer(place.token), f"{place.url}/api/v1/status")
        (stream,) = json.loads(answer.body)["streams"]
        if stream["packets"] == packets:
            return packets
        packets = stream["packets"]


def dechunked(body):
    pieces, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        length = int(body[at:end], 16)
        if length == 0:
            return b"".join(pieces)
        pieces.append(body[end + 2 : end + 2 + length])
        at = end + 2 + length + 2


def pipelined(place, client, path, fields=""):
    """Ask very often, and take no answer."""
    request = f"GET {path} HTTP/1.1\r\nHost: {place.host.address}\r\n{fields}\r\n"
    # nginx does not read all of it while it cannot answer.
    with contextlib.suppress(TimeoutError):
        client.settimeout(0.2)
        client.sendall(request.encode() * PIPELINED)


def queues(place):
    """Return what nginx's connections hold that their clients have not taken."""
    told = place.host.run(
        "ss", "-Htn", "state", "established", f"sport = :{NGINX_PORT}"
    )
    return [int(line.split()[1]) for line in told.stdout.splitlines()]


def await_stuck(place, count):
    """Wait until so many connections do not get on."""
    before = []
    while len(now := [each for each in queues(place) if each]) < count or now != before:
        before = now
        assert place.curl(f"{place.url}/api/v1/health").status == 200


def taken(client):
    """Take what is left of the answers, to the end of the connection; return how many."""
    client.settimeout(5)
    whole = b""
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while piece := client.recv(1 << 20):
            whole += piece
    return whole.count(b"HTTP/1.1 ")


def test_answers_that_are_no_streams_are_not_kept_for_who_does_not_take_them(
    place, clock
):
    wrong = "Authorization: Bearer nobody's\r\n"
    with contextlib.ExitStack() as stack:
        stuck = []
        for path, fields in (
            ("/api/v1/health", ""),
            ("/api/v1/status", ""),  # nginx refuses it
            ("/api/v1/status", wrong),  # the worker does
        ):
            client = place.connect(place.context(None), receive_buffer=4096)
            stuck.append(stack.enter_context(client))
            pipelined(place, client, path, fields)
        await_stuck(place, len(stuck))
        clock.advance(20)
        place.nginx.wake()
        assert len(queues(place)) == len(stuck)
        clock.advance(11)
        place.nginx.wake()
        await_fact(lambda: not queues(place))
        for client in stuck:
            assert taken(client) < PIPELINED


def test_a_worker_that_does_not_answer_is_not_waited_for(place, clock):
    mine = place.authority.client("responder")
    path = socket_path(place.folder, "web1")
    body = place.folder / "body"
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        shutil.chown(path, "root", USER)
        path.chmod(0o660)
        hung.listen()
        hung.settimeout(5)
        command = place.curl_command(
            *certificate(mine), "-o", body, "-w", "%{http_code}",
            f"{place.url}/hosts/web1/api/v1/status",
        )  # fmt: skip
        with (
            started(command, stdout=subprocess.PIPE) as curl,
            hung.accept()[0] as asked,
        ):
            assert asked.recv(4096).startswith(b"GET /api/v1/status ")
            clock.advance(61)
            place.nginx.wake()
            assert curl.communicate(timeout=5)[0] == b"504"
    problem = json.loads(body.read_bytes())
    assert problem["status"] == 504
    assert problem["title"] == "The worker does not answer"


def test_half_a_header_is_not_waited_for(place, clock):
    mine = place.authority.client("responder")
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(place.connect(place.context(mine))) for _ in range(20)
        ]
        for each in slow:
            each.sendall(b"GET /capture HTTP/1.1\r\nHost: a\r\n")
        # They are read before the clock moves: nginx answers who comes after them.
        assert place.curl(f"{place.url}/api/v1/health").status == 200
        clock.advance(11)
        place.nginx.wake()
        for each in slow:
            with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
                each.settimeout(2)
                assert each.recv(4096) == b""
