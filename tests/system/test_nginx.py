"""``nginx/ddump.conf`` under Debian's own nginx, in front of a worker: what passes, and how.

Who gets in is in ``test_trust.py``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from urllib.parse import quote

import pytest

from ddump_common.api import MAX_FILTER_BYTES, MAX_INTERFACES
from support.captures import parse_pcap
from support.certificates import Authority
from support.machines import await_fact
from support.nginx import CONFIGURATION, USER, socket_path
from support.nginx import PORT as NGINX_PORT
from support.programs import DDUMP, running_worker, started
from support.site import bearer, certificate, site
from support.traffic import FILTER, PORT

pytestmark = [pytest.mark.live, pytest.mark.process]

PING = "icmp[icmptype] == icmp-echo"
SILENT = "udp port 9"


@pytest.fixture(scope="module")
def place():
    with site() as made:
        yield made


@pytest.fixture(scope="module")
def mine(place):
    return place.authority.client("responder")


def capture_url(place, expression, **others):
    query = "&".join(
        f"{name}={quote(str(value))}"
        for name, value in {"filter": expression, **others}.items()
    )
    return f"{place.url}/capture?{query}"


def captured(place, *arguments, env=None):
    """Run the command, ping when its stream is open; return what tcpdump makes of it."""
    with (
        started(
            place.command(DDUMP, "-f", "icmp", "-c", "4", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "NETRC": "/dev/null", **(env or {})},
        ) as ddump,
        started(
            ["tcpdump", "-nr-"],
            stdin=ddump.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as tcpdump,
    ):
        place.await_running(1)
        place.ping(2)
        told = tcpdump.communicate(timeout=10)[0]
        assert ddump.wait(5) == 0, ddump.stderr.read()
    place.await_running(0)
    return told


@pytest.mark.parametrize("spelled", ["--ca --cert --key", "-ca -cert -key"])
def test_the_command_shows_a_certificate(place, mine, spelled):
    values = (place.authority.cert, mine.cert, mine.key)
    options = [
        word for pair in zip(spelled.split(), values, strict=True) for word in pair
    ]
    told = captured(place, *options, place.url)
    assert told.count("ICMP echo request") == 2
    assert told.count("ICMP echo reply") == 2


def test_the_command_logs_in(place, tmp_path):
    file = tmp_path / "password"
    file.write_text(f"{place.password}\n")
    file.chmod(0o600)
    netrc = tmp_path / "netrc"
    netrc.write_text(
        f"machine {place.host.address} login {place.user} password {place.password}\n"
    )
    netrc.chmod(0o600)
    in_url = place.url.replace("//", f"//{place.user}:{place.password}@")
    user = ["--user", place.user]
    for arguments, env in (
        ([in_url], {}),
        ([*user, place.url], {"DDUMP_PASSWORD": place.password}),
        ([*user, "--password-file", file, f"{place.url}/"], {}),
        ([place.url], {"NETRC": str(netrc)}),
    ):
        told = captured(place, "--ca", place.authority.cert, *arguments, env=env)
        assert told.count("ICMP") == 4


def test_the_command_shows_a_token(place, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{place.token}\n")
    file.chmod(0o600)
    told = captured(
        place, "--ca", place.authority.cert, "--token-file", file, place.url
    )
    assert told.count("ICMP") == 4


@pytest.mark.parametrize(
    "accept", ["application/vnd.tcpdump.pcap", "application/x-pcapng"]
)
def test_a_single_packet_is_there_at_once(place, mine, accept):
    delays = []
    with place.streaming(
        mine, f"filter={quote(PING)}", "-H", f"Accept: {accept}"
    ) as curl:
        out = curl.stdout.fileno()
        for _ in range(5):
            seen = b""
            with started(
                place.command("ping", "-c", "1", "-p", "6d61726b", place.host.address),
                stdout=subprocess.DEVNULL,
            ) as ping:
                sent = time.monotonic()
                while b"mark" not in seen:
                    seen += os.read(out, 65536)
                delays.append(time.monotonic() - sent)
                ping.wait(5)
    # ping itself starts meanwhile.
    assert max(delays) < 0.3, delays


@pytest.mark.parametrize(
    "accept", ["application/vnd.tcpdump.pcap", "application/x-pcapng"]
)
@pytest.mark.parametrize("way", ["close", "reset", "kill"])
def test_a_client_that_goes_is_noticed_though_nothing_comes(place, mine, accept, way):
    url = capture_url(place, SILENT)
    if way == "kill":
        with place.streaming(
            mine, f"filter={quote(SILENT)}", "-H", f"Accept: {accept}"
        ) as curl:
            assert place.running() == 1
            curl.send_signal(signal.SIGKILL)
            place.await_running(0, seconds=2)
        return
    with place.connect(place.context(mine)) as client:
        client.sendall(
            f"GET {url.removeprefix(place.url)} HTTP/1.1\r\nHost: {place.host.address}\r\n"
            f"Accept: {accept}\r\n\r\n".encode()
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert place.running() == 1
        if way == "reset":
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            socket.close(client.detach())
        else:
            client.setblocking(False)
            # Says goodbye, and waits for no answer.
            with contextlib.suppress(ssl.SSLError):
                client.unwrap()
            client.close()
        place.await_running(0, seconds=2)


def test_a_silent_client_is_asked_whether_it_is_there(place, mine):
    # ss writes 9 s and 876 ms as "9.876ms".
    soon = rb"timer:\(keepalive,(10sec|[0-9]sec|[0-9]\.[0-9]+ms|[0-9]+ms),0\)"
    ours = ("state", "established", f"sport = :{NGINX_PORT}")
    with place.streaming(mine, f"filter={quote(SILENT)}"):
        # When what was said is confirmed.
        await_fact(lambda: re.search(soon, place.host.run("ss", "-Hnto", *ours).stdout))


def test_a_reload_cuts_no_stream_and_loses_no_packet(place, mine, tmp_path):
    count = 3000
    out = tmp_path / "out.pcap"
    others = {"packets": count, "duration": "20s"}
    with started(
        place.curl_command(
            "-N", *certificate(mine), "-o", out, capture_url(place, FILTER, **others)
        )
    ) as curl:
        place.await_running(1)
        with place.client.entered():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:

            def send():
                begun = time.monotonic()
                for number in range(count):
                    time.sleep(max(0, begun + number / 1000 - time.monotonic()))
                    sender.sendto(number.to_bytes(4, "big"), (place.host.address, PORT))

            traffic = threading.Thread(target=send)
            traffic.start()
            before = place.nginx.reload()
            again = place.nginx.reload()
            assert traffic.is_alive()
            # The one that has the stream is still there, and serves nobody else.
            assert len(place.nginx.pids() & before) == 1
            assert not place.nginx.pids() & again - before
            assert place.running() == 1
            traffic.join()
        assert curl.wait(10) == 0
    records = parse_pcap(out.read_bytes())
    # What the host says to the datagrams, ICMP, the filter leaves out.
    assert [int.from_bytes(each.data[-4:], "big") for each in records] == list(
        range(count)
    )


def escaped(text):
    """Return ``text`` with every byte as %XX."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_the_longest_query_passes(place, mine):
    longest = ("icmp" + " or icmp" * 511).ljust(MAX_FILTER_BYTES)
    assert len(longest) == MAX_FILTER_BYTES
    interfaces = "".join(f"&interface={escaped('eth0')}" for _ in range(MAX_INTERFACES))
    url = f"{place.url}/capture?filter={escaped(longest)}{interfaces}&packets=1"
    command = place.curl_command("-N", *certificate(mine), url)
    with started(command, stdout=subprocess.PIPE) as curl:
        place.await_running(1)
        place.ping()
        assert len(parse_pcap(curl.stdout.read())) == 1
        assert curl.wait(5) == 0

    # One more is for the worker to refuse, not for nginx.
    answer = place.curl(*certificate(mine), url.replace("&", "%20&", 1))
    assert answer.status == 400
    assert answer.problem["parameter"] == "filter"


