"""A host with workers and nginx, an authority, and another host from which to ask.

The first worker is behind nginx and, for who has a certificate, on a port of its own; the
second asks for no certificates: it knows tokens alone. All keys, passwords and tokens are
made here, and gone with the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from support.certificates import Authority
from support.namespaces import network
from support.nginx import PORT, USER, Nginx, nginx, prepare, socket_path
from support.programs import DDUMP, running_worker, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.certificates import Pair
    from support.namespaces import Host, Network
    from support.programs import Worker

NAME = "worker.example"
NAMESAKE = "CN=responder"
"""A user with a password who is named like a certificate's subject."""
CERTIFICATE_PORT = 8476
TOKEN_PORT = 8477


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl was answered; ``status`` is 0 when it was not, ``port`` curl's own."""

    status: int
    port: int
    headers: dict[str, list[str]]
    body: bytes
    error: str

    @property
    def problem(self) -> dict:
        assert self.headers["content-type"] == ["application/problem+json"], self
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        return problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What was made: see above. ``worker`` and ``bare`` are the two workers."""

    net: Network
    folder: Path
    authority: Authority
    server: Pair
    nginx: Nginx
    worker: Worker
    bare: Worker
    user: str
    password: str = field(repr=False)
    token: str = field(repr=False)

    @property
    def host(self) -> Host:
        return self.nginx.host

    @property
    def client(self) -> Host:
        return self.net.client

    @property
    def url(self) -> str:
        """Where nginx is."""
        return self.nginx.url

    @property
    def certificate_url(self) -> str:
        """Where the first worker asks for certificates itself."""
        return f"https://{self.host.address}:{CERTIFICATE_PORT}"

    @property
    def token_url(self) -> str:
        """Where the second worker asks for tokens."""
        return f"https://{self.host.address}:{TOKEN_PORT}"

    def command(self, *arguments: str | Path) -> list[str]:
        """Return ``arguments`` as they are run at the client's."""
        return self.client.command(*map(str, arguments))

    def curl_command(self, *arguments: str | Path) -> list[str]:
        return self.command("curl", "-sS", "--cacert", self.authority.cert, *arguments)

    def curl(self, *arguments: str | Path) -> Answer:
        """Ask with curl for something that ends."""
        done = subprocess.run(
            self.curl_command(
                "-i", "--max-time", "10", "-w", "%{stderr} %{local_port}", *arguments
            ),
            check=False,
            capture_output=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        match = re.match(r"HTTP/1\.[01] ([0-9]{3})", first)
        error, _, port = done.stderr.decode().rpartition(" ")
        return Answer(int(match[1]) if match else 0, int(port), headers, body, error)

    @contextlib.contextmanager
    def streaming(
        self, pair: Pair, query: str, *arguments: str, path: str = "/capture"
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Have curl stream through nginx; what it yields has read the header."""
        command = self.curl_command(
            "-N", *certificate(pair), *arguments, f"{self.url}{path}?{query}"
        )
        with started(command, stdout=subprocess.PIPE) as curl:
            assert len(curl.stdout.read(24)) == 24
            yield curl

    def run(
        self, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Run ``ddump`` for something that ends."""
        return subprocess.run(
            self.command(DDUMP, *arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "NETRC": "/dev/null", **(env or {})},
        )

    def running(self) -> int:
        """Return how many streams the worker behind nginx has."""
        answer = self.curl(*bearer(self.token), f"{self.url}/api/v1/status")
        assert answer.status == 200, answer
        return json.loads(answer.body)["states"]["running"]

    def await_running(self, count: int, *, seconds: float = 8) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.running()) != count:
            assert time.monotonic() < deadline, f"{found} streams, not {count}"

    def ping(self, count: int = 1) -> None:
        """Have the client ping the host, which answers."""
        self.client.run("ping", "-c", str(count), "-i", "0.2", self.host.address)

    def context(self, pair: Pair | None) -> ssl.SSLContext:
        """Return a client's context that shows a certificate, or none."""
        context = ssl.create_default_context(cafile=str(self.authority.cert))
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return context

    def connect(
        self,
        context: ssl.SSLContext,
        *,
        port: int = PORT,
        session: ssl.SSLSession | None = None,
        receive_buffer: int = 0,
        source: Host | None = None,
    ) -> ssl.SSLSocket:
        """Return a TLS connection from ``source``, the client, to a port of the host."""
        with (source or self.client).entered():
            plain = socket.socket()
        plain.settimeout(5)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.connect((self.host.address, port))
        return context.wrap_socket(
            plain, server_hostname=self.host.address, session=session
        )

    def revoke(self, *pairs: Pair) -> None:
        """Revoke certificates where workers and nginx read of it; nobody is told."""
        self.authority.revoke(*pairs)
        shutil.copy(self.authority.crl, self.folder / "etc/ddump/crl.pem")

    def reload(self) -> None:
        """Have workers and nginx read their files anew."""
        heard = [(each, len(each.said)) for each in (self.worker, self.bare)]
        for worker, _ in heard:
            worker.process.send_signal(signal.SIGHUP)
        self.nginx.reload()
        for worker, since in heard:
            worker.await_said("read all files again", since)


def certificate(pair: Pair) -> list[str | Path]:
    """Return curl's and ddump's options that show a certificate."""
    return ["--cert", pair.cert, "--key", pair.key]


def bearer(token: str) -> list[str]:
    """Return curl's options that show a token."""
    return ["-H", f"Authorization: Bearer {token}"]


@contextlib.contextmanager
def site(
    environment: Mapping[str, str] | None = None,
    *,
    rules: str = "",
    prefix: str = "ddump-site",
) -> Iterator[Site]:
    """Make a site; ``environment`` is nginx's, ``rules`` are those of the first worker.

    Of two at once each needs a ``prefix`` of its own for its namespaces.
    """
    with contextlib.ExitStack() as stack:
        # Not in a test's own folder: www-data has to get in, and sockets' paths are short.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ddump-site-"))
        )
        folder.chmod(0o755)
        net = stack.enter_context(network(1, prefix=prefix))
        (host,) = net.hosts
        keys = folder / "keys"
        keys.mkdir()
        authority = Authority(keys)
        server = authority.server(NAME, host.address)
        user, password = "alice", secrets.token_urlsafe(24)
        token = secrets.token_urlsafe(24)
        passwords = dict.fromkeys((user, NAMESAKE), password)
        prepare(folder, authority=authority, server=server, passwords=passwords)
        (keys / "worker.toml").write_text(rules)
        tokens = keys / "tokens"
        tokens.touch(0o600)
        tokens.write_text(f"# who\ntests:{token}\n")
        ours = folder / "etc/ddump"
        # Nothing of nginx's is captured, nor what goes from one worker to its client.
        common = (
            "--log-format", "json",
            "--tls-cert", f"{server.cert}", "--tls-key", f"{server.key}",
            "--token-file", f"{tokens}",
            "--exclude", f"tcp portrange 8475-{TOKEN_PORT}",
        )  # fmt: skip
        behind = (
            "--config", f"{keys}/worker.toml",
            "--listen", f"unix:{socket_path(folder)}", "--listen-group", USER,
            "--listen", f"0.0.0.0:{CERTIFICATE_PORT}",
            "--proxy-uid", USER, "--tls-client-ca", f"{authority.cert}",
            "--tls-crl", f"{ours}/crl.pem",
        )  # fmt: skip
        worker = stack.enter_context(running_worker(*behind, *common, host=host))
        bare = stack.enter_context(
            running_worker("--listen", f"0.0.0.0:{TOKEN_PORT}", *common, host=host)
        )
        yield Site(
            net=net,
            folder=folder,
            authority=authority,
            server=server,
            nginx=stack.enter_context(
                nginx(host, folder, environment=environment or {})
            ),
            worker=worker,
            bare=bare,
            user=user,
            password=password,
            token=token,
        )
