"""Real workers whose rules bear on a command that runs: revoked, capped, refused."""

from __future__ import annotations

import asyncio
import re

import pytest

from support.certificates import Authority
from support.commands import run, started
from support.loopback import payloads, talker
from support.workers import wait_until, worker

pytestmark = [pytest.mark.live, pytest.mark.process]


def rules(tmp_path, text):
    """Return the options of a worker with an access table."""
    path = tmp_path / "worker.toml"
    path.write_text(f"[[access]]\nidentity = ['anonymous']\n{text}\n")
    return "--config", str(path)


async def test_a_client_that_is_revoked_ends(tmp_path):
    """It does not try again for ever, and what had come is kept."""
    authority = Authority(tmp_path)
    server, pair = authority.server("127.0.0.1"), authority.client("alice")
    out = tmp_path / "out.pcap"
    options = [
        "--tls-cert", server.cert, "--tls-key", server.key,
        "--tls-client-ca", authority.cert, "--tls-crl", authority.crl,
    ]  # fmt: skip
    with talker() as talk:
        async with (
            worker(*map(str, options), anonymous=False) as running,
            started(
                "--ca", authority.cert, "--cert", pair.cert, "--key", pair.key,
                "-v", "-w", out, "-f", talk.filter, f"web={running.url}",
            ) as process,
        ):  # fmt: skip
            assert await process.stderr.readline() == b"ddump: web: opened\n"
            sent = talk.send(10)
            await wait_until(
                lambda: out.exists() and len(payloads(out.read_bytes())) == len(sent)
            )
            authority.revoke(pair)
            await running.hang_up()
            async with asyncio.timeout(20):
                _, err = await process.communicate()
    assert process.returncode == 4, err
    assert (
        b"ddump: web: it does not take my certificate (CN=alice): it is revoked, or "
        b"its authority is\n"
    ) in err
    assert payloads(out.read_bytes()) == sent


async def test_a_cap_that_was_not_asked_for(tmp_path):
    """It is no end as asked, and going on would go around it."""
    options = rules(tmp_path, "allow = ['stream', 'status']\nmax-packets = 5")
    out = tmp_path / "out.pcap"
    with talker() as talk:
        async with (
            worker(*options) as running,
            started(
                "-v", "-w", out, "-f", talk.filter, f"web={running.url}"
            ) as process,
        ):
            assert await process.stderr.readline() == b"ddump: web: opened\n"
            sent = talk.send(10)
            async with asyncio.timeout(20):
                _, err = await process.communicate()
    assert process.returncode == 4, err
    said = "its worker ended it: a limit of its rules was reached"
    assert f"ddump: web: {said}\n".encode() in err
    assert (
        f"web: 5 packets received, 0 dropped by kernel, 0 late, truncated: {said[:19]}"
        in (err.decode())
    )
    assert payloads(out.read_bytes()) == sent[:5]


async def test_a_limit_that_was_asked_for_is_an_end_as_asked(tmp_path):
    options = rules(tmp_path, "allow = ['stream', 'status']\nmax-packets = 5")
    out = tmp_path / "out.pcap"
    with talker() as talk:
        async with (
            worker(*options) as running,
            started(
                "-v", "-w", out, "-f", talk.filter, f"web={running.url}?packets=5"
            ) as process,
        ):
            assert await process.stderr.readline() == b"ddump: web: opened\n"
            sent = talk.send(10)
            async with asyncio.timeout(20):
                _, err = await process.communicate()
    assert process.returncode == 0, err
    assert payloads(out.read_bytes()) == sent[:5]


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("allow = ['status']", [], "403: .*stream"),
        ("allow = ['stream']\nmax-duration = '1m'", ["--duration", "2m"],
         "403: .*max-duration"),
    ],
)  # fmt: skip
async def test_what_a_rule_refuses(tmp_path, text, words, said):
    async with worker(*rules(tmp_path, text)) as running:
        result = await run("-q", *words, f"web={running.url}")
    assert result.code == 3
    assert result.err.count("\n") == 1
    assert re.search(said, result.err), result.err


async def test_nobody_in_particular(tmp_path):
    """A worker that wants a token says so, and so does the command."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice:{'x' * 32}\n")
    tokens.chmod(0o600)
    shown = tmp_path / "token"
    shown.write_text("y" * 32)
    shown.chmod(0o600)
    async with worker("--token-file", str(tokens), anonymous=False) as running:
        nothing = await run("-q", f"web={running.url}")
        wrong = await run("-q", "--token-file", shown, f"web={running.url}")
        shown.write_text("x" * 32)
        right = await run(
            "-q",
            "--token-file",
            shown,
            "-c",
            "1",
            "--duration",
            "1s",
            f"web={running.url}",
        )
    for result in (nothing, wrong):
        assert result.code == 3
        assert result.err.startswith("ddump: web: 401: ")
        assert result.err.count("\n") == 1
        assert "y" * 32 not in result.err
    assert nothing.err.endswith("; see --token-file)\n")
    assert wrong.err.endswith("is the token right?)\n")
    assert right.code == 0
