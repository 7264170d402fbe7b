"""Files that hold secrets, and who else could use them."""

from __future__ import annotations

import os

import pytest

from ddump_common.errors import UsageError
from ddump_worker.private import check_unread_by_others, read_private


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_the_owner_alone_is_read(file, mode):
    file.chmod(mode)
    assert read_private(file, max_bytes=10) == b"0123456789"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_one_that_others_can_use_is_refused(file, mode):
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"open to others: its mode is 0{mode:o}") as e:
        read_private(file, max_bytes=10)
    assert e.value.hint == f"chmod 600 {file}"


def test_one_of_another_user_is_refused(file):
    os.chown(file, 1, -1)
    with pytest.raises(UsageError, match="belongs to the user 1"):
        read_private(file, max_bytes=10)


def test_a_link_to_such_a_file_is_read(file, tmp_path):
    # That is how secrets are mounted into containers.
    (tmp_path / "link").symlink_to(file)
    assert read_private(tmp_path / "link", max_bytes=10) == b"0123456789"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UsageError, match="is not a regular file"):
            read_private(path, max_bytes=10)
    with pytest.raises(UsageError, match="Is a directory"):
        read_private(tmp_path, max_bytes=10)


def test_what_is_not_there_or_too_long_is_refused(file, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*gone: No such file"):
        read_private(tmp_path / "gone", max_bytes=10)
    with pytest.raises(UsageError, match="longer than 9 bytes"):
        read_private(file, max_bytes=9)


def test_a_key_may_be_of_a_group_but_not_of_everybody(file, tmp_path):
    file.chmod(0o640)
    check_unread_by_others(file)
    for mode in (0o604, 0o602, 0o644):
        file.chmod(mode)
        with pytest.raises(UsageError, match="everybody on this host") as caught:
            check_unread_by_others(file)
        assert caught.value.hint == f"chmod o-rwx {file}"
    with pytest.raises(UsageError, match=r"cannot read .*gone"):
        check_unread_by_others(tmp_path / "gone")
