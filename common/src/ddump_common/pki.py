"""A small certificate authority for people who have none: values, and their PEM.

One authority signs the certificates of servers and of clients itself, and says in one
list which of them it has revoked. All keys are of the curve P-256, all extensions as
RFC 5280 has them. Nothing here reads a file or a clock.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import UsageError
from .malformed import MALFORMED
from .units import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Authority",
    "Credential",
    "Issued",
    "Kind",
    "RevocationList",
    "check_client_name",
    "check_server_name",
    "check_server_names",
]

_AUTHORITY_LIFE = timedelta(days=3653)
# What browsers take at most is 398; a day less is longer than any year.
_LEAF_LIFE = timedelta(days=397)
# Clocks that are that much behind take what was signed just now.
_BACKDATE = timedelta(hours=1)

_MAX_COMMON_NAME = 64  # ub-common-name of RFC 5280
_CLIENT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_DNS_NAME = 253


class Kind(enum.StrEnum):
    """Who shows a certificate."""

    SERVER = "server"
    CLIENT = "client"


_PURPOSES = {
    Kind.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Kind.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
}


def check_client_name(name: str) -> None:
    """Refuse a name that is none for a client: it is also one of files.

    Raises:
        UsageError: and why.

    """
    if not _CLIENT_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a client",
            hint="up to 64 letters, digits and . _ @ -, of which . @ - are not the first",
        )


def check_server_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the DNS names and addresses of a server as they are written best.

    That is in lower case, and each once. The first is its name, also of files.

    Raises:
        UsageError: there is none, or what one of them is not.

    """
    checked = tuple(dict.fromkeys(map(check_server_name, names)))
    if not checked:
        raise UsageError("a server has a name or an address")
    first = checked[0]
    if len(first) > _MAX_COMMON_NAME or first.startswith("*"):
        raise UsageError(
            f"{first!r} cannot be the first name",
            hint=f"first a name without * of up to {_MAX_COMMON_NAME} characters",
        )
    return checked


