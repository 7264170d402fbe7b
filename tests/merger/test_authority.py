from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ddump_common.errors import OutputError, UsageError
from ddump_common.pki import Kind
from ddump_common.units import SECONDS
from ddump_merger.authority import AuthorityFolder, told_serial
from support.disks import fill, small_disk

NOW = time.time_ns() // SECONDS * SECONDS
DAY = 86400 * SECONDS


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pki"
    AuthorityFolder.create(path, now_ns=NOW - 1000 * DAY)
    return path


def client(folder, name, *, now_ns=NOW, renew=False):
    with AuthorityFolder.open(folder, now_ns=NOW) as authority:
        return authority.client(name, now_ns=now_ns, renew=renew)


def server(folder, *names, now_ns=NOW, renew=False):
    with AuthorityFolder.open(folder, now_ns=NOW) as authority:
        return authority.server(names, now_ns=now_ns, renew=renew).place


def revoke(folder, *words, now_ns=NOW):
    with AuthorityFolder.open(folder, now_ns=NOW) as authority:
        return authority.revoke(words, now_ns=now_ns)


def issued(folder):
    with AuthorityFolder.open(folder, now_ns=NOW) as authority:
        return authority.issued()


def revoked(folder):
    signed = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    return {each.serial_number for each in signed}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_who_may_read_what(tmp_path, umask):
    path = tmp_path / "pki"
    before = os.umask(umask)
    try:
        AuthorityFolder.create(path, now_ns=NOW)
        place = client(path, "alice")
        revoke(path, "alice")
        client(path, "alice")
    finally:
        os.umask(before)
    assert mode(path) == 0o700
    assert {mode(each) for each in path.rglob("*.key")} == {0o600}
    assert mode(place.key) == 0o600
    certificates = [*path.rglob("*.pem")]
    assert len(certificates) == 5  # ca, crl, alice, and both that were issued
    assert {mode(each) for each in certificates} == {0o644 & ~umask}


def test_an_empty_folder_is_taken_and_closed(tmp_path):
    path = tmp_path / "pki"
    path.mkdir(mode=0o755)
    AuthorityFolder.create(path, now_ns=NOW)
    assert mode(path) == 0o700


def test_no_authority_is_made_over_another(folder):
    key = (folder / "ca.key").read_bytes()
    with pytest.raises(UsageError, match="is not empty"):
        AuthorityFolder.create(folder, now_ns=NOW)
    assert (folder / "ca.key").read_bytes() == key


def test_where_an_authority_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none" / "pki"):
        with pytest.raises(OutputError, match=f"^{path}: no"):
            AuthorityFolder.create(path, now_ns=NOW)


def test_the_files(folder):
    made = server(folder, "Web1", "10.0.0.1")
    assert made.certificate == folder / "servers/web1.pem"
    assert made.key == folder / "servers/web1.key"
    mine = client(folder, "alice")
    assert mine.certificate == folder / "clients/alice.pem"
    left = {str(each.relative_to(folder)) for each in folder.rglob("*.*")}
    serials = {f"issued/{told_serial(each.serial)}.pem" for each in issued(folder)}
    assert len(serials) == 2
    assert left == serials | {
        "ca.pem", "ca.key", "crl.pem", "servers/web1.pem", "servers/web1.key",
        "clients/alice.pem", "clients/alice.key",
    }  # fmt: skip


def test_one_name_one_certificate_unless_it_is_to_be_renewed(folder):
    place = client(folder, "alice")
    key = place.key.read_bytes()
    with pytest.raises(UsageError, match=r"alice has a certificate until 20.*--renew"):
        client(folder, "alice")
    assert place.key.read_bytes() == key
    assert len(issued(folder)) == 1
    client(folder, "alice", renew=True)
    assert place.key.read_bytes() != key
    assert len(issued(folder)) == 2
    server(folder, "alice")  # is another


def test_what_is_over_or_revoked_is_replaced(folder):
    client(folder, "alice", now_ns=NOW - 500 * DAY)
    client(folder, "alice")
    revoke(folder, "alice")
    client(folder, "alice")
    assert [each.name for each in issued(folder)] == 3 * ["alice"]


@pytest.mark.parametrize("before", ["held", "over", "revoked", "lost", "damaged"])
def test_a_server_is_renewed_with_all_of_its_names(folder, before):
    made_ns = NOW - DAY * (500 if before == "over" else 1)
    server(folder, "other", "10.0.0.9", now_ns=made_ns)
    server(folder, "web1", "older", now_ns=made_ns - DAY)
    place = server(
        folder, "web1", "Web1.org", "2001:db8::1", now_ns=made_ns, renew=True
    )
    match before:
        case "revoked":
            revoke(folder, "web1")
        case "lost":
            place.certificate.unlink()
        case "damaged":
            place.certificate.write_bytes(b"nonsense")
    server(folder, "web1", renew=True)
    *_, newest = issued(folder)
    assert newest.names == ("web1", "web1.org", "2001:db8::1")


