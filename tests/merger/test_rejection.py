"""What is said where a certificate of ours is not taken."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ddump_merger.certificate import Certificate
from ddump_merger.rejection import told_rejection
from support.certificates import EARLY, EXPIRED, Authority, self_signed
from support.commands import run
from support.servers import answer, serving, tls

NGINX = Path(__file__).parents[2] / "nginx/ddump.conf"
DAY = 86400 * 10**9
NOW = time.time_ns()
OWN = Certificate(
    subject="CN=mallory",
    issuer="CN=other",
    names=(),
    begin_ns=NOW - DAY,
    end_ns=NOW + DAY,
)
UNKNOWN = "it does not know its authority, CN=other"


def told(why, own=OWN):
    beginning, _, reason = told_rejection(why, own).partition(": ")
    assert beginning == "it does not take my certificate (CN=mallory)"
    return reason


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("unknown ca", UNKNOWN),
        ("unable to verify the first certificate", UNKNOWN),
        ("unable to get local issuer certificate", UNKNOWN),
        ("self-signed certificate", UNKNOWN),
        ("unable to get certificate CRL", f"{UNKNOWN}, or what that has revoked"),
        ("certificate revoked", "it is revoked, or its authority is"),
        ("unsupported certificate", "it is not one for a client"),
        ("unsuitable certificate purpose", "it is not one for a client"),
        ("CRL has expired", "it may be revoked: the list there is out of date"),
        ("bad certificate", "for a reason that its log tells"),
        ("certificate unknown", "for a reason that its log tells"),
        ("decrypt error", "for a reason that its log tells"),
        ("path length\nconstraint exceeded", "path length\\x0aconstraint exceeded"),
        ("certificate has expired", "it has expired there, or its authority has"),
        (
            "certificate expired",
            "it has expired there, or its authority has, or its list of revocations",
        ),
    ],
)
def test_why(why, reason):
    assert told(why) == reason


@pytest.mark.parametrize("why", ["certificate expired", "certificate has expired"])
def test_when_it_was_valid(why):
    over = replace(OWN, end_ns=0)
    assert told(why, over) == "it has expired, it was valid until 1970-01-01T00:00:00Z"


@pytest.mark.parametrize("why", ["bad certificate", "certificate is not yet valid"])
def test_when_it_will_be(why):
    early = replace(OWN, begin_ns=4_000_000_000 * 10**9)
    assert told(why, early) == "it is not valid before 2096-10-02T07:06:40Z"


def test_the_words_are_those_of_openssl(tmp_path):
    """Where another version has others, they have to be added."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    revoked = authority.client("a")
    authority.revoke(revoked)
    for pair, options, known in (
        (other.client("a"), (), UNKNOWN),
        (self_signed(tmp_path, "a"), (), UNKNOWN),
        (authority.client("a", made=EXPIRED), (), "it has expired"),
        (authority.client("a", made=EARLY), (), "it is not valid before"),
        (revoked, ("-crl_check", "-CRLfile", authority.crl), "it is revoked"),
        (authority.client("a"), ("-crl_check", "-CRLfile", other.crl), UNKNOWN),
        (authority.server("a"), (), "it is not one for a client"),
    ):
        words = [
            "-purpose",
            "sslclient",
            "-CAfile",
            authority.cert,
            *options,
            pair.cert,
        ]
        done = subprocess.run(
            ["openssl", "verify", *words], capture_output=True, text=True, check=False
        )
        why = done.stderr.partition("depth lookup: ")[2].partition("\n")[0]
        assert told(why).startswith(known), done.stderr


# --- What nginx in front of a worker answers ---


async def refused(tmp_path, problem, *, shows=True):
    authority = Authority(tmp_path)
    context = tls(authority.server("127.0.0.1"))
    pair = authority.client("mallory")
    words = ["--cert", pair.cert, "--key", pair.key] if shows else []
    script = answer(
        "403 Forbidden", json.dumps(problem).encode(),
        content_type="application/problem+json",
    )  # fmt: skip
    async with serving(script, context=context) as server:
        result = await run("-q", "--ca", authority.cert, *words, server.url)
    assert result.code == 3
    assert result.err.count("\n") == 1
    return result.err.removeprefix("ddump: 127.0.0.1: ").rstrip("\n")


@pytest.mark.process
async def test_nginx_says_which_certificate_by_us(tmp_path):
    title = "The client certificate is not accepted"
    assert (
        f'"title":"{title}","status":403,"detail":"$ddump_doubt"' in NGINX.read_text()
    )
    problem = {
        "title": title, "status": 403, "hint": "ask for a new one",
        "detail": "unable to verify the first certificate",
    }  # fmt: skip
    assert await refused(tmp_path, problem) == (
        "403: it does not take my certificate (CN=mallory): it does not know its "
        "authority, CN=authority (ask for a new one)"
    )
    # Who says so to somebody who has shown none is shown as it is.
    assert await refused(tmp_path, problem, shows=False) == (
        f"403: {title}: unable to verify the first certificate (ask for a new one)"
    )
    problem["title"] = "The rules do not let you"
    assert "CN=mallory" not in await refused(tmp_path, problem)
