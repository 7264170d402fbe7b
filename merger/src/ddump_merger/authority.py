"""The folder of a certificate authority: what stands where, and how it is changed.

::

    ca.pem  ca.key                the authority, and its key
    servers/NAME.pem  .key        what each server and each client shows,
    clients/NAME.pem  .key        the newest of each name
    issued/SERIAL.pem             every certificate that was ever signed
    revoked/SERIAL                when each that is revoked was
    crl.pem                       the same, as a signed list

A certificate is in ``issued`` before anybody can have it, so that each can be revoked; it
is in ``revoked`` before it is in the list, which is made anew when it does not say the
same. The folder is 0700, keys are 0600 from their first byte on. Whoever changes it holds
a lock on it; a file that is replaced is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ddump_common.errors import OutputError, UsageError
from ddump_common.pki import (
    Authority,
    Credential,
    Issued,
    Kind,
    RevocationList,
    check_client_name,
    check_server_names,
)
from ddump_common.timespec import format_time
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["AuthorityFolder", "Place", "told_serial"]

_CERTIFICATE = "ca.pem"
_KEY = "ca.key"
_REVOCATIONS = "crl.pem"
_ISSUED = "issued"
_REVOKED = "revoked"
_FOLDERS = {Kind.SERVER: "servers", Kind.CLIENT: "clients"}
_ALL_FOLDERS = (*_FOLDERS.values(), _ISSUED, _REVOKED)

_MAX_PEM_BYTES = 64 * 1024
# Of a hundred bytes each: more certificates than anybody signs by hand.
_MAX_REVOCATIONS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


class AuthorityFolder:
    """An authority that is open: see ``create`` and ``open``.

    ``revocations`` is what does not hold any more, ``mended`` what was found wrong with
    how that is kept and is right again, for people.
    """

    def __init__(
        self, path: Path, authority: Authority, revocations: RevocationList
    ) -> None:
        self.path = path
        self.authority = authority
        self.revocations = revocations
        self.mended: tuple[str, ...] = ()

    @classmethod
    def create(cls, path: Path, *, now_ns: int) -> AuthorityFolder:
        """Make a new authority in ``path``, which is not there yet, or is empty.

        Raises:
            UsageError: it holds something.
            OutputError: it cannot be written.

        """
        authority = Authority.create(now_ns=now_ns)
        credential = authority.credential
        with _writing(path):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            with _locked(path):
                if any(path.iterdir()):
                    raise UsageError(
                        f"{path} is not empty", hint="give another folder by --dir"
                    )
                path.chmod(0o700)
                for name in _ALL_FOLDERS:
                    (path / name).mkdir(mode=0o700)
                _create(path / _KEY, credential.key_pem, mode=0o600)
                _create(path / _CERTIFICATE, credential.certificate_pem)
                made = cls(path, authority, RevocationList())
                made._write_list(now_ns)
        return made

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, *, now_ns: int) -> Iterator[AuthorityFolder]:
        """Read an authority; nobody else changes it until the body is done.

        Raises:
            UsageError: there is none, a file of it is not as it has to be, or others can
                read its key, or write to its folders.
            OutputError: it cannot be written.

        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(path))
            except OSError as exc:
                missing = isinstance(exc, FileNotFoundError)
                hint = "ddump pki init makes one" if missing else ""
                raise UsageError(f"{path}: {_reason(exc)}", hint=hint) from exc
            key_path = path / _KEY
            certificate, key = _read(path / _CERTIFICATE), _read(key_path)
            if key_path.stat().st_mode & 0o077:
                raise UsageError(
                    f"{key_path} can be read by others", hint=f"chmod 600 {key_path}"
                )
            try:
                authority = Authority.parse(certificate, key)
            except UsageError as exc:
                raise UsageError(f"{path}: {exc.message}") from exc
            _check_folders(path)
            opened = cls(path, authority, RevocationList())
            opened._read_revocations(now_ns)
            yield opened

    @property
    def certificate(self) -> Path:
        """The file that everybody trusts."""
        return self.path / _CERTIFICATE

    @property
    def revocation_list(self) -> Path:
        """The file that says what does not hold any more."""
        return self.path / _REVOCATIONS

    def issued(self) -> list[Issued]:
        """Return every certificate that was signed, by kind and name, oldest first.

        Raises:
            UsageError: a file cannot be read, or is none.

        """
        found = [_parse(path) for path in (self.path / _ISSUED).glob("*.pem")]
        return sorted(found, key=lambda each: (each.kind, each.name, each.begin_ns))

    def server(self, names: Sequence[str], *, now_ns: int, renew: bool) -> Place:
        """Sign and write what a server shows; its files have the first of ``names``.

        Raises:
            UsageError: a name is none, or has a certificate that holds still and is
                not to be renewed.
            OutputError: the files cannot be written.

        """
        names = check_server_names(names)
        place = self._place(Kind.SERVER, names[0])
        self._check_free(place, now_ns=now_ns, renew=renew)
        self._write(place, self.authority.server(names, now_ns=now_ns))
        return place

    def client(self, name: str, *, now_ns: int, renew: bool) -> Place:
        """Sign and write what a client shows.

        Raises:
            UsageError, OutputError: as ``server``.

        """
        check_client_name(name)
        place = self._place(Kind.CLIENT, name)
        self._check_free(place, now_ns=now_ns, renew=renew)
        self._write(place, self.authority.client(name, now_ns=now_ns))
        return place

    def revoke(self, words: Sequence[str], *, now_ns: int) -> list[Issued]:
        """Revoke what ``words`` name, and write the list; return what was revoked.

        A word is a name, of which all that hold are meant, ``servers/NAME`` or
        ``clients/NAME``, or a serial number.

        Raises:
            UsageError: a word names nothing that holds, or both a server and a client.
                Then nothing is revoked.
            OutputError: the list cannot be written.

        """
        holding = [each for each in self.issued() if self.holds(each, now_ns=now_ns)]
        found = {each.serial: each for word in words for each in _named(word, holding)}
        self._record(dict.fromkeys(found, now_ns))
        self._write_list(now_ns)
        return list(found.values())

    def holds(self, issued: Issued, *, now_ns: int) -> bool:
        """Whether a certificate is neither revoked nor over."""
        return (
            issued.serial not in self.revocations.revoked_ns and now_ns < issued.end_ns
        )

    def _place(self, kind: Kind, name: str) -> Place:
        folder = self.path / _FOLDERS[kind]
        return Place(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")

    def _check_free(self, place: Place, *, now_ns: int, renew: bool) -> None:
        if renew or not (place.certificate.exists() or place.key.exists()):
            return
        there = _parse(place.certificate)
        if self.holds(there, now_ns=now_ns):
            raise UsageError(
                f"{there.name} has a certificate until {format_time(there.end_ns)}",
                hint="--renew makes another one beside it, or revoke it first",
            )

    def _write(self, place: Place, credential: Credential) -> None:
        serial = credential.certificate.serial_number
        with _writing(self.path):
            _replace(
                self.path / _ISSUED / f"{told_serial(serial)}.pem",
                credential.certificate_pem,
            )
            _replace(place.key, credential.key_pem, mode=0o600)
            _replace(place.certificate, credential.certificate_pem)

    def _read_revocations(self, now_ns: int) -> None:
        """Read what is revoked, from its records and the list; make both say the same.

        Raises:
            UsageError: a record is none; or there are none, nor a list.
            OutputError: they cannot be written.

        """
        records, wrong = self.path / _REVOKED, ""
        listed: Mapping[int, int] = {}
        try:
            listed = self._read_list().revoked_ns
        except UsageError as exc:
            if not records.exists():
                raise  # then nobody knows
            wrong = exc.message
        with _writing(self.path):
            records.mkdir(mode=0o700, exist_ok=True)
        recorded = {_serial(each): _moment(each) for each in records.iterdir()}
        self.revocations = RevocationList(revoked_ns=recorded)
        lost = {each: at for each, at in listed.items() if each not in recorded}
        if lost:
            self._record(lost)
            self.mended += (
                f"{records}: {len(lost)} were missing: taken from the list",
            )
        if missing := len(recorded.keys() - listed):
            wrong = (
                wrong
                or f"{self.revocation_list}: {missing} of the revoked were not in it"
            )
        if wrong:
            self._write_list(now_ns)
            count = len(self.revocations.revoked_ns)
            self.mended += (f"{wrong}: made anew, with {count} that are revoked",)

    def _read_list(self) -> RevocationList:
        data = _read(self.revocation_list, limit=_MAX_REVOCATIONS_BYTES)
        try:
            return self.authority.read_revocations(data)
        except UsageError as exc:
            raise UsageError(f"{self.revocation_list}: {exc.message}") from exc

    def _record(self, revoked_ns: Mapping[int, int]) -> None:
        with _writing(self.path):
            for serial, moment_ns in revoked_ns.items():
                told = format_time(moment_ns // SECONDS * SECONDS)
                record = self.path / _REVOKED / told_serial(serial)
                _replace(record, f"{told}\n".encode())
        known = self.revocations.revoked_ns
        self.revocations = RevocationList(revoked_ns={**revoked_ns, **known})

    def _write_list(self, now_ns: int) -> None:
        signed = self.authority.sign_revocations(self.revocations, now_ns=now_ns)
        with _writing(self.path):
            _replace(self.revocation_list, signed)


def told_serial(serial: int) -> str:
    """Return a serial number as OpenSSL and nginx write it."""
    digits = f"{serial:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _named(word: str, holding: Sequence[Issued]) -> list[Issued]:
    """Return what a word names; see ``AuthorityFolder.revoke``."""
    serial = word.upper().lstrip("0")
    found = [
        each
        for each in holding
        if word in {each.name, _qualified(each)} or serial == f"{each.serial:X}"
    ]
    if not found:
        raise UsageError(
            f"{word!r} has no certificate that holds",
            hint="ddump pki show lists all",
        )
    if len({each.kind for each in found}) > 1:
        names = sorted({_qualified(each) for each in found})
        raise UsageError(
            f"{word!r} is a server and a client", hint=f"say {' or '.join(names)}"
        )
    return found


def _qualified(issued: Issued) -> str:
    return f"{_FOLDERS[issued.kind]}/{issued.name}"


def _parse(path: Path) -> Issued:
    data = _read(path)
    try:
        return Issued.parse(data)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc.message}") from exc


def _serial(record: Path) -> int:
    try:
        serial = int(record.name, 16)
    except ValueError:
        serial = 0
    if told_serial(serial) != record.name:
        raise UsageError(f"{record}: not a serial number")
    return serial


def _moment(record: Path) -> int:
    data = _read(record)
    try:
        moment = datetime.strptime(data.decode(), "%Y-%m-%dT%H:%M:%S%z\n")
    except ValueError as exc:
        raise UsageError(f"{record}: not a time") from exc
    return int(moment.timestamp()) * SECONDS


def _check_folders(path: Path) -> None:
    """Have all folders, in which nobody else can write, and nothing that is half done.

    Raises:
        UsageError: others can write, or what was issued is not there.
        OutputError: it cannot be written.

    """
    if not (path / _ISSUED).is_dir():
        # Nothing that was ever signed could be revoked.
        raise UsageError(f"{path / _ISSUED} is missing")
    with _writing(path):
        for name in _FOLDERS.values():
            (path / name).mkdir(mode=0o700, exist_ok=True)
        ours = [path / name for name in _ALL_FOLDERS]
        for folder in (path, *filter(Path.exists, ours)):
            if folder.stat().st_mode & 0o022:
                raise UsageError(
                    f"{folder} can be written by others", hint=f"chmod go-w {folder}"
                )
            for half in folder.glob(".*.new"):  # of a run that was killed
                half.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only one in a folder; wait for who is before us.

    Raises:
        OSError: there is no such folder.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OutputError(f"{exc.filename or path}: {_reason(exc)}") from exc


def _read(path: Path, *, limit: int = _MAX_PEM_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {_reason(exc)}") from exc
    if len(data) > limit:
        raise UsageError(f"{path} is too long")
    return data


def _create(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that is not there yet; it is on the disk when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:  # noqa: PTH123  # a descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file, as a whole or not at all, in place of what is there if anything."""
    new = path.with_name(f".{path.name}.new")
    try:
        _create(new, data, mode=mode)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(exc: OSError) -> str:
    return (exc.strerror or "cannot be opened").lower()
