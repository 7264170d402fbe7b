"""What OpenSSL finds wrong with a worker's certificate, in words."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace

import pytest

from ddump_merger.certificate import Certificate
from ddump_merger.distrust import presented, why_not_trusted
from ddump_merger.target import parse_target
from support.certificates import EXPIRED, Authority
from support.servers import answer, refusing_port, serving, tls

NOW = 1_700_000_000_000_000_000
DAY = 86400 * 10**9
SHOWN = Certificate(
    subject="CN=db", issuer="CN=ca", names=("db", "10.0.0.1"),
    begin_ns=NOW - DAY, end_ns=NOW + DAY,
)  # fmt: skip


def told(code, shown=SHOWN, message=""):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    error.verify_message = message
    reason, hint = why_not_trusted(error, "web", shown, now_ns=NOW)
    return reason.removeprefix("the certificate of web "), hint


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (2, "(CN=db) is of an unknown authority, CN=ca", "see --ca"),
        (18, "(CN=db) is self-signed, and not trusted", "see --ca"),
        (19, "(CN=db) is of an unknown authority, CN=ca", "see --ca"),
        (20, "(CN=db) is of an unknown authority, CN=ca", "see --ca"),
        (21, "(CN=db) is of an unknown authority, CN=ca", "see --ca"),
        (23, "(CN=db) is revoked, or its authority is", ""),
        (26, "(CN=db) is not one for a server", ""),
        (62, "(CN=db) is not for web, but for db, 10.0.0.1", ""),
        (64, "(CN=db) is not for web, but for db, 10.0.0.1", ""),
        (
            3,
            "(CN=db) may be revoked: --crl has no list of CN=ca, or of an authority "
            "above it",
            "",
        ),
        (12, "(CN=db) may be revoked: a list in --crl is out of date", ""),
        (11, "(CN=db) may be revoked: a list in --crl is not valid yet", ""),
        (7, "(CN=db) is not valid: bad\\x0asignature", ""),
    ],
)
def test_why(code, reason, hint):
    assert told(code, message="bad\nsignature") == (reason, hint)


def test_a_name_that_stands_only_in_the_subject():
    assert told(62, replace(SHOWN, names=())) == (
        "(CN=db) is not for web, but for nobody", "it has no alternative names",
    )  # fmt: skip


def test_when():
    over = replace(SHOWN, end_ns=NOW - DAY)
    assert told(10, over) == (
        "(CN=db) has expired: it was valid until 2023-11-13T22:13:20Z", "",
    )  # fmt: skip
    early = replace(SHOWN, begin_ns=NOW + DAY)
    assert told(9, early) == (
        "(CN=db) is not valid before 2023-11-15T22:13:20Z", "is a clock wrong?",
    )  # fmt: skip
    # What it shows is valid: then it is not the one that is not.
    for code, what in ((10, "has expired"), (9, "is not valid yet")):
        assert told(code) == (
            f"the authority of the certificate of web (CN=db), CN=ca, {what}", "",
        )  # fmt: skip


@pytest.mark.parametrize("code", [2, 3, 9, 10, 11, 12, 18, 20, 23, 26, 62, 7])
def test_what_could_not_be_seen_is_not_made_up(code):
    reason, _ = told(code, None, "so")
    assert "None" not in reason
    assert "CN=" not in reason


async def test_it_is_asked_once_more_and_told_nothing(tmp_path):
    pair = Authority(tmp_path).server("db", made=EXPIRED)
    expected = await asyncio.to_thread(Certificate.read, pair.cert)
    async with serving(answer("200 OK"), context=tls(pair)) as server:
        assert await presented(parse_target(server.url)) == expected
    assert server.requests == server.health == []


async def test_what_cannot_be_asked_again(tmp_path, monkeypatch):
    target = parse_target(f"https://127.0.0.1:{refusing_port()}")
    assert await presented(target) is None
    monkeypatch.setattr("ddump_merger.distrust._PATIENCE_SECONDS", 0.1)
    left = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        while await reader.read(65536):
            pass
        writer.close()
        left.set()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, asyncio.timeout(5):
        assert await presented(parse_target(f"https://127.0.0.1:{port}")) is None
        await left.wait()
