from __future__ import annotations

import base64
import os

import pytest

from ddump_common.errors import UsageError
from ddump_merger.credentials import Authorization, Keyring


def decoded(authorization):
    kind, _, value = authorization.header.partition(" ")
    assert kind == "Basic"
    return base64.b64decode(value).decode()


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.delenv("DDUMP_PASSWORD", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def secret(tmp_path):
    def write(text, mode=0o600, name="secret"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    return write


def test_nothing_given_is_nothing_sent():
    assert Keyring.open().authorization("web1") is None


def test_the_url_comes_first(monkeypatch, secret):
    monkeypatch.setenv("DDUMP_PASSWORD", "other")
    keyring = Keyring.open(user="bob", token_file=secret("token"))
    assert decoded(keyring.authorization("h", "alice", "pässword")) == "alice:pässword"
    assert decoded(keyring.authorization("h", "alice", "")) == "alice:"


def test_the_user_comes_before_the_token(monkeypatch, secret):
    monkeypatch.setenv("DDUMP_PASSWORD", "other")
    keyring = Keyring.open(user="bob", token_file=secret("token"))
    assert decoded(keyring.authorization("h")) == "bob:other"


def test_the_token_comes_before_netrc(monkeypatch, secret):
    monkeypatch.setenv("NETRC", str(secret("machine h login a password b", name="rc")))
    keyring = Keyring.open(token_file=secret("abc.def\nmore\n"))
    assert keyring.authorization("h").header == "Bearer abc.def"


def test_a_user_in_the_url_gets_the_password_that_was_given(monkeypatch):
    monkeypatch.setenv("DDUMP_PASSWORD", "pw")
    assert decoded(Keyring.open().authorization("h", "alice")) == "alice:pw"


def test_a_password_file_beats_the_environment(monkeypatch, secret):
    monkeypatch.setenv("DDUMP_PASSWORD", "pw")
    keyring = Keyring.open(user="bob", password_file=secret("from file\r\n"))
    assert decoded(keyring.authorization("h")) == "bob:from file"


@pytest.mark.parametrize("home", [True, False])
def test_netrc(monkeypatch, secret, tmp_path, home):
    text = "machine h login alice password one\nmachine i login bob password two\n"
    if home:
        secret(text, name="home/.netrc")
    else:
        monkeypatch.setenv("NETRC", str(secret(text)))
    keyring = Keyring.open()
    assert decoded(keyring.authorization("h")) == "alice:one"
    assert decoded(keyring.authorization("h", "alice")) == "alice:one"
    assert decoded(Keyring.open(user="bob").authorization("i")) == "bob:two"
    assert keyring.authorization("other") is None
    with pytest.raises(UsageError, match="no password for the user 'bob'"):
        keyring.authorization("h", "bob")


def test_the_default_of_netrc(monkeypatch, secret):
    monkeypatch.setenv("NETRC", str(secret("default login alice password one")))
    assert decoded(Keyring.open().authorization("anything")) == "alice:one"


def test_a_user_without_a_password():
    with pytest.raises(UsageError, match="no password for the user 'bob'"):
        Keyring.open(user="bob").authorization("h")


def test_a_password_behind_a_user_is_not_quoted():
    with pytest.raises(UsageError, match="cannot hold a colon") as caught:
        Keyring.open(user="bob:topsecret").authorization("h")
    assert "topsecret" not in str(caught.value)
    assert "DDUMP_PASSWORD" in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
@pytest.mark.parametrize("option", ["password_file", "token_file"])
def test_a_file_that_others_can_use(secret, mode, option):
    path = secret("topsecret", mode)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        Keyring.open(**{option: path})
    assert "chmod 600" in caught.value.hint
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("option", ["password_file", "token_file"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("\nx", "an empty line"),
        (b"\xff", "not text in UTF-8"),
        ("x" * 70_000, "too long for a secret"),
    ],
)
def test_a_file_that_holds_no_secret(secret, option, content, complaint):
    with pytest.raises(UsageError, match=complaint):
        Keyring.open(**{option: secret(content)})


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none: No such file"):
        Keyring.open(token_file=tmp_path / "none")
    with pytest.raises(UsageError, match="Is a directory"):
        Keyring.open(token_file=tmp_path)


def test_a_pipe_is_private(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"fromapipe\n")
    os.close(writer)
    try:
        keyring = Keyring.open(token_file=tmp_path / f"/dev/fd/{reader}")
    finally:
        os.close(reader)
    assert keyring.authorization("h").header == "Bearer fromapipe"


def test_netrc_that_others_can_read_is_not_used(monkeypatch, secret):
    path = secret("machine h login alice password topsecret", 0o644)
    monkeypatch.setenv("NETRC", str(path))
    keyring = Keyring.open()
    assert keyring.authorization("other") is None
    with pytest.raises(UsageError, match="can be read by others") as caught:
        keyring.authorization("h")
    assert "topsecret" not in str(caught.value)


def test_netrc_that_is_none_is_named_and_not_quoted(monkeypatch, secret):
    monkeypatch.setenv("NETRC", str(secret("machine h\nlogin\ntopsecret huh\n")))
    with pytest.raises(UsageError, match=r"line .*: not netrc") as caught:
        Keyring.open().authorization("h")
    error = caught.value
    assert "topsecret" not in f"{error}{error.__cause__}"


def test_netrc_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot read"):
        Keyring.open().authorization("h")


def test_netrc_in_another_encoding(monkeypatch, secret):
    monkeypatch.setenv("NETRC", str(secret(b"machine h login \xff password \xfe")))
    with pytest.raises(UsageError, match="not text in UTF-8"):
        Keyring.open().authorization("h")


def test_nobody_is_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "x" * 5000)  # no path can be as long
    assert Keyring.open().authorization("h") is None
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # not in passwd
    assert Keyring.open().authorization("h") is None


def test_what_no_header_can_carry():
    with pytest.raises(UsageError, match="cannot hold a colon"):
        Authorization.basic("a:b", "c")
    for token in ("a b", "a\tb", "ä", "a\r\nX: y"):
        with pytest.raises(UsageError, match="printable ASCII") as caught:
            Authorization.bearer(token)
        assert token not in str(caught.value)


def test_nothing_shows_a_secret(monkeypatch, secret):
    monkeypatch.setenv("DDUMP_PASSWORD", "topsecret")
    keyring = Keyring.open(user="bob", token_file=secret("verysecret"))
    shown = f"{keyring} {keyring!r} {keyring.authorization('h')!r}"
    assert "secret" not in shown.replace("token", "")
    assert "Basic" not in shown
