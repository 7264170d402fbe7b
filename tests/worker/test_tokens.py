"""Bearer tokens: which lines are taken, and that no token is shown."""

from __future__ import annotations

import pytest

from ddump_common.errors import UsageError
from ddump_worker.tokens import Tokens, digest

# Such as a generator would make; the tests' names are made of them, too.
TOKEN = "5ome-T0ken_" + "t" * 21
OTHER = "An0ther-0ne_" + "o" * 20


def test_each_token_names_who_shows_it():
    tokens = Tokens.parse(
        f"# who may\n\nbackup:{TOKEN}\r\n  a.b_c@d-1:{OTHER}:x  \n".encode()
    )
    assert tokens.name_of(digest(TOKEN.encode())) == "backup"
    assert tokens.name_of(digest(f"{OTHER}:x".encode())) == "a.b_c@d-1"
    for wrong in ("", TOKEN[:-1], f"{TOKEN}x", f"backup:{TOKEN}"):
        assert tokens.name_of(digest(wrong.encode())) is None


def test_a_name_holds_as_long_as_its_token_is_the_same():
    tokens = Tokens.parse(f"backup:{TOKEN}\n".encode())
    assert tokens.holds("backup", digest(TOKEN.encode()))
    assert not tokens.holds("backup", digest(OTHER.encode()))
    assert not tokens.holds("other", digest(TOKEN.encode()))


def test_a_file_may_hold_none():
    assert Tokens.parse(b"# all are gone\n") == Tokens()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (f"{TOKEN}", "line 1 is not NAME:TOKEN"),
        (f"{TOKEN}:backup", "line 1 is not NAME:TOKEN"),
        (f"{TOKEN}:{OTHER}\n{TOKEN}:{'x' * 16}", "line 2: the name is there already"),
        (f":{TOKEN}", "line 1 is not NAME:TOKEN"),
        (f"a b:{TOKEN}", "line 1 is not NAME:TOKEN"),
        (f"{'n' * 65}:{TOKEN}", "line 1 is not NAME:TOKEN"),
        (f"ä:{TOKEN}", "line 1 is not NAME:TOKEN"),
        ("\nbackup:", "line 2 is not NAME:TOKEN"),
        ("backup:123456789012345", "line 1 is not NAME:TOKEN"),
        (f"backup:{TOKEN} {TOKEN}", "line 1 is not NAME:TOKEN"),
        (f"backup:{'ü' * 20}", "line 1 is not NAME:TOKEN"),
        (f"backup:{'x' * 1025}", "line 1 is not NAME:TOKEN"),
        (f"backup:{TOKEN}\nbackup:{OTHER}", "line 2: the name is there already"),
        (f"backup:{TOKEN}\nother:{TOKEN}", "line 2: the token is there already"),
    ],
)
def test_a_line_that_is_something_else_is_named_without_its_token(
    tmp_path, lines, words
):
    path = tmp_path / "tokens"
    path.touch(0o600)
    path.write_text(lines)
    with pytest.raises(UsageError, match=words) as caught:
        Tokens.read(path)
    assert str(path) in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert OTHER not in str(caught.value)


def test_a_file_is_read_that_nobody_else_can_read(tmp_path):
    path = tmp_path / "tokens"
    path.touch(0o600)
    path.write_text(f"backup:{TOKEN}\n")
    assert Tokens.read(path).holds("backup", digest(TOKEN.encode()))
    path.chmod(0o640)
    with pytest.raises(UsageError, match="open to others"):
        Tokens.read(path)
    path.chmod(0o600)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="is longer than"):
        Tokens.read(path)


def test_nothing_shows_a_token_or_its_digest():
    shown = repr(Tokens.parse(f"backup:{TOKEN}\n".encode()))
    assert TOKEN not in shown
    assert digest(TOKEN.encode()).hex() not in shown
    assert repr(digest(TOKEN.encode())) not in shown