def test_to_renew_what_is_new_is_to_make_it(folder):
    client(folder, "web1")
    server(folder, "web1", renew=True)
    *_, made = issued(folder)
    assert made.names == ("web1",)


@pytest.mark.parametrize("change", [client, server, revoke])
def test_an_authority_that_is_not_valid_yet_signs_nothing(tmp_path, change):
    path = tmp_path / "pki"
    AuthorityFolder.create(path, now_ns=NOW + DAY)
    before = (path / "crl.pem").read_bytes()
    with pytest.raises(UsageError, match=r"not valid before 20.*T.*Z \(is the clock"):
        change(path, "alice")
    assert (path / "crl.pem").read_bytes() == before
    assert not [*path.glob("*/*")]


@pytest.mark.parametrize("lost", ["certificate", "key"])
def test_what_is_lost_is_made_again(folder, lost):
    place = client(folder, "alice")
    getattr(place, lost).unlink()
    client(folder, "alice", renew=lost == "key")
    check_pairs(folder)
    assert len(issued(folder)) == 2  # either can be revoked


def test_revoking_a_name_revokes_all_that_hold(folder):
    client(folder, "alice", now_ns=NOW - 500 * DAY)  # over
    client(folder, "alice")
    client(folder, "alice", renew=True)
    bob = client(folder, "bob")
    names = [(each.kind, each.name) for each in revoke(folder, "alice")]
    assert names == 2 * [(Kind.CLIENT, "alice")]
    serial = x509.load_pem_x509_certificate(bob.certificate.read_bytes()).serial_number
    assert len(revoked(folder)) == 2
    assert serial not in revoked(folder)
    with pytest.raises(UsageError, match="'alice' has no certificate that holds"):
        revoke(folder, "alice")


@pytest.mark.parametrize("written", [str.lower, str.upper, "00{}".format])
def test_revoking_one_by_its_serial_number(folder, written):
    client(folder, "alice")
    client(folder, "alice", renew=True)
    old, new = issued(folder)
    revoke(folder, written(told_serial(old.serial)))
    assert revoked(folder) == {old.serial}
    with AuthorityFolder.open(folder, now_ns=NOW) as authority:
        assert not authority.holds(old, now_ns=NOW)
        assert authority.holds(new, now_ns=NOW)


def test_a_server_and_a_client_of_one_name(folder):
    client(folder, "both")
    server(folder, "both")
    with pytest.raises(UsageError, match="say clients/both or servers/both"):
        revoke(folder, "both")
    (gone,) = revoke(folder, "servers/both")
    assert gone.kind is Kind.SERVER
    (gone,) = revoke(folder, "both")
    assert gone.kind is Kind.CLIENT


def test_nothing_is_revoked_when_a_name_is_wrong(folder):
    client(folder, "alice")
    with pytest.raises(UsageError, match="'bob' is unknown"):
        revoke(folder, "alice", "bob")
    assert revoked(folder) == set()


@pytest.mark.parametrize(
    "word", ["WEB1", "servers/Web1", "web1.Example.org", "2001:DB8:0::1", "10.0.0.1"]
)
def test_a_server_is_revoked_by_any_of_its_names_however_written(folder, word):
    server(folder, "web1", "web1.example.org", "2001:db8::0001", "10.0.0.1")
    server(folder, "web2")
    client(folder, "alice")
    (gone,) = revoke(folder, word)
    assert gone.name == "web1"
    with pytest.raises(UsageError, match="has no certificate that holds"):
        revoke(folder, word)


def test_a_server_s_own_name_goes_before_those_of_others(folder):
    server(folder, "web1", "web2")
    server(folder, "web2")
    (gone,) = revoke(folder, "web2")
    assert gone.name == "web2"


def test_what_was_revoked_stays_so(folder):
    client(folder, "alice")
    revoke(folder, "alice")
    client(folder, "bob")
    revoke(folder, "bob")
    assert len(revoked(folder)) == 2


@pytest.mark.parametrize("lost", ["ca.pem", "ca.key"])
def test_a_file_that_is_missing_or_too_long(folder, lost):
    path = folder / lost
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(UsageError) as caught:
        client(folder, "alice")
    assert str(caught.value) == f"cannot read {path}: no such file or directory"
    path.touch(0o600)
    with pytest.raises(UsageError, match=f"{folder}"):
        client(folder, "alice")
    path.write_bytes(data + bytes(65536))
    with pytest.raises(UsageError, match=f"{path} is too long"):
        client(folder, "alice")
    assert not [*folder.glob("*/*")]


# --- What is revoked is recorded, and the list made of that ---