def check_server_name(text: str) -> str:
    """Return a DNS name or an address of a server as it is written best.

    Raises:
        UsageError: it is neither.

    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        if "%" in text:
            raise UsageError(f"{text!r} has a zone, which certificates have not")
        return str(address)
    name = text.lower()
    labels = name.removeprefix("*.").split(".")
    if len(name) > _MAX_DNS_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise UsageError(f"{text!r} is no DNS name and no address")
    if labels[-1].isdigit():  # what reads it takes it for an address
        raise UsageError(f"{text!r} is no address")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A certificate and its private key, which no representation shows."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as it is written to a file."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key, not encrypted: only its owner may read the file."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What a certificate says that an authority has signed.

    ``name`` is that of its files, ``names`` are all that a server is reached by;
    ``begin_ns`` and ``end_ns`` are since the epoch.
    """

    kind: Kind
    name: str
    names: tuple[str, ...]
    serial: int
    begin_ns: int
    end_ns: int

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Read a certificate that an ``Authority`` has made.

        Raises:
            UsageError: it is none.

        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            usage = certificate.extensions.get_extension_for_class(
                x509.ExtendedKeyUsage
            )
            (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (x509.ExtensionNotFound, *MALFORMED) as exc:
            raise UsageError("not a certificate of this kind of authority") from exc
        server = _PURPOSES[Kind.SERVER] in usage.value
        return cls(
            kind=Kind.SERVER if server else Kind.CLIENT,
            name=str(name.value),
            names=_alternatives(certificate),
            serial=certificate.serial_number,
            begin_ns=_nanoseconds(certificate.not_valid_before_utc),
            end_ns=_nanoseconds(certificate.not_valid_after_utc),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """Which certificates do not hold any more: when each was revoked, by serial number.

    ``begin_ns`` is since when the list that says so is valid, if it was read.
    """

    revoked_ns: dict[int, int] = field(default_factory=dict)
    begin_ns: int = field(default=0, compare=False)

    @property
    def number(self) -> int:
        """What grows with each list (RFC 5280, 5.2.3): nothing leaves one again."""
        return len(self.revoked_ns) + 1

    def adding(self, serials: Iterable[int], *, now_ns: int) -> RevocationList:
        """Return the next list, which has these as well; what was revoked stays so."""
        return RevocationList(
            revoked_ns={**dict.fromkeys(serials, now_ns), **self.revoked_ns}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Signs certificates that are valid from ``now_ns`` on, for 397 days.

    But no longer than its own; and from an hour before, for clocks that are behind.
    """

    credential: Credential

    @classmethod
    def create(cls, *, now_ns: int, name: str = "") -> Self:
        """Return a new authority, valid for ten years.

        ``name`` is what people see in messages; by default it is told by its key, so
        that two can be told apart.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        subject = _subject(name or f"ddump authority {identifier.digest.hex()[:8]}")
        now = _datetime(now_ns)
        certificate = (
            _builder(subject, subject, key, now - _BACKDATE, now + _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, SHA256())
        )
        return cls(credential=Credential(certificate=certificate, key=key))

    @classmethod
    def parse(cls, certificate_pem: bytes, key_pem: bytes) -> Self:
        """Read what ``credential`` is written as.

        Raises:
            UsageError: it is something else, or the key is not the certificate's.

        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            constraints = certificate.extensions.get_extension_for_class(
                x509.BasicConstraints
            )
            identifier = x509.SubjectKeyIdentifier
            certificate.extensions.get_extension_for_class(identifier)
        except (x509.ExtensionNotFound, *MALFORMED) as exc:
            raise UsageError("the certificate is not that of an authority") from exc
        if not constraints.value.ca:
            raise UsageError("the certificate is not that of an authority")
        try:
            key = load_pem_private_key(key_pem, password=None)
        except MALFORMED as exc:
            raise UsageError("the key cannot be read, or is encrypted") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError("the key is of another kind")
        if key.public_key() != certificate.public_key():
            raise UsageError("the key is not that of the certificate")
        return cls(credential=Credential(certificate=certificate, key=key))

    def server(self, names: Iterable[str], *, now_ns: int) -> Credential:
        """Return what a server shows that is reached by any of ``names``.

        Raises:
            UsageError: as ``check_server_names``; the authority is not valid now.

        """
        checked = check_server_names(names)
        alternatives = x509.SubjectAlternativeName(map(_alternative, checked))
        return self._issue(Kind.SERVER, checked[0], now_ns, alternatives)

    def client(self, name: str, *, now_ns: int) -> Credential:
        """Return what a client shows; its subject is ``CN=name``.

        Raises:
            UsageError: as ``check_client_name``; the authority is not valid now.

        """
        check_client_name(name)
        return self._issue(Kind.CLIENT, name, now_ns, None)

    def _issue(
        self,
        kind: Kind,
        name: str,
        now_ns: int,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> Credential:
        self._check_valid(now_ns)
        issuer = self.credential.certificate
        now, last = _datetime(now_ns), issuer.not_valid_after_utc
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        begin, end = now - _BACKDATE, min(now + _LEAF_LIFE, last)
        builder = (
            _builder(_subject(name), issuer.subject, key, begin, end)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_PURPOSES[kind]]), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(self._identifier, critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self.credential.key, SHA256())
        return Credential(certificate=certificate, key=key)

    def _check_valid(self, now_ns: int) -> None:
        """Refuse to sign what would not hold: nobody takes it from an authority then."""
        issuer = self.credential.certificate
        first, last = issuer.not_valid_before_utc, issuer.not_valid_after_utc
        if _datetime(now_ns) < first:
            raise UsageError(
                f"the authority is not valid before {first:%Y-%m-%dT%H:%M:%SZ}",
                hint="is the clock right?",
            )
        if _datetime(now_ns) >= last:
            raise UsageError(f"the authority was valid until {last:%Y-%m-%d}")

    def has_signed(self, pem: bytes) -> bool:
        """Return whether it is a certificate of this authority's."""
        issuer = self.credential.certificate
        try:
            x509.load_pem_x509_certificate(pem).verify_directly_issued_by(issuer)
        except (*MALFORMED, InvalidSignature):
            return False
        return True

    @property
    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.credential.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)

    def sign_revocations(self, revocations: RevocationList, *, now_ns: int) -> bytes:
        """Return ``revocations`` in PEM; it is good for as long as the authority.

        A list that ends sooner would, one day, lock everybody out.

        Raises:
            UsageError: the authority is not valid now.

        """
        self._check_valid(now_ns)
        issuer = self.credential.certificate
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(_datetime(now_ns) - _BACKDATE)
            .next_update(issuer.not_valid_after_utc)
            .add_extension(x509.CRLNumber(revocations.number), critical=False)
            .add_extension(self._identifier, critical=False)
        )
        for serial, revoked_ns in revocations.revoked_ns.items():
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(_datetime(revoked_ns))
                .build()
            )
        return builder.sign(self.credential.key, SHA256()).public_bytes(Encoding.PEM)

    def read_revocations(self, pem: bytes) -> RevocationList:
        """Read what ``sign_revocations`` returned.

        Raises:
            UsageError: it is something else, or of another authority.

        """
        try:
            signed = x509.load_pem_x509_crl(pem)
            ours = signed.is_signature_valid(self.credential.key.public_key())
        except MALFORMED as exc:
            raise UsageError("not a list of revocations") from exc
        if not ours:
            raise UsageError("the list of revocations is not of this authority")
        return RevocationList(
            revoked_ns={
                each.serial_number: _nanoseconds(each.revocation_date_utc)
                for each in signed
            },
            begin_ns=_nanoseconds(signed.last_update_utc),
        )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _alternatives(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return ()  # a client has none
    return tuple(
        str(name.value)
        for name in names
        if isinstance(name, x509.DNSName | x509.IPAddress)
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    """Return that of an authority, or of who is authenticated by TLS."""
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _datetime(since_epoch_ns: int) -> datetime:
    return datetime.fromtimestamp(since_epoch_ns // SECONDS, UTC)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * SECONDS