def test_the_address_of_a_client_is_told_as_people_write_it(place):
    place.host.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")
    since = len(place.worker.said)
    done = subprocess.run(
        place.host.command(
            "curl", "-sk", *bearer(place.token), "https://[::1]:8475/api/v1/interfaces"
        ),
        check=True,
        capture_output=True,
    )
    assert json.loads(done.stdout)
    line = place.worker.await_said('"/api/v1/interfaces"', since)
    assert re.fullmatch(r"\[::1\]:[0-9]+", json.loads(line)["address"])


@contextlib.contextmanager
def workers_named(place, *names):
    """Run a worker behind nginx for each name."""
    with contextlib.ExitStack() as stack:
        for name in names:
            path = socket_path(place.folder, name)
            options = (
                "--listen", f"unix:{path}", "--listen-group", USER,
                "--proxy-uid", USER, "--exclude", "tcp port 8475",
            )  # fmt: skip
            stack.enter_context(running_worker(*options, host=place.host))
        yield


@contextlib.contextmanager
def configured(place, pattern, replacement):
    """Have nginx run with a change in what it is configured with."""
    path = place.folder / "etc/conf.d" / CONFIGURATION.name
    before = path.read_text()
    after, count = re.subn(pattern, replacement, before, flags=re.DOTALL)
    assert count == 1
    path.write_text(after)
    try:
        place.nginx.reload()
        yield
    finally:
        path.write_text(before)
        place.nginx.reload()


