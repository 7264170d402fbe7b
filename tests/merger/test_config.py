from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ddump_common.errors import UsageError
from ddump_merger.config import ClockMode, Config, TlsFiles
from ddump_merger.target import FileTarget, HttpTarget, parse_target
from support.certificates import Authority


def targets(*words):
    return tuple(map(parse_target, words))


def test_targets_by_kind():
    config = Config(targets=targets("a", "http://b", "-"))
    assert [type(each) for each in config.targets] == [
        FileTarget,
        HttpTarget,
        FileTarget,
    ]
    assert [each.name for each in config.http_targets] == ["b"]
    assert [each.name for each in config.file_targets] == ["a", "-"]


def test_defaults():
    config = Config(targets=targets("a"))
    assert config.hold_ns == 1_000_000_000
    assert config.disorder_ns == 50_000_000
    assert config.buffer_bytes == 64 << 20
    assert config.timeout_ns == 30_000_000_000
    assert config.connect_timeout_ns == 10_000_000_000


@pytest.mark.parametrize(
    ("words", "fields", "complaint"),
    [
        ([], {}, "no target"),
        (["-", "a", "-"], {}, "standard input can be only one"),
        (["a"], {"duration_ns": 1}, "--duration is for workers"),
        (["a"], {"clock": ClockMode.CORRECT}, "--clock is for workers"),
        (["a"], {"report": Path("-")}, "standard output is for packets"),
    ],
)
def test_what_cannot_be(words, fields, complaint):
    with pytest.raises(UsageError, match=complaint):
        Config(targets=targets(*words), **fields)


def test_tls_only_when_something_asks_for_it(tmp_path):
    files = TlsFiles()
    assert files.trust(targets("http://a")) is None
    trust = files.trust(targets("http://a", "https://b"))
    assert trust.context.verify_mode is ssl.CERT_REQUIRED
    assert trust.own is None
    authority = Authority(tmp_path)
    assert TlsFiles(ca=authority.cert).trust(targets("http://a")) is not None
    assert TlsFiles(crl=authority.crl).trust(targets("http://a")) is not None
    with pytest.raises(UsageError, match="cannot use the authorities"):
        TlsFiles(ca=tmp_path / "none").trust([])


def test_what_is_shown_to_workers(tmp_path):
    pair = Authority(tmp_path).client("alice")
    trust = TlsFiles(cert=pair.cert, key=pair.key).trust([])
    assert trust.own.subject == "CN=alice"


def test_nothing_is_verified(tmp_path):
    trust = TlsFiles(insecure=True).trust(targets("https://a"))
    assert trust.context.verify_mode is ssl.CERT_NONE
    with pytest.raises(UsageError, match="--insecure verifies nothing"):
        TlsFiles(insecure=True, ca=Authority(tmp_path).cert).trust([])
