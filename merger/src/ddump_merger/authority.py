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
a lock on it; a file that is replaced is replaced as a whole, a certificate with its key.
``ca.pem`` comes last: a folder without it is one that was begun, and is begun anew.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ddump_common.errors import UsageError
from ddump_common.pki import (
    Authority,
    Issued,
    Kind,
    RevocationList,
    check_client_name,
    check_server_name,
    check_server_names,
)
from ddump_common.timespec import format_time
from ddump_common.units import SECONDS

from .files import (
    Place,
    check_owner,
    locked,
    read,
    replace,
    replace_pair,
    settle_pairs,
    successor,
    told_reason,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ddump_common.pki import Credential

__all__ = ["AuthorityFolder", "SignedServer", "told_serial"]

_CERTIFICATE = "ca.pem"
_KEY = "ca.key"
_REVOCATIONS = "crl.pem"
_ISSUED = "issued"
_REVOKED = "revoked"
_FOLDERS = {Kind.SERVER: "servers", Kind.CLIENT: "clients"}
_ALL_FOLDERS = (*_FOLDERS.values(), _ISSUED, _REVOKED)

# What "init" makes before the authority is there; the key goes first when that is undone.
_BEGUN = (
    _KEY,
    f".{_KEY}.new",
    f".{_CERTIFICATE}.new",
    _REVOCATIONS,
    f".{_REVOCATIONS}.new",
)

# Of a hundred bytes each: more certificates than anybody signs by hand.
_MAX_REVOCATIONS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedServer:
    """What was made for a server: its files, and the names that are in the certificate.

    ``gone`` are those that the one before has, and this one has not.
    """

    place: Place
    names: tuple[str, ...]
    gone: tuple[str, ...]


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

        Or has what an earlier call has begun, and could not end.

        Raises:
            UsageError: it holds something else, or belongs to another user.
            OutputError: it cannot be written.

        """
        authority = Authority.create(now_ns=now_ns)
        credential = authority.credential
        with writing(path):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            with locked(path):
                check_owner(path)
                if not _is_begun(path):
                    raise UsageError(
                        f"{path} is not empty", hint="give another folder by --dir"
                    )
                path.chmod(0o700)
                for name in _BEGUN:
                    (path / name).unlink(missing_ok=True)
                for name in _ALL_FOLDERS:
                    (path / name).mkdir(mode=0o700, exist_ok=True)
                made = cls(path, authority, RevocationList())
                made._write_list(now_ns)
                place = Place(certificate=made.certificate, key=path / _KEY)
                replace_pair(place, credential)
        return made

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, *, now_ns: int) -> Iterator[AuthorityFolder]:
        """Read an authority; nobody else changes it until the body is done.

        Raises:
            UsageError: there is none, a file of it is not as it has to be, or others can
                read its key, or write to its folders, or own them.
            OutputError: it cannot be written.

        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path))
            except OSError as exc:
                missing = isinstance(exc, FileNotFoundError)
                hint = "ddump pki init makes one" if missing else ""
                raise UsageError(f"{path}: {told_reason(exc)}", hint=hint) from exc
            with writing(path):
                opened = cls(path, _read_authority(path), RevocationList())
                opened._settle()
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

    def server(self, names: Sequence[str], *, now_ns: int, renew: bool) -> SignedServer:
        """Sign and write what a server shows; its files have the first of ``names``.

        To renew it by that alone leaves it all the names that it had.

        Raises:
            UsageError: a name is none, or has a certificate that holds still and is
                not to be renewed.
            OutputError: the files cannot be written.

        """
        names = check_server_names(names)
        place = self._place(Kind.SERVER, names[0])
        self._check_free(place, now_ns=now_ns, renew=renew)
        before = self._names_before(place, names[0])
        if renew and len(names) == 1:
            names = check_server_names((*names, *before))
        self._write(place, self.authority.server(names, now_ns=now_ns))
        gone = tuple(each for each in before if each not in names)
        return SignedServer(place=place, names=names, gone=gone)

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
        ``clients/NAME``, or a serial number. A server may be called by any of its names,
        if that is not the first one of another.

        Raises:
            UsageError: a word names nothing that holds, or several.
                Then nothing is revoked.
            OutputError: the list cannot be written.

        """
        issued, found = self.issued(), {}
        for word in words:
            named = [e for e in _named(word, issued) if self.holds(e, now_ns=now_ns)]
            _check_one(word, named)
            found.update({each.serial: each for each in named})
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
        if renew or not place.certificate.exists():
            return
        there = _parse(place.certificate)
        if self.holds(there, now_ns=now_ns):
            raise UsageError(
                f"{there.name} has a certificate until {format_time(there.end_ns)}",
                hint="--renew makes another one beside it, or revoke it first",
            )

    def _names_before(self, place: Place, name: str) -> tuple[str, ...]:
        """Return what a server was called by last; nothing if it had no certificate.

        Raises:
            UsageError: the file is lost, and what was issued cannot be read.

        """
        with contextlib.suppress(UsageError):  # lost, or damaged: its record tells
            return _parse(place.certificate).names
        found = [
            each
            for each in self.issued()
            if each.kind is Kind.SERVER and each.name == name
        ]
        return found[-1].names if found else ()

    def _write(self, place: Place, credential: Credential) -> None:
        serial = credential.certificate.serial_number
        with writing(self.path):
            replace(self._record_of(serial), credential.certificate_pem)
            replace_pair(place, credential)

    def _settle(self) -> None:
        """Mend what a run that was killed has left, and records that are missing.

        Raises:
            OSError: it cannot be done.

        """
        for half in (*self.path.glob(".*.new"), *self.path.glob("[ir]*/.*.new")):
            half.unlink()
        lost = {}
        for name in _FOLDERS.values():
            for each in settle_pairs(self.path / name):
                self.mended += (f"{each}: was not there yet beside its new key",)
            for each in (self.path / name).glob("*.pem"):
                with contextlib.suppress(UsageError):  # it is said when it is used
                    data = read(each)
                    record = self._record_of(Issued.parse(data).serial)
                    if not record.exists() and self.authority.has_signed(data):
                        lost[record] = data
        for record, data in lost.items():
            replace(record, data)
        if lost:
            self.mended += (
                f"{self.path / _ISSUED}: {len(lost)} were missing: taken from servers and "
                "clients; what else was there cannot be revoked",
            )

    def _record_of(self, serial: int) -> Path:
        return self.path / _ISSUED / f"{told_serial(serial)}.pem"

    def _read_revocations(self, now_ns: int) -> None:
        """Read what is revoked, from its records and the list; make both say the same.

        Raises:
            UsageError: a record is none; or there are none, nor a list.
            OSError, OutputError: they cannot be written.

        """
        records, wrong = self.path / _REVOKED, ""
        listed: Mapping[int, int] = {}
        try:
            signed = self._read_list()
            listed = signed.revoked_ns
            if signed.begin_ns > now_ns:  # it was made by a clock that was ahead
                begin = format_time(signed.begin_ns)
                wrong = f"{self.revocation_list}: it is not valid before {begin}"
        except UsageError as exc:
            if not records.exists():
                raise  # then nobody knows
            wrong = exc.message
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
        data = read(self.revocation_list, limit=_MAX_REVOCATIONS_BYTES)
        try:
            return self.authority.read_revocations(data)
        except UsageError as exc:
            raise UsageError(f"{self.revocation_list}: {exc.message}") from exc

    def _record(self, revoked_ns: Mapping[int, int]) -> None:
        with writing(self.path):
            for serial, moment_ns in revoked_ns.items():
                told = format_time(moment_ns // SECONDS * SECONDS)
                record = self.path / _REVOKED / told_serial(serial)
                replace(record, f"{told}\n".encode())
        known = self.revocations.revoked_ns
        self.revocations = RevocationList(revoked_ns={**revoked_ns, **known})

    def _write_list(self, now_ns: int) -> None:
        signed = self.authority.sign_revocations(self.revocations, now_ns=now_ns)
        with writing(self.path):
            replace(self.revocation_list, signed)


def told_serial(serial: int) -> str:
    """Return a serial number as OpenSSL and nginx write it."""
    digits = f"{serial:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _named(word: str, issued: Sequence[Issued]) -> list[Issued]:
    """Return what a word names; see ``AuthorityFolder.revoke``."""
    folder, _, name = word.rpartition("/")
    serial, spelled = name.upper().lstrip("0"), ""
    with contextlib.suppress(UsageError):
        spelled = check_server_name(name)
    meant = [each for each in issued if folder in {"", _FOLDERS[each.kind]}]
    found = [
        each
        for each in meant
        if serial == f"{each.serial:X}"
        or each.name == (name if each.kind is Kind.CLIENT else spelled)
    ] or [each for each in meant if spelled in each.names]
    if not found:
        raise UsageError(
            f"{word!r} is unknown: nothing was ever made for it",
            hint="ddump pki show lists all",
        )
    return found


def _check_one(word: str, holding: Sequence[Issued]) -> None:
    """Have a word mean one server or client, of which something holds."""
    if not holding:
        raise UsageError(
            f"{word!r} has no certificate that holds",
            hint="ddump pki show lists all",
        )
    names = sorted({_qualified(each) for each in holding})
    if len(names) > 1:
        raise UsageError(
            f"{word!r} is the name of several", hint=f"say {' or '.join(names)}"
        )


def _qualified(issued: Issued) -> str:
    return f"{_FOLDERS[issued.kind]}/{issued.name}"


def _parse(path: Path) -> Issued:
    data = read(path)
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
        raise UsageError(
            f"{record}: not a serial number",
            hint="what is no record of a revocation has to be elsewhere",
        )
    return serial


def _moment(record: Path) -> int:
    data = read(record)
    try:
        moment = datetime.strptime(data.decode(), "%Y-%m-%dT%H:%M:%S%z\n")
    except ValueError as exc:
        raise UsageError(
            f"{record}: not a time",
            hint="a line such as 2026-11-24T03:24:16Z, when it was revoked",
        ) from exc
    return int(moment.timestamp()) * SECONDS


def _is_begun(path: Path) -> bool:
    """Return whether all that is in a folder is what ``create`` has begun, if anything."""
    there = {each.name for each in path.iterdir()}
    ours = [path / name for name in _ALL_FOLDERS if name in there]
    return (
        there <= {*_BEGUN, *_ALL_FOLDERS}
        # Else it was whole, and has lost its certificate.
        and (_KEY not in there or successor(path / _CERTIFICATE).exists())
        and not any(each.is_symlink() or any(each.iterdir()) for each in ours)
        and not (there and path.stat().st_mode & 0o022)
    )


def _read_authority(path: Path) -> Authority:
    """Read what is in a folder, and have all folders, in which nobody else can write.

    Raises:
        UsageError: something is missing or wrong, or others can read or write it.
        OSError: a folder cannot be made.

    """
    check_owner(path)
    key_path, issued = path / _KEY, path / _ISSUED
    if _is_begun(path):
        raise UsageError(
            f"{path} has no authority, or only the beginning of one",
            hint=f"ddump pki init --dir {path} makes it",
        )
    certificate, key = read(path / _CERTIFICATE), read(key_path)
    check_owner(key_path)
    if key_path.stat().st_mode & 0o077:
        raise UsageError(
            f"{key_path} can be read by others", hint=f"chmod 600 {key_path}"
        )
    try:
        authority = Authority.parse(certificate, key)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc.message}") from exc
    if not issued.is_dir():
        # Nothing that was ever signed could be revoked.
        raise UsageError(
            f"{issued} is missing",
            hint="bring it back; or make an empty one, for what servers and clients have",
        )
    for name in _FOLDERS.values():
        (path / name).mkdir(mode=0o700, exist_ok=True)
    ours = [path / name for name in _ALL_FOLDERS]
    for folder in (path, *(each for each in ours if each.exists())):
        check_owner(folder)
        if folder.stat().st_mode & 0o022:
            raise UsageError(
                f"{folder} can be written by others", hint=f"chmod go-w {folder}"
            )
    return authority
