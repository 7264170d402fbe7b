"""Addresses to listen on, who may listen openly, and what sockets leave behind."""

from __future__ import annotations

import grp
import ipaddress
import os
import socket
import stat
from pathlib import Path

import pytest

from ddump_common.errors import UsageError
from ddump_worker.listen import (
    Listener,
    TcpAddress,
    UnixAddress,
    check_access,
    parse_address,
    parse_user,
)


class TestParseAddress:
    @pytest.mark.parametrize(
        ("text", "host", "port", "shown"),
        [
            ("127.0.0.1:8475", "127.0.0.1", 8475, "http://127.0.0.1:8475"),
            ("10.0.0.1:0", "10.0.0.1", 0, "http://10.0.0.1:0"),
            ("[::1]:65535", "::1", 65535, "http://[::1]:65535"),
            ("[::]:1", "::", 1, "http://[::]:1"),
        ],
    )
    def test_tcp(self, text, host, port, shown):
        address = parse_address(text)
        assert address == TcpAddress(host=ipaddress.ip_address(host), port=port)
        assert str(address) == shown
        assert address.url(tls=True) == shown.replace("http://", "https://")

    def test_unix(self):
        address = parse_address("unix:/run/x.sock")
        assert address == UnixAddress(path=Path("/run/x.sock"))
        assert str(address) == address.url(tls=True) == "unix:/run/x.sock"

    def test_a_relative_path_is_that_of_now(self):
        assert parse_address("unix:x.sock").path == Path.cwd() / "x.sock"

    @pytest.mark.parametrize(
        "text",
        ["", "8475", ":8475", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:80",
         "127.0.0.1:-1", "127.0.0.1:0x50", "[127.0.0.1]:80", "host:80", "[::1:80",
         "1.2.3.4.5:80", "[::g]:80", "http://127.0.0.1:80", "127.0.0.1:80 ",
         "127.0.0.1:٣"],
    )  # fmt: skip
    def test_what_is_no_address_is_refused(self, text):
        with pytest.raises(UsageError, match="is not an address") as caught:
            parse_address(text)
        assert "unix:" in caught.value.hint

    @pytest.mark.parametrize("text", ["unix:", "unix:a\0b"])
    def test_what_is_no_path_is_refused(self, text):
        with pytest.raises(UsageError, match="names no path"):
            parse_address(text)


class TestCheckAccess:
    @pytest.mark.parametrize(
        ("addresses", "given", "words"),
        [
            (["127.0.0.1:1"], "", "can read this host's traffic"),
            (
                ["127.0.0.1:1"],
                "tls",
                "reaches https://127.0.0.1:1 can read this host's",
            ),
            (["127.0.0.1:1"], "plaintext", "reaches http://127.0.0.1:1 can read"),
            (["127.0.0.1:1"], "anonymous", None),
            (["[::1]:1"], "anonymous", None),
            (["127.0.0.1:1"], "identified", None),
            (["127.0.0.1:1"], "identified tls", None),
            (["10.0.0.1:1"], "anonymous", "not encrypted"),
            (["10.0.0.1:1"], "identified", "not encrypted"),
            (["0.0.0.0:1"], "anonymous", "not encrypted"),
            (["[::]:1"], "anonymous", "not encrypted"),
            (["10.0.0.1:1"], "tls", "can read this host's traffic"),
            (["10.0.0.1:1"], "plaintext", "can read this host's traffic"),
            (["10.0.0.1:1"], "anonymous plaintext", None),
            (["10.0.0.1:1"], "identified plaintext", None),
            (["10.0.0.1:1"], "identified tls", None),
            (["10.0.0.1:1"], "anonymous tls", None),
            (["unix:/x"], "", None),
            (["unix:/x", "127.0.0.1:1"], "", "can read this host's"),
            (["127.0.0.1:1", "10.0.0.1:1"], "anonymous", "http://10.0.0.1:1"),
        ],
    )
    def test_openness_needs_words(self, addresses, given, words):
        parsed = [parse_address(text) for text in addresses]
        options = {
            "tls": "tls" in given,
            "identified": "identified" in given,
            "allow_anonymous": "anonymous" in given,
            "allow_plaintext": "plaintext" in given,
        }
        if words is None:
            check_access(parsed, **options)
        else:
            with pytest.raises(UsageError, match=words) as caught:
                check_access(parsed, **options)
            for hint in ("--allow-", "--tls-cert", "unix:PATH"):
                assert hint in caught.value.hint