def mended(folder):
    with AuthorityFolder.open(folder, now_ns=NOW + DAY) as authority:
        return authority.mended


def others(folder):
    AuthorityFolder.create(folder.with_name("other"), now_ns=NOW)
    return (folder.with_name("other") / "crl.pem").read_bytes()


@pytest.mark.parametrize("data", [None, b"", b"nonsense", "older", "of others"])
def test_a_list_that_is_not_as_recorded_is_made_anew_and_that_is_said(folder, data):
    """Whatever becomes of it, it lets nobody in whom it kept out."""
    path = folder / "crl.pem"
    client(folder, "alice")
    older = path.read_bytes()
    (alice,) = revoke(folder, "alice")
    right = path.read_bytes()
    assert mended(folder) == ()
    assert path.read_bytes() == right
    match data:
        case None:
            path.unlink()
        case "older":
            path.write_bytes(older)
        case "of others":
            path.write_bytes(others(folder))
        case _:
            path.write_bytes(data)
    (said,) = mended(folder)
    assert said.count(f"{path}") == 1
    assert said.endswith(": made anew, with 1 that are revoked")
    assert revoked(folder) == {alice.serial}
    assert mended(folder) == ()


def test_records_that_are_missing_are_taken_from_the_list(folder):
    for name in ("alice", "bob"):
        client(folder, name)
        revoke(folder, name)
    records = folder / "revoked"
    first, second = sorted(records.iterdir())
    told = first.read_bytes()
    first.unlink()
    said = f"{records}: 1 were missing: taken from the list"
    assert mended(folder) == (said,)
    assert first.read_bytes() == told
    # Nothing says who was revoked when the list is gone as well: no new one is made.
    (list_path := folder / "crl.pem").rename(folder / "kept")
    for each in (first, second):
        each.unlink()
    records.rmdir()
    with pytest.raises(UsageError, match=f"cannot read {list_path}: no such file"):
        mended(folder)
    (folder / "kept").rename(list_path)
    assert mended(folder) == (said.replace("1 were", "2 were"),)
    assert mode(records) == 0o700
    assert len(revoked(folder)) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [("alice", "2026-11-24T03:24:16Z\n"), ("0A", "then\n"), ("0A", "")],
)
def test_a_record_that_is_none_is_named(folder, name, text):
    path = folder / "revoked" / name
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^{path}: not a "):
        mended(folder)


def test_what_a_run_that_was_killed_left_is_swept(folder):
    left = [folder / ".ca.key.new", folder / "clients/.alice.key.new"]
    for path in left:
        path.write_text("half a key")
    client(folder, "bob")
    assert not any(path.exists() for path in left)


# --- Killed, at any moment ---


class Killed(BaseException):
    """Nothing of the program runs after it, but what closes files."""


@contextlib.contextmanager
def killed_at(moment):
    """Be killed just before the so-many-th change of a file; yield how many there were."""
    done = itertools.count(1)

    def counted(change):
        def perhaps(*arguments, **options):
            if next(done) >= moment:
                raise Killed
            return change(*arguments, **options)

        return perhaps

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            *((os, name) for name in ("open", "fsync")),
            *((Path, name) for name in ("mkdir", "chmod", "replace", "unlink")),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


