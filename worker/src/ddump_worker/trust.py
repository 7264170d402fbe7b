"""What the worker believes: all that its files say of certificates and tokens.

They are read together, at the start and when the worker is told to (SIGHUP); what is
read is either all right, or not used at all.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from ddump_common.errors import UsageError
from ddump_common.malformed import MALFORMED
from ddump_common.tls import Grounds, server_context

from .misgiving import (
    told,
    warnings_of_authorities,
    warnings_of_certificate,
    warnings_of_lists,
)
from .private import check_unread_by_others
from .tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ddump_common.tls import ServerContext

    from .config import Config

__all__ = ["Trust"]

_MAX_CHAIN = 8

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The files of one moment, read.

    ``context`` is ``None`` where the worker does not serve by TLS; ``names`` are those
    of its own certificate; ``grounds`` what clients' certificates must come from, and
    the lists of what is ``revoked``: pairs of an issuer and a serial number. ``listed``
    is when the newest list of each issuer was made. ``warnings`` are what may be used,
    and is hardly meant.
    """

    context: ServerContext | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    grounds: Grounds = field(default_factory=Grounds, repr=False)
    revoked: frozenset[tuple[x509.Name, int]] = field(default=frozenset(), repr=False)
    listed: Mapping[x509.Name, datetime] = field(default_factory=dict, repr=False)
    tokens: Tokens = field(default_factory=Tokens)
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Config) -> Self:
        """Read all files that ``config`` names. Blocks.

        Raises:
            UsageError: one cannot be used; with its path, and why.

        """
        context = certificate = None
        authorities: tuple[x509.Certificate, ...] = ()
        if config.tls_cert is not None:
            check_unread_by_others(config.tls_key or config.tls_cert)
            context = server_context(
                cert=config.tls_cert,
                key=config.tls_key,
                client_ca=config.tls_client_ca,
                crl=config.tls_crl,
            )
            certificate = _certificate(config.tls_cert)
            if config.tls_client_ca is not None:
                authorities = _authorities(config.tls_client_ca)
        lists = () if config.tls_crl is None else _lists(config.tls_crl, authorities)
        grounds = Grounds(
            authorities=frozenset(
                each.public_bytes(Encoding.DER) for each in authorities
            ),
            lists=frozenset(_summary(each) for each in lists),
        )
        if context is not None:
            context.grounds = grounds
        return cls(
            context=context,
            names=() if certificate is None else _names(certificate, config.tls_cert),
            grounds=grounds,
            revoked=frozenset(
                (each.issuer, entry.serial_number) for each in lists for entry in each
            ),
            listed={
                each.issuer: each.last_update_utc
                for each in sorted(lists, key=lambda each: each.last_update_utc)
            },
            tokens=(
                Tokens()
                if config.token_file is None
                else Tokens.read(config.token_file)
            ),
            warnings=(
                *warnings_of_certificate(certificate, config.tls_cert),
                *warnings_of_authorities(authorities, config.tls_client_ca),
                *warnings_of_lists(lists, config.tls_crl, authorities),
            ),
        )

    def setbacks(self, before: Trust) -> Iterator[str]:
        """Say which lists are no newer than those of ``before``, and revoke less.

        One that is newer may leave out what has expired.
        """
        gone = before.revoked - self.revoked
        for issuer, made in before.listed.items():
            missing = sum(by == issuer for by, _ in gone)
            if missing and (issuer not in self.listed or self.listed[issuer] <= made):
                yield (
                    f"there is no newer list of {told(issuer)} than the one before, and "
                    f"fewer are revoked: {missing} may come again"
                )

    def doubt(self, certificate: x509.Certificate, verified: Grounds) -> str:
        """Return why a client's certificate, once verified, does not hold; or nothing.

        ``verified`` is on what grounds, of authorities none where a proxy did it. Of the
        chain that was seen then the certificate alone is left: where something between
        it and what is known here may have gone, it is doubted, and can come again.
        """
        if (certificate.issuer, certificate.serial_number) in self.revoked:
            return "is revoked"
        now = datetime.now(UTC)
        if now > certificate.not_valid_after_utc:
            return "has expired"
        if now < certificate.not_valid_before_utc:
            return "is not valid yet"
        gone = not verified.authorities <= self.grounds.authorities
        issuer = certificate.issuer.public_bytes()
        changed = any(by != issuer for by, _ in self.grounds.lists - verified.lists)
        if (gone or changed) and not self._leads_to(certificate):
            if gone:
                return "is of an authority that is not known any more"
            return "is of an authority that may be revoked since: connect again"
        return ""

    def _leads_to(self, certificate: x509.Certificate, steps: int = _MAX_CHAIN) -> bool:
        """Return whether authorities alone, none of them revoked, vouch for it."""
        return any(
            (each.issuer, each.serial_number) not in self.revoked
            and (
                each.issuer == each.subject
                or (steps > 0 and self._leads_to(each, steps - 1))
            )
            for each in map(_parsed, self.grounds.authorities)
            if _is_issued_by(certificate, each)
        )


@lru_cache(maxsize=1024)
def _parsed(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


# Asked of each connection again and again.
@lru_cache(maxsize=8192)
def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def _summary(revocations: x509.CertificateRevocationList) -> tuple[bytes, bytes]:
    serials = sorted(entry.serial_number for entry in revocations)
    digest = hashlib.sha256(repr(serials).encode()).digest()
    return revocations.issuer.public_bytes(), digest


def _authorities(path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, *MALFORMED) as exc:
        raise UsageError(f"cannot read the authorities in {path}: {exc}") from exc


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *MALFORMED) as exc:
        raise UsageError(f"cannot read the certificate in {path}: {exc}") from exc


def _names(certificate: x509.Certificate, path: Path | None) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    except MALFORMED as exc:
        raise UsageError(f"cannot read the certificate in {path}: {exc}") from exc
    return tuple(extension.value.get_values_for_type(x509.DNSName))


def _lists(
    path: Path, authorities: Sequence[x509.Certificate]
) -> tuple[x509.CertificateRevocationList, ...]:
    try:
        lists = tuple(
            x509.load_pem_x509_crl(each) for each in _LIST.findall(path.read_bytes())
        )
        for each in lists:
            each.issuer  # noqa: B018 - what is wrong with it is seen here
            len(each)
            signers = [by for by in authorities if by.subject == each.issuer]
            if signers and not any(_is_signed_by(each, by) for by in signers):
                raise UsageError(
                    f"the list of {told(each.issuer)} in {path} is not signed by it"
                )
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except MALFORMED as exc:
        raise UsageError(f"cannot read the revocations in {path}: {exc}") from exc
    if not lists:
        raise UsageError(f"{path} holds no list of revocations (PEM)")
    return lists


def _is_signed_by(
    revocations: x509.CertificateRevocationList, authority: x509.Certificate
) -> bool:
    try:
        # Of a kind that signs; what else is there raises TypeError.
        return revocations.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except UnsupportedAlgorithm:
        return True  # OpenSSL may know it, and judges in any case
    except MALFORMED:
        return False
