"""The door of a real worker: who is let in, as whom, and what is read again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from ddump_common.api import ADDRESS_HEADER, CERTIFICATE_HEADER, USER_HEADER
from support.certificates import ENDING, EXPIRED, NOW, Authority, no_text, no_version
from support.loopback import talker
from support.workers import Worker, run, wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]

TOKEN = secrets.token_urlsafe(24)
OTHER = secrets.token_urlsafe(24)
STATUS = "/api/v1/status"
OPEN = ["/api/v1/health", "/api/v1/openapi.json"]


@pytest.fixture
def folder():
    """One that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.touch(0o600)
    path.write_text(f"backup:{TOKEN}\nother:{OTHER}\n")
    return path


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def client(running: Worker, tls=None):
    """A session with ``running``, by whatever it listens on."""
    if running.url.startswith("unix:"):
        connector = aiohttp.UnixConnector(running.url.removeprefix("unix:"))
        base = "http://localhost"
    else:
        connector = aiohttp.TCPConnector(ssl=tls or True)
        base = running.url
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(
        base, connector=connector, timeout=timeout
    ) as session:
        yield session


async def ask(running: Worker, headers=None, *, path: str = STATUS, tls=None):
    """Return the status of an answer, its headers, and what it says."""
    async with (
        client(running, tls) as http,
        http.get(path, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.json(content_type=None)


async def raw(running: Worker, head: str) -> bytes:
    """Send a request as it is; return all that comes."""
    path = running.url.removeprefix("unix:")
    reader, writer = (
        await asyncio.open_unix_connection(path)
        if running.url.startswith("unix:")
        else await asyncio.open_connection("127.0.0.1", running.url.rpartition(":")[2])
    )
    writer.write(head.replace("\n", "\r\n").encode() + b"Connection: close\r\n\r\n")
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def identities(running: Worker) -> list[str]:
    """Return who has asked, as the log has it."""
    return re.findall(r" identity=(\S+)", running.text)


async def last_identity(running: Worker, *, of: int) -> str:
    await wait_until(lambda: len(identities(running)) >= of)
    return identities(running)[-1]


class TestTokens:
    async def test_who_shows_one_is_known_by_its_name(self, tokens):
        async with worker("--token-file", str(tokens), anonymous=False) as running:
            assert (await ask(running, bearer(TOKEN)))[0] == 200
            assert await last_identity(running, of=1) == "token:backup"
            lower = {"authorization": f"bEARER  {OTHER}"}
            assert (await ask(running, lower))[0] == 200
            assert await last_identity(running, of=2) == "token:other"
        assert TOKEN not in running.text

    async def test_who_shows_none_or_a_wrong_one_is_not_let_in(self, tokens):
        async with worker("--token-file", str(tokens), anonymous=False) as running:
            for headers, words in (
                ({}, "nothing says who asks"),
                (bearer(TOKEN[:-1]), "the token is not known"),
                (bearer(f"{TOKEN}x"), "the token is not known"),
                (bearer(""), "the token is not known"),
                (bearer(f"backup:{TOKEN}"), "the token is not known"),
                (bearer("ü" * 20), "the token is not known"),
                ({"Authorization": TOKEN}, "Bearer alone is known"),
                ({"Authorization": f"Digest {TOKEN}"}, "Bearer alone is known"),
                ({"Authorization": "Basic YTpi"}, "this worker knows no passwords"),
                # What a proxy would say means nothing from anybody else.
                ({USER_HEADER: "a", CERTIFICATE_HEADER: "x"}, "nothing says who asks"),
            ):
                for path in (STATUS, "/capture?filter=icmp", "/metrics", "/nowhere"):
                    status, answered, said = await ask(running, headers, path=path)
                    assert status == 401, path
                    assert answered["WWW-Authenticate"].startswith("Bearer")
                    assert words in said["detail"]
                    if not headers:
                        assert "Bearer" in said["hint"]
            assert running.packet_sockets() == 0
        assert TOKEN not in running.text

    async def test_a_wrong_one_is_refused_also_where_anybody_may_enter(self, tokens):
        async with worker("--token-file", str(tokens)) as running:
            assert (await ask(running))[0] == 200
            assert (await ask(running, bearer("x" * 20)))[0] == 401
            assert (await ask(running, bearer(TOKEN)))[0] == 200
            assert identities(running) == ["anonymous", "null", "token:backup"]

    async def test_two_at_once_are_a_bad_request(self, tokens):
        async with worker("--token-file", str(tokens), anonymous=False) as running:
            one = f"Authorization: Bearer {TOKEN}\n"
            head = f"GET {STATUS} HTTP/1.1\nHost: localhost\n{one}{one}"
            assert (await raw(running, head)).startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize("path", OPEN)
    async def test_some_is_for_everybody(self, tokens, path):
        async with worker("--token-file", str(tokens), anonymous=False) as running:
            assert (await ask(running, path=path))[0] == 200
            assert (await ask(running, {"Host": "evil.example"}, path=path))[0] == 421
            foreign = {"Origin": "http://evil.example"}
            assert (await ask(running, foreign, path=path))[0] == 403
            assert (await ask(running, path=path + "/"))[0] == 401
            assert (await ask(running, path=path + "/../status"))[0] == 401

    async def test_a_file_that_others_can_read_is_refused(self, tokens):
        tokens.chmod(0o644)
        code, said = await run(
            "--listen", "127.0.0.1:0", "--token-file", str(tokens)
        )  # fmt: skip
        assert code == 2
        assert said.startswith(f"Error: {tokens} is open to others")
        assert said.count("\n") == 1


class TestDestination:
    async def test_names_and_addresses_of_the_worker_are_served(self):
        node = socket.gethostname()
        async with worker("--server-name", "web1.example.org") as running:
            for host in ("127.0.0.1", "localhost", "[::1]:1", "web1.example.org:8475",
                         node, node.partition(".")[0].upper(), "WEB1.example.org."):  # fmt: skip
                assert (await ask(running, {"Host": host}))[0] == 200, host
            for host in ("evil.example", "web1", "127.0.0.1.nip.example", ""):
                status, _, said = await ask(running, {"Host": host})
                assert status == 421, host
                assert "--server-name" in said["hint"]

    async def test_names_of_the_certificate_are_served(self, authority):
        pair = authority.server("127.0.0.1", "web1.example.org", "*.lab.example.org")
        options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
        tls = ssl.create_default_context(cafile=authority.cert)
        async with worker(*options) as running:
            for host in ("web1.example.org:1", "x.lab.example.org"):
                assert (await ask(running, {"Host": host}, tls=tls))[0] == 200
            for host in ("y.x.lab.example.org", "example.org"):
                assert (await ask(running, {"Host": host}, tls=tls))[0] == 421

    async def test_a_request_says_one_host(self):
        async with worker() as running:
            for head, status in (
                ("GET /metrics HTTP/1.1\n", 400),
                ("GET /metrics HTTP/1.1\nHost: localhost\nHost: localhost\n", 400),
                ("GET /metrics HTTP/1.1\nHost: a b\n", 400),
                ("GET /metrics HTTP/1.0\n", 200),
                ("GET /metrics HTTP/1.0\nHost: evil.example\n", 421),
                ("GET http://localhost/metrics HTTP/1.1\nHost: localhost\n", 200),
                ("GET http://evil.example/metrics HTTP/1.1\nHost: localhost\n", 421),
                ("GET http://localhost/metrics HTTP/1.1\nHost: evil.example\n", 421),
            ):
                answer = await raw(running, head)
                assert int(answer.split()[1]) == status, head

    async def test_pages_of_others_are_refused_on_unix_sockets_too(self, tmp_path):
        async with worker(listen=[f"unix:{tmp_path}/w"], anonymous=False) as running:
            assert (await ask(running, {"Host": "any.example"}))[0] == 200
            own = {"Host": "any.example", "Origin": "https://any.example"}
            assert (await ask(running, own))[0] == 200
            for headers in (
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
            ):
                status, answered, _ = await ask(running, headers)
                assert status == 403
                assert answered["Cross-Origin-Resource-Policy"] == "same-origin"
                assert answered["X-Content-Type-Options"] == "nosniff"


class TestProxy:
    """The proxy is root here, as these tests are."""

    @pytest.fixture
    def options(self, authority):
        return ("--proxy-uid", "root", "--tls-crl", str(authority.crl))

    async def test_its_word_is_taken(self, tmp_path, options, authority):
        alice = authority.client("alice")
        escaped = quote(alice.cert.read_text(), safe="")
        async with worker(
            *options, listen=[f"unix:{tmp_path}/w"], anonymous=False
        ) as running:
            for headers, identity in (
                ({CERTIFICATE_HEADER: escaped}, "cert:CN=alice"),
                ({CERTIFICATE_HEADER: escaped, USER_HEADER: "bob"}, "cert:CN=alice"),
                ({USER_HEADER: "bob"}, "user:bob"),
                ({USER_HEADER: "CN=alice"}, "user:CN=alice"),
            ):
                count = len(identities(running)) + 1
                assert (await ask(running, headers))[0] == 200
                assert await last_identity(running, of=count) == identity
            address = {USER_HEADER: "bob", ADDRESS_HEADER: "2001:db8::1:1234"}
            assert (await ask(running, address))[0] == 200
            await wait_until(lambda: "address=[2001:db8::1]:1234" in running.text)

    async def test_what_it_cannot_mean_is_refused(self, tmp_path, options, authority):
        expired = authority.client("old", made=EXPIRED).cert.read_text()
        revoked = authority.client("bob")
        authority.revoke(revoked)
        der = authority.client("eve").der
        spoilt = [
            quote(ssl.DER_cert_to_PEM_cert(each))
            for each in (no_version(der), no_text(der, "eve"))
        ]
        async with worker(
            *options, listen=[f"unix:{tmp_path}/w"], anonymous=False
        ) as running:
            for headers, status, words in (
                ({CERTIFICATE_HEADER: spoilt[0]}, 400, "holds no certificate"),
                ({CERTIFICATE_HEADER: spoilt[1]}, 401, "cannot be read"),
                ({}, 401, "nothing says who asks"),
                ({CERTIFICATE_HEADER: "", USER_HEADER: ""}, 401, "nothing says"),
                ({CERTIFICATE_HEADER: "x"}, 400, "holds no certificate"),
                ({ADDRESS_HEADER: "x", USER_HEADER: "bob"}, 400, "ADDRESS:PORT"),
                ({USER_HEADER: "bob\u202e"}, 400, "printable"),
                ({CERTIFICATE_HEADER: quote(expired)}, 401, "CN=old has expired"),
                ({CERTIFICATE_HEADER: quote(revoked.cert.read_text())}, 401,
                 "CN=bob is revoked"),
                ({"Authorization": "Basic YTpi", USER_HEADER: "bob"}, 401, "passwords"),
            ):  # fmt: skip
                got, _, said = await ask(running, headers)
                assert (got, words in said["detail"]) == (status, True), said
            twice = f"GET {STATUS} HTTP/1.1\nHost: a\n" + f"{USER_HEADER}: bob\n" * 2
            assert (await raw(running, twice)).startswith(b"HTTP/1.1 400 ")

    async def test_a_token_goes_before_what_it_says(self, tmp_path, options, tokens):
        async with worker(
            *options, "--token-file", str(tokens),
            listen=[f"unix:{tmp_path}/w"], anonymous=False,
        ) as running:  # fmt: skip
            assert (await ask(running, {**bearer(TOKEN), USER_HEADER: "bob"}))[0] == 200
            assert (await ask(running, {**bearer("x"), USER_HEADER: "bob"}))[0] == 401
            assert identities(running) == ["token:backup", "null"]

    async def test_a_certificate_beside_a_token_has_to_hold(
        self, tmp_path, options, authority, tokens
    ):
        bob = authority.client("bob")
        shown = {**bearer(TOKEN), CERTIFICATE_HEADER: quote(bob.cert.read_text())}
        async with (
            worker(
                *options, "--token-file", str(tokens),
                listen=[f"unix:{tmp_path}/w"], anonymous=False,
            ) as running,
            client(running) as http,
            http.get("/capture?filter=icmp", headers=shown) as cut,
            http.get("/capture?filter=icmp", headers=bearer(TOKEN)) as kept,
        ):  # fmt: skip
            for each in (cut, kept):
                await each.content.readexactly(24)
            authority.revoke(bob)
            await running.hang_up()
            assert "files again, 1 connection is revoked" in running.text
            with pytest.raises(aiohttp.ClientError):
                await cut.content.read()
            status, _, said = await ask(running, shown)
            assert (status, said["detail"]) == (
                401,
                "the certificate of CN=bob is revoked",
            )
            await wait_until(lambda: running.packet_sockets() == 1)

    async def test_nobody_else_is_believed(self, folder):
        path = folder / "w"
        async with worker(
            "--proxy-uid", "33", "--listen-group", "nogroup",
            listen=[f"unix:{path}", "127.0.0.1:0"],
        ) as running:  # fmt: skip
            to = f"--unix-socket {path} http://localhost"
            said = [await spoofed(to, uid) for uid in (33, 65534, 0)]
            said.append(await spoofed(running.urls[1], 33))
            assert said == [200] * 4  # anybody may enter
            await wait_until(lambda: len(identities(running)) == 4)
        assert identities(running) == ["user:root", *["anonymous"] * 3]

    async def test_nor_let_in_where_the_proxy_says_who(self, folder):
        path = folder / "w"
        async with worker(
            "--proxy-uid", "33", "--listen-group", "nogroup",
            listen=[f"unix:{path}"], anonymous=False,
        ):  # fmt: skip
            to = f"--unix-socket {path} http://localhost"
            assert [await spoofed(to, uid) for uid in (33, 65534, 0)] == [200, 401, 401]

    async def test_without_a_proxy_the_mode_of_the_socket_is_the_rule(self, folder):
        path = folder / "w"
        async with worker(
            "--listen-group", "nogroup", listen=[f"unix:{path}"], anonymous=False
        ) as running:
            to = f"--unix-socket {path} http://localhost"
            assert await spoofed(to, 65534) == 200
            assert identities(running) == ["anonymous"]
            os.chown(path, 0, 0)
            assert await spoofed(to, 65534) == 0


async def spoofed(to: str, uid: int) -> int:
    """Ask as another user, with a field of the proxy's; return the status, 0 if none."""
    *options, url = to.split()
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-m", "5", *options, "-H", f"{USER_HEADER}: root",
        "-w", "%{http_code}", "-o", "/dev/null", url + STATUS,
        stdout=subprocess.PIPE, user=uid, group=65534, extra_groups=[],
    )  # fmt: skip
    said, _ = await process.communicate()
    return int(said)


class TestReload:
    @pytest.fixture
    def options(self, authority, tokens):
        pair = authority.server("127.0.0.1")
        return (
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(authority.cert), "--tls-crl", str(authority.crl),
        )  # fmt: skip

    def tls(self, authority, pair) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=authority.cert)
        made.load_cert_chain(pair.cert, pair.key)
        return made

    async def test_streams_of_a_revoked_certificate_end_at_once(
        self, options, authority
    ):
        pairs = {name: authority.client(name) for name in ("alice", "bob")}
        async with (
            worker(*options, anonymous=False) as running,
            client(running, self.tls(authority, pairs["alice"])) as alice,
            client(running, self.tls(authority, pairs["bob"])) as bob,
            alice.get("/capture?filter=icmp") as kept,
            bob.get("/capture?filter=icmp") as cut,
        ):
            await kept.content.readexactly(24)
            await cut.content.readexactly(24)
            # It has shaken hands, but not asked yet.
            silent = await asyncio.open_connection(
                "127.0.0.1", running.url.rpartition(":")[2],
                ssl=self.tls(authority, pairs["bob"]), server_hostname="127.0.0.1",
            )  # fmt: skip
            authority.revoke(pairs["bob"])
            await running.hang_up()
            async with asyncio.timeout(1):
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await cut.content.read()
                await wait_until(lambda: running.packet_sockets() == 1)
            async with alice.get(STATUS) as answer:
                assert len((await answer.json())["streams"]) == 1
            silent[1].write(
                f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            head = await silent[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401 ")
            silent[1].transport.abort()
            with pytest.raises(aiohttp.ClientError):
                await bob.get(STATUS)
            await wait_until(lambda: "ended=revoked" in running.text)
        assert "identity=cert:CN=bob" in running.text

    @pytest.mark.parametrize("how", ["revoked", "expired", "authority gone"])
    async def test_a_token_does_not_stand_in_for_its_certificate(
        self, tmp_path, options, authority, tokens, how
    ):
        known = tmp_path / "known.pem"
        other = Authority(tmp_path, "other")
        both = tmp_path / "lists.pem"
        known.write_bytes(authority.cert.read_bytes() + other.cert.read_bytes())

        def write_lists() -> None:
            both.write_bytes(authority.crl.read_bytes() + other.crl.read_bytes())

        write_lists()
        bob = other.client("bob", made=ENDING if how == "expired" else NOW)
        alice = authority.client("alice")
        async with (
            worker(
                *options[:4], "--tls-client-ca", str(known), "--tls-crl", str(both),
                "--token-file", str(tokens), anonymous=False,
            ) as running,
            client(running, self.tls(authority, bob)) as http,
            client(running, self.tls(authority, alice)) as others,
            http.get("/capture?filter=icmp", headers=bearer(TOKEN)) as cut,
            others.get("/capture?filter=icmp", headers=bearer(TOKEN)) as kept,
        ):  # fmt: skip
            for each in (cut, kept):
                await each.content.readexactly(24)
            # One that has asked before, and one that has only shaken hands.
            async with http.get(STATUS, headers=bearer(TOKEN)) as answer:
                assert answer.status == 200
            silent = await asyncio.open_connection(
                "127.0.0.1", running.url.rpartition(":")[2],
                ssl=self.tls(authority, bob), server_hostname="127.0.0.1",
            )  # fmt: skip
            if how == "revoked":
                other.revoke(bob)
                write_lists()
            elif how == "authority gone":
                known.write_bytes(authority.cert.read_bytes())
            if how != "expired":
                await running.hang_up()
            async with asyncio.timeout(10):
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await cut.content.read()
            silent[1].write(
                f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            head = await silent[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401 ")
            assert re.search(rb"CN=bob (is revoked|has expired|is of an authority)",
                             await silent[0].read(1000))  # fmt: skip
            silent[1].transport.abort()
            with pytest.raises(aiohttp.ClientError):
                await http.get(STATUS, headers=bearer(TOKEN))
            await wait_until(lambda: running.packet_sockets() == 1)
            await wait_until(lambda: "ended=revoked" in running.text)

    async def test_a_revoked_authority_between_lets_in_nobody_more(self, tmp_path):
        root = Authority(tmp_path, "root", path_length=1)
        between = Authority(tmp_path, "between", under=root)
        pair, lists = root.server("127.0.0.1"), tmp_path / "lists.pem"

        def write_lists() -> None:
            lists.write_bytes(root.crl.read_bytes() + between.crl.read_bytes())

        write_lists()
        options = (
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--tls-client-ca", str(root.cert), "--tls-crl", str(lists),
        )  # fmt: skip
        hers = self.tls(root, between.client("alice"))
        his = self.tls(root, root.client("bob"))
        async with (
            worker(*options, anonymous=False) as running,
            client(running, hers) as alice,
            client(running, his) as bob,
            alice.get("/capture?filter=icmp") as cut,
            bob.get("/capture?filter=icmp") as kept,
        ):
            for each in (cut, kept):
                await each.content.readexactly(24)
            root.revoke(between)
            write_lists()
            await running.hang_up()
            assert "files again, 1 connection is revoked" in running.text
            with pytest.raises(aiohttp.ClientError):
                await cut.content.read()
            with pytest.raises(aiohttp.ClientError):
                await alice.get(STATUS)
            await wait_until(lambda: "certificate: certificate revoked" in running.text)
            await wait_until(lambda: running.packet_sockets() == 1)

    async def test_streams_of_a_certificate_that_expires_end(self, options, authority):
        tls = self.tls(authority, authority.client("alice", made=ENDING))
        async with (
            worker(*options, anonymous=False) as running,
            client(running, tls) as http,
            http.get("/capture?filter=icmp") as stream,
        ):
            await stream.content.readexactly(24)
            async with asyncio.timeout(10):
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await stream.content.read()
            await wait_until(lambda: "ended=revoked" in running.text)

    @pytest.mark.parametrize("encrypted", [False, True])
    async def test_a_stalled_stream_ends_as_well(
        self, authority, tokens, options, encrypted
    ):
        tls = self.tls(authority, authority.client("alice")) if encrypted else None
        everything = options if encrypted else ()
        async with worker(
            *everything, "--token-file", str(tokens), anonymous=False
        ) as running:
            with talker() as udp:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", running.url.rpartition(":")[2], ssl=tls, limit=1024
                )
                writer.write(
                    f"GET /capture?filter={quote(udp.filter)} HTTP/1.1\r\n"
                    f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
                )
                await reader.readuntil(b"\r\n\r\n")
                async with client(running, tls) as http:

                    async def stalls() -> bool:
                        # More than all buffers on the way hold, and then no more.
                        before = await self.delivered(http)
                        await asyncio.to_thread(udp.send, 2000, size=1400)
                        return 0 < before == await self.delivered(http)

                    await wait_until(stalls, seconds=20)
                tokens.write_text(f"other:{OTHER}\n")
                await running.hang_up()
                await wait_until(lambda: running.packet_sockets() == 0, seconds=1)
                await wait_until(lambda: "ended=revoked" in running.text, seconds=1)
                writer.transport.abort()
        assert "identity=token:backup" in running.text

    async def delivered(self, http) -> int:
        async with http.get(STATUS, headers=bearer(OTHER)) as answer:
            (stream,) = (await answer.json())["streams"]
            return stream["packets"]

    async def test_a_token_that_changes_is_another(self, tokens):
        async with (
            worker("--token-file", str(tokens), anonymous=False) as running,
            client(running) as http,
            http.get("/capture?filter=icmp", headers=bearer(TOKEN)) as stream,
            http.get("/capture?filter=icmp", headers=bearer(OTHER)) as other,
        ):
            await stream.content.readexactly(24)
            await other.content.readexactly(24)
            new = secrets.token_urlsafe(24)
            tokens.write_text(f"backup:{new}\nother:{OTHER}\n")
            await running.hang_up()
            assert "files again, 1 connection is revoked" in running.text
            with pytest.raises(aiohttp.ClientError):
                await stream.content.read()
            assert (await ask(running, bearer(TOKEN)))[0] == 401
            assert (await ask(running, bearer(new)))[0] == 200
            await wait_until(lambda: running.packet_sockets() == 1)

    async def test_a_new_certificate_is_shown_and_a_new_authority_known(
        self, tmp_path, authority
    ):
        own, clients = tmp_path / "own.pem", tmp_path / "clients.pem"
        key = tmp_path / "own.key"
        other = Authority(tmp_path, "other")

        def serve(pair, *known) -> None:
            own.write_bytes(pair.cert.read_bytes())
            key.touch(0o600)
            key.write_bytes(pair.key.read_bytes())
            clients.write_bytes(b"".join(each.cert.read_bytes() for each in known))

        serve(authority.server("127.0.0.1"), authority)
        alice = self.tls(authority, authority.client("alice"))
        async with (
            worker(
                "--tls-cert", str(own), "--tls-key", str(key),
                "--tls-client-ca", str(clients), anonymous=False,
            ) as running,
            client(running, alice) as http,
            http.get("/capture?filter=icmp") as stream,
        ):  # fmt: skip
            await stream.content.readexactly(24)
            serve(other.server("127.0.0.1"), authority, other)
            await running.hang_up()
            new = self.tls(other, other.client("alice"))
            assert (await ask(running, tls=new))[0] == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(running, tls=alice)
            await wait_until(lambda: running.packet_sockets() == 1)
            # And then the old one is not known any more.
            serve(other.server("127.0.0.1"), other)
            await running.hang_up()
            with pytest.raises(aiohttp.ClientError):
                await stream.content.read()
            assert (await ask(running, tls=new))[0] == 200

    @pytest.mark.parametrize("wrong", ["cert", "key", "ca", "crl", "tokens", "mode"])
    async def test_what_cannot_be_used_changes_nothing(
        self, options, authority, tokens, wrong
    ):
        alice, bob = authority.client("alice"), authority.client("bob")
        tls = self.tls(authority, alice)
        path = {
            "cert": Path(options[1]),
            "key": Path(options[3]),
            "ca": authority.cert,
            "crl": authority.crl,
            "tokens": tokens,
            "mode": tokens,
        }[wrong]
        async with (
            worker(
                *options, "--token-file", str(tokens), anonymous=False
            ) as running,
            client(running, tls) as http,
            http.get("/capture?filter=icmp", headers=bearer(TOKEN)) as stream,
        ):  # fmt: skip
            await stream.content.readexactly(24)
            # All else says that nobody may come in any more.
            authority.revoke(alice, bob)
            tokens.write_text("# nobody\n")
            if wrong == "mode":
                path.chmod(0o644)
            else:
                path.write_text("nothing of the kind")
            await running.hang_up()
            assert "nothing is changed: " in running.text
            assert str(path) in running.text
            await wait_until(lambda: running.packet_sockets() == 1)
            for headers in (None, bearer(TOKEN)):
                assert (await ask(running, headers, tls=tls))[0] == 200
