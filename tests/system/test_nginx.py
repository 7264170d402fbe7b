"""The command, nginx with TLS and authentication, and a worker behind it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import socket
import subprocess
import time

import pytest

from support.certificates import Authority
from support.programs import DDUMP, DDUMP_WORKER, await_streams, started, status

pytestmark = [pytest.mark.live, pytest.mark.process]

USER = "alice"
FILTER = "icmp and host 127.0.0.1"

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {server.cert};
    ssl_certificate_key {server.key};
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_read_timeout 1h;
    server {{
        listen 127.0.0.1:{certificate_port} ssl;
        ssl_client_certificate {authority.cert};
        ssl_verify_client on;
        location / {{ proxy_pass http://unix:{folder}/worker.sock:; }}
    }}
    server {{
        listen 127.0.0.1:{password_port} ssl;
        auth_basic ddump;
        auth_basic_user_file {folder}/users;
        location /hosts/web1/ {{ proxy_pass http://unix:{folder}/worker.sock:/; }}
    }}
}}
"""


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def password():
    return secrets.token_urlsafe(16)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def proxy(tmp_path, authority, password):
    """nginx before a worker: the ports for certificates and for passwords, its URL."""
    certificate_port, password_port, direct_port = free_ports(3)
    digest = base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()  # noqa: S324
    (tmp_path / "users").write_text(f"{USER}:{{SHA}}{digest}\n")
    (tmp_path / "nginx.conf").write_text(
        CONFIGURATION.format(
            folder=tmp_path,
            server=authority.server("127.0.0.1"),
            authority=authority,
            certificate_port=certificate_port,
            password_port=password_port,
        )
    )
    worker = [
        DDUMP_WORKER, "--listen", f"unix:{tmp_path}/worker.sock",
        "--listen", f"127.0.0.1:{direct_port}", "--allow-anonymous",
        "--exclude", f"tcp port {certificate_port} or tcp port {password_port}",
    ]  # fmt: skip
    nginx = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    with started(worker), started(nginx, stderr=subprocess.DEVNULL):
        for port in (certificate_port, password_port, direct_port):
            await_port(port)
        yield certificate_port, password_port, f"http://127.0.0.1:{direct_port}"


def await_port(port):
    deadline = time.monotonic() + 8
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.05)
        else:
            return


def captured(command, direct, environment=None):
    """Run the command, ping when its stream is open; return what tcpdump makes of it."""
    with (
        started(
            [*command, "-f", FILTER, "-c", "4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        ) as ddump,
        started(
            ["tcpdump", "-nr-"],
            stdin=ddump.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as tcpdump,
    ):
        await_streams([direct])
        subprocess.run(
            ["ping", "-c", "2", "-i", "0.2", "127.0.0.1"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        told = tcpdump.communicate(timeout=10)[0]
        assert ddump.wait(5) == 0, ddump.stderr.read()
        return told


def refused(command, environment=None):
    """Run a command that must fail to open its one target; return what it said."""
    done = subprocess.run(
        [*command, "-f", FILTER],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 3, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_client_certificate(proxy, authority, tmp_path):
    port, _, direct = proxy
    target = f"https://127.0.0.1:{port}"
    mine = authority.client("responder")
    told = captured(
        [DDUMP, "--ca", authority.cert, "--cert", mine.cert, "--key", mine.key, target],
        direct,
    )
    assert told.count("ICMP echo request") == 2
    assert told.count("ICMP echo reply") == 2
    # As the original spelled them.
    told = captured(
        [DDUMP, "-ca", authority.cert, "-cert", mine.cert, "-key", mine.key, target],
        direct,
    )
    assert told.count("ICMP") == 4

    assert "400" in refused([DDUMP, "--ca", authority.cert, target])
    other = Authority(tmp_path, "other")
    theirs = other.client("stranger")
    assert "400" in refused(
        [DDUMP, "--ca", authority.cert, "--cert", theirs.cert, "--key", theirs.key,
         target]
    )  # fmt: skip
    told = refused([DDUMP, "--ca", other.cert, target])
    assert "certificate" in told


def test_password(proxy, authority, password, tmp_path):
    _, port, direct = proxy
    ca = ["--ca", authority.cert]
    target = f"https://127.0.0.1:{port}/hosts/web1/"
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    file.chmod(0o600)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {password}\n")
    netrc.chmod(0o600)
    with_password = target.replace("//", f"//{USER}:{password}@")
    for command, environment in (
        ([DDUMP, *ca, with_password], {}),
        ([DDUMP, *ca, "--user", USER, target], {"DDUMP_PASSWORD": password}),
        ([DDUMP, *ca, "--user", USER, "--password-file", file, target], {}),
        ([DDUMP, *ca, target], {"NETRC": str(netrc)}),
    ):
        assert captured(command, direct, environment).count("ICMP") == 4

    told = refused([DDUMP, *ca, "-vv", target], {"NETRC": "/dev/null"})
    assert "401" in told
    told = refused([DDUMP, *ca, "-vv", "--user", USER, target], {"DDUMP_PASSWORD": "x"})
    assert "401" in told
    wrong = with_password.replace("web1", "web2")
    told = refused([DDUMP, *ca, "-vv", wrong])
    assert "404" in told
    assert password not in told


def test_a_single_packet_passes_at_once_and_a_client_that_goes_is_noticed(
    proxy, authority
):
    port, _, direct = proxy
    mine = authority.client("responder")
    curl = [
        "curl", "-sN", "--cacert", authority.cert, "--cert", mine.cert, "--key",
        mine.key, "-G", "--data-urlencode", f"filter={FILTER}",
        f"https://127.0.0.1:{port}/capture",
    ]  # fmt: skip
    with started(curl, stdout=subprocess.PIPE) as client:
        assert len(client.stdout.read(24)) == 24
        sent = time.monotonic()
        subprocess.run(
            ["ping", "-c", "1", "127.0.0.1"], check=True, stdout=subprocess.DEVNULL
        )
        assert len(client.stdout.read(16)) == 16
        assert time.monotonic() - sent < 0.5  # ping itself included
        client.terminate()
        client.wait(5)
        await_streams([direct], running=0)
    assert status(direct)["totals"]["streams"] == 1
