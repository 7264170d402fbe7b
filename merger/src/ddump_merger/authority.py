"""The folder of a certificate authority: what stands where, and how it is changed.

::

    ca.pem  ca.key  crl.pem       the authority, its key, what it has revoked
    servers/NAME.pem  .key        what each server and each client shows,
    clients/NAME.pem  .key        the newest of each name
    issued/SERIAL.pem             every certificate that was ever signed

A certificate is in ``issued`` before anybody can have it, so that each can be revoked.
The folder is 0700, keys are 0600 from their first byte on. Whoever changes it holds a
lock on it; a file that is replaced is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["AuthorityFolder", "Place", "told_serial"]

_CERTIFICATE = "ca.pem"
_KEY = "ca.key"
_REVOCATIONS = "crl.pem"
_ISSUED = "issued"
_FOLDERS = {Kind.SERVER: "servers", Kind.CLIENT: "clients"}

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

    ``revocations`` is what its list holds.
    """

    def __init__(
        self, path: Path, authority: Authority, revocations: RevocationList
    ) -> None:
        self.path = path
        self.authority = authority
        self.revocations = revocations

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
                for name in (*_FOLDERS.values(), _ISSUED):
                    (path / name).mkdir(mode=0o700)
                _create(path / _KEY, credential.key_pem, mode=0o600)
                _create(path / _CERTIFICATE, credential.certificate_pem)
                made = cls(path, authority, RevocationList())
                made._write_revocations(RevocationList(), now_ns=now_ns)
        return made

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[AuthorityFolder]:
        """Read an authority; nobody else changes it until the body is done.

        Raises:
            UsageError: there is none, a file of it is not as it has to be, or others
                can read its key.
            OutputError: it cannot be written.

        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(path))
            except OSError as exc:
                missing = isinstance(exc, FileNotFoundError)
                hint = "ddump pki init makes one" if missing else ""
                raise UsageError(f"{path}: {_reason(exc)}", hint=hint) from exc
            key_path, list_path = path / _KEY, path / _REVOCATIONS
            key = _read(key_path)
            if key_path.stat().st_mode & 0o077:
                raise UsageError(
                    f"{key_path} can be read by others", hint=f"chmod 600 {key_path}"
                )
            try:
                authority = Authority.parse(_read(path / _CERTIFICATE), key)
            except UsageError as exc:
                raise UsageError(f"{path}: {exc.message}") from exc
            try:
                signed = _read(list_path, limit=_MAX_REVOCATIONS_BYTES)
                revocations = authority.read_revocations(signed)
            except UsageError as exc:
                raise UsageError(f"{list_path}: {exc.message}") from exc
            yield cls(path, authority, revocations)

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
        self._write_revocations(
            self.revocations.adding(found, now_ns=now_ns), now_ns=now_ns
        )
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

    def _write_revocations(self, revocations: RevocationList, *, now_ns: int) -> None:
        signed = self.authority.sign_revocations(revocations, now_ns=now_ns)
        with _writing(self.path):
            _replace(self.revocation_list, signed)
        self.revocations = revocations


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
    try:
        return Issued.parse(_read(path))
    except UsageError as exc:
        raise UsageError(f"{path}: {exc.message}") from exc


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
    new.unlink(missing_ok=True)  # of a run that was killed: nobody else is here
    _create(new, data, mode=mode)
    new.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(exc: OSError) -> str:
    return (exc.strerror or "cannot be opened").lower()
