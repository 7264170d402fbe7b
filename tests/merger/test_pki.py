"""``ddump pki`` as people run it, and what it makes as OpenSSL and TLS take it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import threading

import pytest

from ddump_merger.cli import main
from support.certificates import Pair
from support.servers import answer, serving, tls


@pytest.fixture
def pki(tmp_path, monkeypatch, capsys):
    """Run ``ddump pki`` in the test's folder; return its code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDUMP_PKI", raising=False)

    def run(*words):
        code = main(["pki", *words])
        return code, *capsys.readouterr()

    return run


def test_from_nothing_to_a_revoked_client(pki):
    assert pki("init")[0] == 0
    assert pki("server", "web1.example.org", "web1", "127.0.0.1") == (
        0,
        "ddump-pki/servers/web1.example.org.pem: web1.example.org web1 127.0.0.1\n"
        "ddump-pki/servers/web1.example.org.key: a secret\n",
        "",
    )
    assert pki("client", "alice")[0] == 0
    code, out, err = pki("revoke", "alice")
    assert (code, err) == (0, "")
    revoked, where = out.splitlines()
    assert revoked.startswith("revoked: client alice ")
    assert where.startswith("ddump-pki/crl.pem: ")
    code, out, err = pki("show")
    assert (code, err) == (0, "")
    first, headings, *rows = [line.split("\t") for line in out.splitlines()]
    assert first[0].startswith("CN=ddump authority ")
    assert headings == ["kind", "name", "state", "until", "serial", "names"]
    assert [row[:2] for row in rows] == [
        ["client", "alice"],
        ["server", "web1.example.org"],
    ]
    assert rows[0][2].startswith("revoked 20")
    assert rows[1][2] == "valid"
    assert [row[5] for row in rows] == ["", "web1.example.org web1 127.0.0.1"]
    assert rows[0][4] == revoked.split()[-1]
    told = subprocess.check_output(
        ["openssl", "x509", "-noout", "-serial", "-in", "ddump-pki/clients/alice.pem"],
        text=True,
    )
    assert told == f"serial={rows[0][4]}\n"


def names_of(path):
    """Return the names of a certificate as OpenSSL reads them."""
    told = subprocess.check_output(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", path], text=True
    )
    return re.findall("(?:DNS|IP Address):([^,\n]+)", told)


def test_a_server_that_is_renewed_keeps_its_names_or_that_is_said(pki):
    certificate, names = "ddump-pki/servers/web1.pem", ["web1", "web1.org", "10.9.9.9"]
    pki("init")
    pki("server", *names)
    code, out, err = pki("server", "--renew", "Web1")
    assert (code, out.splitlines()[0], err) == (
        0,
        f"{certificate}: web1 web1.org 10.9.9.9",
        "",
    )
    assert names_of(certificate) == names
    code, out, err = pki("server", "--renew", "web1", "10.9.9.9", "web2")
    assert (code, out.splitlines()[0], err) == (
        0,
        f"{certificate}: web1 10.9.9.9 web2",
        f"ddump: {certificate}: not in it any more: web1.org\n",
    )
    assert names_of(certificate) == ["web1", "10.9.9.9", "web2"]
    pki("revoke", "web1")
    assert pki("server", "web1")[::2] == (
        0,
        f"ddump: {certificate}: not in it any more: 10.9.9.9 web2\n",
    )
    assert names_of(certificate) == ["web1"]


def test_a_list_that_was_lost_is_made_anew_and_that_is_said(pki, tmp_path):
    for words in (["init"], ["client", "alice"], ["revoke", "alice"]):
        assert pki(*words)[0] == 0
    (tmp_path / "ddump-pki/crl.pem").unlink()
    code, _, err = pki("show")
    assert (code, err) == (
        0,
        "ddump: cannot read ddump-pki/crl.pem: no such file or directory: made anew, "
        "with 1 that are revoked\n",
    )
    assert pki("show")[2] == ""


def test_an_authority_that_has_made_nothing(pki):
    pki("init")
    code, out, _ = pki("show")
    assert code == 0
    assert out.count("\n") == 1


