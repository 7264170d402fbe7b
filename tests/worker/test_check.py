"""``--check``: what is wrong with what a worker is told, and nothing is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from ddump_common.api import Link
from ddump_common.errors import UsageError
from ddump_worker.directory import Directory
from support.certificates import Authority
from support.workers import PYTHON

pytestmark = pytest.mark.process

_NO_RAW = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")


async def _check(*options, prefix=()):
    process = await asyncio.create_subprocess_exec(
        *prefix, PYTHON, "-m", "ddump_worker", "--check", *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "DDUMP_WORKER_CHECK": "0"},
    )  # fmt: skip
    async with asyncio.timeout(15):
        output, said = await process.communicate()
    return process.returncode, output.decode(), said.decode()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with all files that a worker reads."""
    Authority(tmp_path)
    (tmp_path / "tokens").write_text("backup:0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    return tmp_path


def _config(folder, *lines):
    pair = Authority(folder, "again").server("web1")
    file = folder / "worker.toml"
    file.write_text(
        "\n".join(
            [
                f'tls-cert = "{pair.cert}"\ntls-key = "{pair.key}"',
                f'tls-client-ca = "{folder}/authority.pem"',
                f'tls-crl = "{folder}/authority.crl.pem"',
                f'token-file = "{folder}/tokens"\nring-dir = "{folder}/ring"',
                *lines,
                '[[access]]\nidentity = ["token:*"]\nallow = ["stream", "window"]',
                'filter = "not port 22"',
            ]
        )
    )
    return "--config", str(file)


async def test_all_is_right_and_nothing_was_done(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        options = _config(
            folder,
            f'listen = ["{address}", "[::1]:1", "unix:/nosuch/socket"]\n'
            'exclude = ["arp"]\npromiscuous = ["lo"]\nring-interface = ["lo"]',
        )
        # Nor could it: it may not capture, and the address is taken.
        code, output, said = await _check(*options, prefix=_NO_RAW)
    assert (code, output, said) == (0, "ok\n", "")
    assert not (folder / "ring").exists()


async def _held(path):
    return await asyncio.to_thread(Directory, path, link=Link.SLL, snaplen=96)


async def test_a_ring_that_is_recorded_is_no_fault(folder):
    ring = folder / "ring"
    with contextlib.closing(await _held(ring)):
        before = sorted(ring.iterdir())
        code, output, _ = await _check(*_config(folder))
        assert (code, output) == (0, "ok\n")
        assert sorted(ring.iterdir()) == before


async def test_a_ring_directory_that_cannot_be_used_is_refused_as_at_the_start(folder):
    (folder / "file").touch()
    read_only = folder / "ro"
    read_only.mkdir()
    for path, why in {
        folder / "file": "Not a directory",
        folder / "file/ring": "Not a directory",
        Path("/proc/nope"): "No such file or directory",
        read_only: "Read-only file system",
        read_only / "ring/below": "Read-only file system",
    }.items():
        ring = ("--ring-dir", str(path), *_config(folder))
        prefix = ("unshare", "--mount", "sh", "-ec",
                  f"mount -t tmpfs -o ro tmpfs {read_only}; exec \"$@\"", "sh")  # fmt: skip
        code, output, said = await _check(*ring, prefix=prefix)
        assert (code, output) == (2, "")
        assert f"cannot use the ring directory {path}: {why} (--ring-dir" in said
        assert said.count("\n") == 1
    with pytest.raises(UsageError, match=r"directory /proc/nope: No such file"):
        await _held(Path("/proc/nope"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("nonsense = 1", "nonsense"),
        ('exclude = ["arp", "foo bar"]', "--exclude 'foo bar'"),
        ('ring-filter = "foo bar"', "--ring-filter 'foo bar'"),
        ('listen-group = "nosuch"\nlisten = ["unix:/nosuch/socket"]',
         "there is no group 'nosuch'"),
        ('promiscuous = ["nosuch0"]',
         "the interface 'nosuch0' cannot be made promiscuous: no interface"),
        ('ring-interface = ["nosuch0"]', "--ring-interface 'nosuch0' is not an"),
        ('listen = ["127.0.0.1:0", "192.0.2.7:0"]',
         "cannot listen on http://192.0.2.7:0: Cannot assign requested address"),
        ('listen = ["[2001:db8::7]:0"]',
         "cannot listen on http://[2001:db8::7]:0: Cannot assign"),
        ('[[access]]\nidentity = ["user:a"]\nallow = ["stream"]\nfilter = "ip and"',
         "access table 1: filter 'ip and'"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_with_2(folder, lines, words):
    code, output, said = await _check(*_config(folder, lines))
    assert (code, output) == (2, "")
    assert words in said
    assert said.count("\n") == 1


async def test_so_is_what_is_wrong_with_a_file(folder):
    options = _config(folder)
    (folder / "tokens").chmod(0o644)
    code, output, said = await _check(*options)
    assert (code, output) == (2, "")
    assert f"{folder}/tokens is open to others" in said
