"""Real TLS servers, and credentials: where they go, and where they never do."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl

import pytest

from support.captures import Record, parse_pcap, pcap
from support.certificates import EARLY, EXPIRED, Authority, self_signed
from support.commands import environment, run
from support.servers import answer, capture, handshakes, serving, tls

pytestmark = pytest.mark.process

RECORDS = [Record(1_700_000_000_000_000_000 + n * 1000, b"x") for n in range(10)]
SECRET = "Tr0ub4dor&3"  # noqa: S105  # of no account


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def context(authority):
    return tls(authority.server("127.0.0.1"))


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- TLS ---


@pytest.mark.parametrize("option", ["--ca", "-ca"])
async def test_the_right_authority(authority, context, option):
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        result = await run(option, authority.cert, server.url)
    assert result.code == 0
    assert parse_pcap(result.out) == RECORDS


async def test_the_port_is_the_same_for_https(authority, context):
    """Nothing listens on 443 or 8475 here: the message names what was tried."""
    result = await run("-vv", "--ca", authority.cert, "https://127.0.0.1")
    assert result.code == 3


async def refused(authority, context, *words):
    """Return the one line that is said of a worker that is not trusted."""
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        words = words or ("--ca", authority.cert)
        result = await run("-q", *words, server.url)
    assert result.code == 3
    assert server.requests == []
    assert result.err.count("\n") == 1
    return result.err.removeprefix("ddump: 127.0.0.1: ").rstrip("\n")


async def test_no_authority(context):
    assert await refused(None, context, "--connect-timeout", "10s") == (
        "the certificate of 127.0.0.1 (CN=127.0.0.1) is of an unknown authority, "
        "CN=authority (see --ca)"
    )


async def test_another_authority(tmp_path, context):
    other = Authority(tmp_path, "other")
    assert await refused(other, context) == (
        "the certificate of 127.0.0.1 (CN=127.0.0.1) is of an unknown authority, "
        "CN=authority (see --ca)"
    )


async def test_self_signed(authority, tmp_path):
    context = tls(self_signed(tmp_path, "web1"))
    assert await refused(authority, context) == (
        "the certificate of 127.0.0.1 (CN=web1) is self-signed, and not trusted "
        "(see --ca)"
    )


async def test_another_name(authority):
    context = tls(authority.server("web1.example", "10.0.0.1"))
    assert await refused(authority, context) == (
        "the certificate of 127.0.0.1 (CN=web1.example) is not for 127.0.0.1, "
        "but for web1.example, 10.0.0.1"
    )


async def test_a_certificate_that_has_expired(authority):
    context = tls(authority.server("127.0.0.1", made=EXPIRED))
    said = await refused(authority, context)
    assert re.fullmatch(
        r"the certificate of 127\.0\.0\.1 \(CN=127\.0\.0\.1\) has expired: "
        r"it was valid until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        said,
    )


async def test_a_certificate_that_is_not_valid_yet(authority):
    context = tls(authority.server("127.0.0.1", made=EARLY))
    said = await refused(authority, context)
    assert re.fullmatch(
        r"the certificate of 127\.0\.0\.1 \(CN=127\.0\.0\.1\) is not valid before "
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ \(is a clock wrong\?\)",
        said,
    )


async def test_a_certificate_that_is_revoked(authority):
    pair = authority.server("127.0.0.1")
    words = "--ca", authority.cert, "--crl", authority.crl
    async with serving(capture([pcap(RECORDS)]), context=tls(pair)) as server:
        result = await run(*words, server.url)
    assert result.code == 0
    assert parse_pcap(result.out) == RECORDS
    authority.revoke(pair)
    assert await refused(authority, tls(pair), *words) == (
        "the certificate of 127.0.0.1 (CN=127.0.0.1) is revoked, or its authority is"
    )


async def test_an_authority_without_a_list(authority, tmp_path, context):
    """A list that cannot be looked at does not mean that nothing is revoked."""
    other = Authority(tmp_path, "other")
    words = "--ca", authority.cert, "--crl", other.crl
    assert await refused(authority, context, *words) == (
        "the certificate of 127.0.0.1 (CN=127.0.0.1) may be revoked: --crl has no list of "
        "CN=authority, or of an authority above it"
    )


async def test_a_certificate_of_a_client(authority):
    context = tls(authority.client("alice"))
    assert await refused(authority, context) == (
        "the certificate of 127.0.0.1 (CN=alice) is not one for a server"
    )


async def test_a_hostile_certificate_is_no_command_for_a_terminal(tmp_path, authority):
    context = tls(self_signed(tmp_path, "a\x1b[2J\nddump: ok"))
    said = await refused(authority, context)
    assert "\\x1b[2J" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("words", [[], ["-q"]])
async def test_insecure(tmp_path, words):
    """It works with whatever certificate, and says what that means, every time."""
    context = tls(self_signed(tmp_path, "web1"))
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        result = await run("--insecure", *words, server.url)
    assert result.code == 0
    assert parse_pcap(result.out) == RECORDS
    assert result.err.startswith("ddump: WARNING: --insecure: no worker's certificate")


async def test_insecure_and_an_authority(authority):
    result = await run("--insecure", "--ca", authority.cert, "https://127.0.0.1:1")
    assert result.code == 2
    assert "--insecure verifies nothing (give it without --ca" in result.err


@pytest.mark.parametrize("options", [("--cert", "--key"), ("-cert", "-key")])
async def test_a_client_certificate(authority, options):
    context = tls(authority.server("127.0.0.1"), client_authority=authority)
    pair = authority.client("alice")
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        result = await run(
            "-ca",
            authority.cert,
            options[0],
            pair.cert,
            options[1],
            pair.key,
            server.url,
        )
    assert result.code == 0
    assert parse_pcap(result.out) == RECORDS


async def shown(authority, pair, *, version=ssl.TLSVersion.TLSv1_3):
    """Return the one line that is said when a server does not take a certificate."""
    context = tls(authority.server("127.0.0.1"), client_authority=authority)
    context.maximum_version = version
    context.load_verify_locations(authority.crl)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    words = [] if pair is None else ["--cert", pair.cert, "--key", pair.key]
    with handshakes(context) as port:
        result = await run(
            "-q", "--ca", authority.cert, *words, f"https://127.0.0.1:{port}"
        )
    assert result.code == 3
    assert result.err.count("\n") == 1
    return result.err.removeprefix("ddump: 127.0.0.1: ").rstrip("\n")


async def test_a_client_certificate_that_is_missing(authority):
    assert await shown(authority, None) == (
        "it wants a client's certificate (see --cert and --key)"
    )
    # Before TLS 1.3 there was no word for it.
    assert await shown(authority, None, version=ssl.TLSVersion.TLSv1_2) == (
        "TLS: handshake failure: it may want a client's certificate "
        "(see --cert and --key)"
    )


VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
)


@VERSIONS
async def test_a_client_certificate_of_another_authority(authority, tmp_path, version):
    pair = Authority(tmp_path, "other").client("alice")
    assert await shown(authority, pair, version=version) == (
        "it does not take my certificate (CN=alice): it does not know its authority, "
        "CN=other"
    )


@VERSIONS
async def test_a_client_certificate_that_has_expired(authority, version):
    pair = authority.client("alice", made=EXPIRED)
    said = await shown(authority, pair, version=version)
    assert said.startswith(
        "it does not take my certificate (CN=alice): it has expired, it was valid until "
        "20"
    )


@VERSIONS
async def test_a_client_certificate_that_is_not_valid_yet(authority, version):
    pair = authority.client("alice", made=EARLY)
    said = await shown(authority, pair, version=version)
    assert said.startswith(
        "it does not take my certificate (CN=alice): it is not valid before 20"
    )


@VERSIONS
async def test_a_client_certificate_that_is_revoked(authority, version):
    pair = authority.client("alice")
    authority.revoke(pair)
    assert await shown(authority, pair, version=version) == (
        "it does not take my certificate (CN=alice): it is revoked, or its authority is"
    )


async def test_a_server_s_certificate_as_a_client_s(authority):
    said = await shown(authority, authority.server("web1"))
    assert said.startswith("it does not take my certificate (CN=web1)")


async def test_a_server_that_closes_and_says_nothing(authority):
    context = tls(authority.server("127.0.0.1"), client_authority=authority)
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        result = await run("--ca", authority.cert, server.url)
    assert result.code == 3
    assert "does it want a client's certificate? see --cert" in result.err


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        bytes.fromhex("160301002a020000260301") + bytes(33) + bytes.fromhex("c0140000"),
        bytes.fromhex("15030100020246"),
    ],
    ids=["closed", "TLS 1.0", "alert"],
)
@pytest.mark.parametrize("command", [[], ["status"], ["segments"]])
async def test_a_handshake_that_comes_to_nothing(hello, command):
    async def serve(reader, writer):
        await reader.read(4096)
        writer.write(hello)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        result = await run(*command, f"https://127.0.0.1:{port}")
    assert result.code == 3
    told = (
        "it speaks only an old TLS, and we want 1.2 or newer"
        if hello
        else "the connection was closed in the TLS handshake (the server may not speak "
        "TLS, or not as we do)"
    )
    assert result.err.partition("\n")[0] == f"ddump: 127.0.0.1: {told}"


async def test_https_asked_of_http():
    async with serving(capture([pcap(RECORDS)])) as server:
        result = await run(
            "--connect-timeout", "500ms", server.url.replace("http", "https")
        )
    assert result.code == 3
    assert "ddump: 127.0.0.1: " in result.err


async def test_http_asked_of_https(context):
    async with serving(capture([pcap(RECORDS)]), context=context) as server:
        result = await run(server.url.replace("https", "http"))
    assert result.code == 3
    assert "does it want https?" in result.err


async def test_a_tls_stream_that_is_cut(authority, context):
    async def script(exchange):
        await exchange.begin()
        await exchange.chunk(pcap(RECORDS))

    async with serving(script, context=context) as server:
        result = await run("--no-reconnect", "--ca", authority.cert, server.url)
    assert result.code == 4
    assert parse_pcap(result.out) == RECORDS
    assert "the connection ended before the stream did" in result.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--ca", "none.pem"], "cannot use the authorities in none.pem: No such file"),
        (["--ca", "{crl}"], "cannot use the authorities in {crl}: there is none"),
        (["--cert", "none.pem"], "cannot use the certificate none.pem"),
        (["--key", "none.pem"], "a key without a certificate"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_files_that_cannot_be_used(authority, options, complaint, scheme):
    words = [word.format(crl=authority.crl) for word in options]
    result = await run(*words, f"{scheme}://127.0.0.1:1")
    assert result.code == 2
    assert complaint.format(crl=authority.crl) in result.err


# --- Credentials ---


async def received(*arguments, env=None, script=None):
    """Return the header that a server got, and all that the command said."""
    async with serving(script or capture([pcap(RECORDS)])) as server:
        words = [
            str(word).replace("HOST", f"127.0.0.1:{server.port}") for word in arguments
        ]
        result = await run("-vv", *words, env=env)
    return server.requests[0].headers.get("Authorization"), result


async def test_credentials_of_the_url():
    header, result = await received(f"http://alice:{SECRET.replace('&', '%26')}@HOST")
    assert header == basic("alice", SECRET)
    assert SECRET not in result.err
    assert "alice" not in result.err


async def test_a_user_and_the_environment():
    env = environment(DDUMP_PASSWORD=SECRET)
    header, result = await received("--user", "alice", "http://HOST", env=env)
    assert header == basic("alice", SECRET)
    assert SECRET not in result.err


async def test_all_from_the_environment():
    env = environment(DDUMP_USER="alice", DDUMP_PASSWORD=SECRET)
    header, _ = await received("http://HOST", env=env)
    assert header == basic("alice", SECRET)


async def test_a_password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text(SECRET)
    path.chmod(0o600)
    header, result = await received(
        "--user", "alice", "--password-file", path, "http://HOST"
    )
    assert header == basic("alice", SECRET)
    assert SECRET not in result.err


async def test_a_token_beats_the_environment_s_user(tmp_path):
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    env = environment(DDUMP_USER="alice", DDUMP_PASSWORD="other")  # noqa: S106
    header, result = await received("--token-file", path, "http://HOST", env=env)
    assert header == f"Bearer {SECRET}"
    assert SECRET not in result.err


async def test_a_user_and_a_token_on_the_line(tmp_path):
    path = tmp_path / "token"
    path.write_text(SECRET)
    path.chmod(0o600)
    result = await run("--user", "a", "--token-file", path, "http://127.0.0.1:1")
    assert result.code == 2
    assert "--user and --token-file are both given (give one)" in result.err


async def test_netrc(tmp_path):
    path = tmp_path / "rc"
    path.write_text(f"machine 127.0.0.1 login alice password {SECRET}\n")
    path.chmod(0o600)
    header, result = await received("http://HOST", env=environment(NETRC=str(path)))
    assert header == basic("alice", SECRET)
    assert SECRET not in result.err


async def test_credentials_do_not_follow_a_redirect(tmp_path):
    async with serving(capture([pcap(RECORDS)])) as other:
        script = answer("307 Moved", location=f"{other.url}/capture")
        header, result = await received(f"http://alice:{SECRET}@HOST", script=script)
    assert header == basic("alice", SECRET)
    assert other.connections == 0
    assert result.code == 3
    assert SECRET not in result.err


@pytest.mark.parametrize(
    "target",
    [
        f"http://alice:{SECRET}@127.0.0.1:1",
        f"https://alice:{SECRET}@127.0.0.1:1",
        f"http://alice:{SECRET}@127.0.0.1:x",
        f"http://alice:{SECRET}@127.0.0.1?nonsense=1",
        f"http://alice:{SECRET}/@127.0.0.1",
        f"a=http://alice:{SECRET}@no-such-host.invalid",
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
async def test_errors_hold_no_credentials(target, from_file, tmp_path):
    words = [target]
    if from_file:
        path = tmp_path / "targets"
        path.write_text(f"# all\n{target}\n")
        path.chmod(0o600)
        words = ["-T", path]
    result = await run("-vv", *words)
    assert result.code in {2, 3}
    assert result.err
    assert "Tr0ub" not in result.err
    if from_file and result.code == 2:
        assert f"{path}:2: " in result.err


@pytest.mark.parametrize("command", [(), ("status",), ("segments",)])
async def test_secrets_in_plain_are_warned_about_for_each_target(command, tmp_path):
    """Also with -q, and with those of netrc; not on loopback, where nobody listens."""
    path = tmp_path / "rc"
    path.write_text(f"default login alice password {SECRET}\n")
    path.chmod(0o600)
    targets = ["http://web1.invalid", "x=http://web2.invalid", "http://127.0.0.1:1"]
    result = await run(
        *command, "-q", *targets, "https://web3.invalid",
        env=environment(NETRC=str(path)),
    )  # fmt: skip
    assert result.code == 3
    warnings = [line for line in result.err.splitlines() if "WARNING" in line]
    assert warnings == [
        f"ddump: WARNING: {name}: http sends the password in plain: whoever is on the "
        "way can take it, and read and alter all; use https"
        for name in ("web1.invalid", "x")
    ]
    assert SECRET not in result.err


async def test_credentials_are_in_no_capture():
    async with serving(capture([pcap(RECORDS)])) as server:
        target = server.url.replace("//", f"//alice:{SECRET.replace('&', '%26')}@")
        result = await run("--format", "pcapng", target)
    assert result.code == 0
    assert b"127.0.0.1" in result.out
    assert b"alice" not in result.out
    assert b"Tr0ub" not in result.out