@pytest.mark.parametrize("given", ["option", "environment"])
def test_another_folder(pki, tmp_path, monkeypatch, given):
    words = ["--dir", "other"]
    if given == "environment":
        monkeypatch.setenv("DDUMP_PKI", "other")
        words = []
    for command in (["init"], ["client", "alice"], ["show"], ["revoke", "alice"]):
        assert pki(*command, *words)[0] == 0
    assert (tmp_path / "other/clients/alice.key").exists()
    assert not (tmp_path / "ddump-pki").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "Missing command (see ddump pki --help)"),
        (["make"], "No such command 'make'"),
        (["client"], "Missing argument 'NAME' (see ddump pki client --help)"),
        (["client", "a", "b"], "unexpected extra argument (b)"),
        (["client", "../a"], "'../a' is no name for a client"),
        (["client", "alice"], "alice has a certificate until "),
        (["server", "a/b"], "'a/b' is no DNS name and no address"),
        (["server"], "Missing argument 'NAME...'"),
        (["revoke"], "Missing argument 'NAME...'"),
        (["revoke", "bob"], "'bob' is unknown: nothing was ever made for it"),
        (["init"], "ddump-pki is not empty"),
        (["show", "--dir", "none"], "none: no such file or directory (ddump pki init"),
    ],
)
def test_wrong_usage(pki, words, complaint):
    pki("init")
    pki("client", "alice")
    code, out, err = pki(*words)
    assert (code, out) == (2, "")
    assert err.startswith("ddump: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_what_cannot_be_written(pki):
    code, out, err = pki("init", "--dir", "/proc/pki")
    assert (code, out) == (5, "")
    assert err == "ddump: /proc/pki: no such file or directory\n"


@pytest.mark.parametrize(
    "words", [[], ["init"], ["server"], ["client"], ["revoke"], ["show"]]
)
def test_help(pki, words):
    code, out, _ = pki(*words, "--help")
    assert code == 0
    assert out.startswith("Usage: ddump pki")


def test_no_secret_is_said_and_none_is_given_away(pki, tmp_path):
    said = "".join(
        part
        for words in (["init"], ["client", "alice"], ["show"])
        for part in pki(*words)[1:]
    )
    assert "BEGIN" not in said
    if os.geteuid() != 0:
        pytest.fail("the tests run as root: what another user may read is tried here")
    result = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", "cat",
         tmp_path / "ddump-pki/clients/alice.key"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert b"Permission denied" in result.stderr


def test_both_sides_of_a_connection_take_what_it_makes(pki, tmp_path):
    """By the strictest rules that Python's TLS has, with the list of revocations."""
    for words in (["init"], ["server", "web1", "127.0.0.1"], ["client", "alice"]):
        assert pki(*words)[0] == 0
    folder = tmp_path / "ddump-pki"

    def context(purpose, pair):
        made = ssl.create_default_context(purpose, cafile=folder / "ca.pem")
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(folder / f"{pair}.pem", folder / f"{pair}.key")
        made.load_verify_locations(folder / "crl.pem")
        made.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
        return made

    accepting = context(ssl.Purpose.CLIENT_AUTH, "servers/web1")
    asking = context(ssl.Purpose.SERVER_AUTH, "clients/alice")
    mine, theirs = socket.socketpair()
    seen = []

    def serve():
        with accepting.wrap_socket(theirs, server_side=True) as connection:
            seen.append(connection.getpeercert()["subject"])
            connection.sendall(b"welcome")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(mine, server_hostname="127.0.0.1") as connection:
            assert connection.recv(100) == b"welcome"
    finally:
        thread.join()
    assert seen == [((("commonName", "alice"),),)]


async def test_curl_takes_what_it_makes(pki, tmp_path):
    """Until the server's certificate is revoked."""
    for words in (["init"], ["server", "web1", "127.0.0.1"]):
        assert (await asyncio.to_thread(pki, *words))[0] == 0
    folder = tmp_path / "ddump-pki"
    pair = Pair(cert=folder / "servers/web1.pem", key=folder / "servers/web1.key")

    async def curl():
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--cacert", folder / "ca.pem",
            "--crlfile", folder / "crl.pem", server.url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(10):
            return await process.communicate()

    async with serving(answer("200 OK", b"welcome"), context=tls(pair)) as server:
        assert await curl() == (b"welcome", b"")
        await asyncio.to_thread(pki, "revoke", "web1")
        out, err = await curl()
    assert out == b""
    assert b"certificate revoked" in err