def check_pairs(folder):
    """Each certificate has its key, and a record by which it can be revoked."""
    recorded = {each.serial for each in issued(folder)}
    for path in (folder / "clients").glob("*.pem"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        assert certificate.public_key() == key.public_key()
        assert certificate.serial_number in recorded
    assert not [*folder.rglob(".*")]


@pytest.mark.parametrize("renew", [True, False])
def test_killed_at_any_moment_a_pair_is_whole_when_it_is_looked_at(folder, renew):
    if renew:
        client(folder, "alice")
    for moment in itertools.count(1):
        path = folder.with_name(f"pki{moment}")
        shutil.copytree(folder, path)
        try:
            with killed_at(moment):
                client(path, "alice", renew=renew)
        except Killed:
            check_pairs(path)
            assert (path / "clients/alice.pem").exists() >= renew
            client(path, "alice", renew=True)
            check_pairs(path)
        else:
            break
    assert moment > 10


def test_a_new_certificate_whose_key_is_there_is_finished_and_that_is_said(folder):
    place = client(folder, "alice")
    client(folder.parent / "pki", "alice", renew=True)
    new = place.certificate.read_bytes()
    (old,) = (
        each for each in (folder / "issued").iterdir() if each.read_bytes() != new
    )
    place.certificate.write_bytes(old.read_bytes())
    place.certificate.with_name(".alice.pem.new").write_bytes(new)
    (said,) = mended(folder)
    assert said.startswith(str(place.certificate))
    check_pairs(folder)


def test_killed_at_any_moment_an_authority_is_there_or_made_by_the_next(tmp_path):
    for moment in itertools.count(1):
        path = tmp_path / f"pki{moment}"
        try:
            with killed_at(moment):
                AuthorityFolder.create(path, now_ns=NOW)
        except Killed:
            if not (path / "ca.pem").exists():
                with pytest.raises(UsageError, match="ddump pki init"):
                    client(path, "alice")
                AuthorityFolder.create(path, now_ns=NOW)
            client(path, "alice")
            check_pairs(path)
        else:
            break
    assert moment > 10


def test_killed_at_any_moment_what_was_revoked_is(folder):
    client(folder, "alice")
    for moment in itertools.count(1):
        path = folder.with_name(f"pki{moment}")
        shutil.copytree(folder, path)
        try:
            with killed_at(moment):
                revoke(path, "alice")
        except Killed:
            mended(path)
            assert len(revoked(path)) == len([*(path / "revoked").iterdir()])
        else:
            break
    assert moment > 5


def test_what_was_issued_and_is_lost_is_taken_from_servers_and_clients(folder):
    client(folder, "alice")
    (record,) = (folder / "issued").iterdir()
    record.unlink()
    (said,) = mended(folder)
    assert said.startswith(f"{folder / 'issued'}: 1 were missing")
    assert record.exists()
    revoke(folder, "alice")


def test_a_list_that_is_not_valid_yet_is_made_anew(folder):
    """The clock was ahead of those of the workers, which let nobody in by it."""
    client(folder, "alice")
    revoke(folder, "alice", now_ns=NOW + 3 * DAY)
    (said,) = mended(folder)
    assert "it is not valid before" in said
    signed = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    assert signed.last_update_utc.timestamp() * SECONDS < NOW + DAY
    assert len(revoked(folder)) == 1
    assert mended(folder) == ()


@pytest.mark.parametrize("part", ["", "ca.key", "issued"])
def test_what_belongs_to_somebody_else_is_refused(folder, part):
    os.chown(folder / part, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to another user"):
        client(folder, "alice")


def test_a_pipe_is_not_waited_for(folder):
    (folder / "ca.pem").unlink()
    os.mkfifo(folder / "ca.pem")
    with pytest.raises(UsageError, match=r"ca\.pem: it is not a regular file"):
        client(folder, "alice")


def test_what_was_issued_is_missed(folder):
    """Else nothing of it could be revoked, and nobody would know."""
    (folder / "issued").rmdir()
    with pytest.raises(UsageError, match="issued is missing"):
        client(folder, "alice")


@pytest.mark.parametrize("part", ["", "issued", "revoked", "servers", "clients"])
@pytest.mark.parametrize("bits", [0o720, 0o702])
def test_a_folder_that_others_can_write(folder, part, bits):
    (folder / part).chmod(bits)
    with pytest.raises(UsageError, match="can be written by others") as caught:
        client(folder, "alice")
    assert caught.value.hint == f"chmod go-w {folder / part}"


def test_a_key_that_others_can_read(folder):
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(UsageError, match=r"ca\.key can be read by others \(chmod 600"):
        client(folder, "alice")


def test_no_authority(tmp_path):
    with pytest.raises(UsageError, match=r"no such file.*ddump pki init makes one"):
        client(tmp_path / "none", "alice")


def test_a_certificate_that_is_damaged(folder):
    client(folder, "alice")
    (path,) = (folder / "issued").iterdir()
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=f"^{path}: not a certificate"):
        issued(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=f"^cannot read {path}: is a directory$"):
        issued(folder)


def test_a_link_leads_nowhere(folder, tmp_path):
    """What a name's file points to is not written."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (folder / "clients/alice.key").symlink_to(victim)
    client(folder, "alice", renew=True)
    assert victim.read_text() == "untouched"
    assert mode(folder / "clients/alice.key") == 0o600
    assert not (folder / "clients/alice.key").is_symlink()


def test_a_disk_that_is_full(tmp_path):
    """Then what was there is there still: the list of revocations above all."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        AuthorityFolder.create(disk / "pki", now_ns=NOW)
        client(disk / "pki", "alice")
        fill(disk, leave=0)
        for change in (revoke, client):
            with pytest.raises(OutputError, match="no space left on device"):
                change(disk / "pki", "alice" if change is revoke else "bob")
        assert revoked(disk / "pki") == set()
        (disk / "filler").unlink()
        revoke(disk / "pki", "alice")
        assert len(revoked(disk / "pki")) == 1


def test_two_at_once_wait_for_each_other(folder):
    """Neither forgets what the other has revoked."""
    names = [f"c{n}" for n in range(8)]
    for name in names:
        client(folder, name)
    threads = [threading.Thread(target=revoke, args=(folder, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(revoked(folder)) == len(names)


def test_the_lock_is_held_while_it_is_open(folder):
    with AuthorityFolder.open(folder, now_ns=NOW):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