def test_each_worker_has_its_path(place, mine):
    # Those of the other two names do not run here.
    for path in ("/hosts/web1/api/v1/health", "/hosts/db1/capture"):
        answer = place.curl(*certificate(mine), f"{place.url}{path}")
        assert answer.status == 502
        assert "may nginx connect" in answer.problem["hint"]
    with workers_named(place, "web1", "db1"):
        for name in ("web1", "db1"):
            url = f"{place.url}/hosts/{name}"
            told = place.run(
                "status", "--json", "--ca", place.authority.cert, *certificate(mine),
                f"{name}={url}/",
            )  # fmt: skip
            assert told.returncode == 0, told
            # Its own: nobody has asked this one for anything yet.
            assert json.loads(told.stdout)["connections"] == 1, told.stdout
            with place.streaming(mine, "", path=f"/hosts/{name}/capture"):
                answer = place.curl(*certificate(mine), f"{url}/api/v1/status")
                assert json.loads(answer.body)["states"]["running"] == 1


PATHS = ("/", "/capture", "/ring", "/api/v1/health", "/api/v1/status", "/metrics")


def statuses(place, mine, host):
    """Return what is answered to a path of a host's, in the shape of problems if wrong."""
    found = {}
    for path in PATHS:
        query = "?duration=1ms" if path == "/capture" else ""
        url = f"{place.url}/hosts/{host}{path}{query}"
        answer = place.curl(*certificate(mine), url)
        assert answer.status == 200 or answer.problem
        found[path] = answer.status
    return found


def test_a_socket_that_is_not_listed_is_not_published(place, mine):
    longest = "x" * 200  # no socket has such a path
    with workers_named(place, "private"):
        for name in ("private", "worker", longest):
            assert statuses(place, mine, name) == dict.fromkeys(PATHS, 404)


def test_what_is_set_for_a_worker_holds_for_all_of_its_paths(place, mine):
    with workers_named(place, "web1", "db1"):
        served = statuses(place, mine, "web1")
        assert served["/capture"] == served["/api/v1/status"] == 200
        assert statuses(place, mine, "db1") == served
        with configured(place, "(location /hosts/db1/ +{)", r"\1 deny all;"):
            assert statuses(place, mine, "db1") == dict.fromkeys(PATHS, 403)
            assert statuses(place, mine, "web1") == served
        with configured(place, r"\n    location /hosts/db1/ .*?(\n    )?}(?=\n\n)", ""):
            assert statuses(place, mine, "db1") == dict.fromkeys(PATHS, 404)
            assert statuses(place, mine, "web1") == served