class TestParseUser:
    def test_a_name_or_a_number(self):
        assert parse_user("root") == 0
        assert parse_user("nobody") == 65534
        assert parse_user("1234567") == 1234567

    @pytest.mark.parametrize(
        "text", ["", "nosuchuser", "-1", "0x0", "1.5", "a\0b", "٣", "99999999999"]
    )
    def test_what_is_no_user_is_refused(self, text):
        with pytest.raises(UsageError, match="there is no user"):
            parse_user(text)


class TestTcpListener:
    @pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
    def test_it_takes_connections_and_says_its_port(self, text):
        listener = Listener(parse_address(text))
        port = listener.socket.getsockname()[1]
        assert listener.address.port == port != 0
        with socket.create_connection((str(listener.address.host), port)):
            pass
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(listener.address.host), port))

    def test_what_is_accepted_finds_out_that_its_peer_is_gone(self):
        listener = Listener(parse_address("127.0.0.1:0"))
        listener.socket.setblocking(True)
        with socket.create_connection(listener.socket.getsockname()):
            accepted, _ = listener.socket.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                for option, value in (
                    (socket.TCP_KEEPIDLE, 10),
                    (socket.TCP_KEEPINTVL, 5),
                    (socket.TCP_KEEPCNT, 4),
                    # This would cut a living client that pauses.
                    (socket.TCP_USER_TIMEOUT, 0),
                ):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, option) == value
        listener.close()

    def test_all_of_ipv6_is_not_all_of_ipv4(self):
        listener = Listener(parse_address("[::]:0"))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.address.port))
        listener.close()

    def test_a_port_that_is_taken_is_refused_by_name(self):
        first = Listener(parse_address("127.0.0.1:0"))
        with pytest.raises(
            UsageError, match=f"cannot listen on {first.address}: .*use"
        ):
            Listener(first.address)
        first.close()


def test_a_path_that_is_too_long_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UsageError, match="too long"):
        Listener(UnixAddress(path=tmp_path / ("x" * 120)))


class TestUnixListener:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "worker.sock"

    def test_it_takes_connections_of_its_group(self, path):
        before = os.umask(0)
        try:
            listener = Listener(UnixAddress(path=path), group=grp.getgrgid(1).gr_name)
            assert os.umask(0) == 0  # given back as it was
        finally:
            os.umask(before)
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert status.st_gid == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.close()
        assert not path.exists()

    def test_a_group_that_does_not_exist_is_refused(self, path):
        with pytest.raises(UsageError, match="no group 'nosuchgroup'"):
            Listener(UnixAddress(path=path), group="nosuchgroup")
        assert not path.exists()

    def test_the_socket_of_a_dead_process_is_replaced(self, path):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        listener = Listener(UnixAddress(path=path))
        listener.close()
        assert not path.exists()

    def test_the_socket_of_a_living_process_is_left_alone(self, path):
        listener = Listener(UnixAddress(path=path))
        with pytest.raises(UsageError, match="another process listens"):
            Listener(UnixAddress(path=path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.close()

    @pytest.mark.parametrize("kind", ["file", "link", "folder"])
    def test_what_is_no_socket_is_left_alone(self, path, kind):
        if kind == "file":
            path.write_text("precious")
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        else:
            path.mkdir()
        with pytest.raises(UsageError, match="is there and is not a socket"):
            Listener(UnixAddress(path=path))
        assert path.is_symlink() or path.exists()

    def test_a_file_that_has_taken_its_place_stays(self, path):
        listener = Listener(UnixAddress(path=path))
        path.unlink()
        path.write_text("another's")
        listener.close()
        assert path.read_text() == "another's"

    def test_a_file_that_is_gone_is_no_error(self, path):
        listener = Listener(UnixAddress(path=path))
        path.unlink()
        listener.close()

    def test_a_file_that_cannot_be_removed_is_logged(self, path, monkeypatch, caplog):
        listener = Listener(UnixAddress(path=path))

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refuse)
            listener.close()
        assert f"cannot remove {path}: Permission denied" in caplog.text

    @pytest.mark.parametrize("name", ["no/such/folder.sock", "x" * 200])
    def test_a_path_that_cannot_be_is_refused(self, tmp_path, name):
        with pytest.raises(UsageError, match="cannot listen on unix:"):
            Listener(UnixAddress(path=tmp_path / name))
