"""What may be configured, and what a file may say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from ddump_common.errors import UsageError
from ddump_worker import config
from ddump_worker.config import Config, read_file
from ddump_worker.listen import parse_address
from ddump_worker.share import Share

LOOPBACK = (parse_address("127.0.0.1:0"),)


def made(**options) -> Config:
    return Config(**{"listen": LOOPBACK, "allow_anonymous": True, **options})


def test_the_defaults_are_valid():
    config_ = made()
    assert config_.buffer_size == 32 << 20
    assert config_.capture_memory == 256 << 20
    assert (config_.max_streams, config_.max_connections) == (8, 2048)


def test_the_defaults_of_the_ring():
    config_ = made()
    assert config_.ring_dir is None
    assert (config_.ring_size, config_.segment_size) == (2 * 10**9, 64 * 10**6)
    assert (str(config_.ring_reserve), str(config_.ring_pinned)) == ("1GB,5%", "20%")
    assert (config_.ring_link, config_.ring_snaplen) == ("sll", 262144)
    assert (config_.ring_buffer_size, config_.max_windows) == (32 << 20, 64)


def test_the_ring_gets_what_was_said():
    options = made(
        ring_size=10**9, ring_pinned=Share(percent=10), ring_reserve=Share(percent=7.5)
    ).ring_options(Path("there"))
    assert (options.directory, options.size) == (Path("there"), 10**9)
    assert options.reserve == Share(percent=7.5)
    assert options.pinned.of(options.size) == 10**8


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().max_streams = 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen": ()}, "listen names no address"),
        ({"exclude": ("udp", " ")}, "empty --exclude"),
        ({"allow_anonymous": False}, "can read this host's traffic"),
        ({"listen": (parse_address("10.0.0.1:0"),)}, "not encrypted"),
        ({"buffer_size": (1 << 20) - 1}, "a buffer of"),
        ({"buffer_size": 1 << 31}, "a buffer of"),
        ({"buffer_size": 2 << 20, "capture_memory": 1 << 20}, "less than one buffer"),
        ({"ring_buffer_size": 1}, "a buffer of 1B .*--ring-buffer-size goes from"),
        (
            {"ring_dir": Path("x"), "segment_size": 999_999},
            "--segment-size is at least 1MB",
        ),
        (
            {"ring_dir": Path("x"), "ring_size": 127_000_000},
            "a ring of 127MB is less than 2 segments of 64MB",
        ),
        ({"ring_filter": "a\0b"}, "--ring-filter holds a NUL"),
        ({"tls_crl": Path("x")}, "--tls-crl without --tls-client-ca or --proxy-uid"),
        ({"proxy_uid": 33}, "--proxy-uid is about unix sockets"),
        ({"listen_group": "daemon"}, "--listen-group is about unix sockets"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        made(**options)


def test_the_file_has_a_key_for_each_field():
    fields = {field.name for field in dataclasses.fields(Config)}
    told = {each.name for each in msgspec.structs.fields(config._File)}
    assert told == fields - {"config_file", "config_said"}


class TestReadFile:
    def read(self, tmp_path, text):
        path = tmp_path / "worker.toml"
        path.write_text(text)
        return read_file(path)

    def test_keys_are_the_options_names(self, tmp_path):
        assert self.read(
            tmp_path,
            'listen = ["unix:/x"]\nbuffer-size = "4MiB"\nmax-streams = 3\n'
            'exclude = ["tcp port 443"]\nallow-anonymous = true\n',
        ) == {
            "listen": ["unix:/x"],
            "buffer_size": "4MiB",
            "max_streams": 3,
            "exclude": ["tcp port 443"],
            "allow_anonymous": True,
        }

    def test_an_empty_file_says_nothing(self, tmp_path):
        assert self.read(tmp_path, "") == {}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("bufer-size = 1", "bufer-size"),
            ("max_streams = 1", "max_streams"),
            ("max-streams = 'many'", "max-streams"),
            ("[listen]\na = 1", "listen"),
            ("max-streams", "worker.toml"),
            ("max-streams = 1\nmax-streams = 2", "worker.toml"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, text, words):
        with pytest.raises(UsageError, match=words):
            self.read(tmp_path, text)

    def test_bytes_that_are_no_text(self, tmp_path):
        path = tmp_path / "worker.toml"
        path.write_bytes(b"a = '\xff'")
        with pytest.raises(UsageError, match=r"worker\.toml"):
            read_file(path)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"cannot read .*No such file"):
            read_file(tmp_path / "nosuch.toml")