@pytest.mark.parametrize(
    ("path", "status"), [("/capture", 401), ("/ring", 401), ("/hosts/web1/ring", 502)]
)
def test_where_streams_flow_a_refusal_is_the_last_answer(place, path, status):
    # Behind others that nobody takes, it would be kept for as long as a stream.
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {place.host.address}\r\n"
        "Authorization: Bearer nobody's\r\n\r\n"
    )
    with place.connect(place.context(None)) as client:
        client.sendall(2 * request.encode())
        answers = b"".join(iter(lambda: client.recv(4096), b""))
    assert re.findall(rb"HTTP/1\.1 ([0-9]+)", answers) == [b"%d" % status]


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("GET /capture HTTP/1.1", [], 400),
        ("GET /capture HTTP/1.1", ["Host: a", "Content-Length: x"], 400),
        ("GET /capture HTTP/1.1", ["Host: a", f"X: {'x' * 40_000}"], 400),
        ("GET /..%2f..%2fetc/passwd HTTP/1.1", ["Host: a"], 400),
        ("GET capture HTTP/1.1", ["Host: a"], 400),
        ("nonsense", [], 400),
        (f"GET /{'x' * 40_000} HTTP/1.1", ["Host: a"], 414),
        ("GET /capture HTTP/3.0", ["Host: a"], 505),
        ("GET /unreadable HTTP/1.1", ["Host: a"], 404),
        ("TRACE /capture HTTP/1.1", ["Host: a"], 405),
        ("POST /capture HTTP/1.1", ["Host: a", "Content-Length: 100000"], 413),
        ("POST /capture HTTP/1.1", ["Host: a", "Transfer-Encoding: gzip"], 501),
    ],
)
def test_what_nginx_refuses_itself_is_a_problem(
    place, mine, request_line, fields, status
):
    request = "\r\n".join([request_line, *fields, "Connection: close", "", ""])
    with place.connect(place.context(mine)) as client:
        client.sendall(request.encode())
        with http.client.HTTPResponse(client) as answer:
            answer.begin()
            problem = json.loads(answer.read())
    assert answer.status == problem["status"] == status
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_users_that_nginx_cannot_read(place):
    users = place.folder / "etc/ddump/users"
    users.chmod(0o600)
    shutil.chown(users, group="root")
    try:
        answer = place.curl("-u", "alice:x", f"{place.url}/capture")
        assert (answer.status, answer.problem["title"]) == (500, "Internal error")
    finally:
        shutil.chown(users, group=USER)
        users.chmod(0o640)


def test_what_is_logged_of_requests(place, mine, tmp_path):
    after = "host 192.0.2.99"
    password = ["-u", f"{place.user}:{place.password}"]
    wrong = ["-u", f"{place.user}:{place.password}x"]
    stranger = certificate(Authority(tmp_path).client("mallory"))
    named, called = "CN=responder", place.user
    for shown, expected in (
        (certificate(mine), (200, named, "", "", "")),
        (bearer(place.token), (200, "", "", "", "")),
        (password, (200, "", called, "", "")),
        ([*certificate(mine), *password], (200, named, "", "", called)),
        (wrong, (401, "", "", "", called)),
        ([*stranger, *password], (403, "", "", "CN=mallory", called)),
        ([], (401, "", "", "", "")),
    ):
        since = len(place.nginx.log().splitlines())
        place.curl(*shown, f"{place.url}/capture?duration=1ms&filter={quote(after)}")
        # It is written when the request is done, to the client a little before that.
        await_fact(lambda since=since: len(place.nginx.log().splitlines()) > since)
        line = json.loads(place.nginx.log().splitlines()[-1])
        names = ("status", "certificate", "user", "claimed_certificate", "claimed_user")
        assert tuple(line[name] for name in names) == expected
        assert line["path"] == "/capture"
    assert "192.0.2.99" not in place.nginx.log()
    for name in ("ddump.log", "error.log"):
        assert place.password not in place.nginx.log(name)
        assert place.token not in place.nginx.log(name)
