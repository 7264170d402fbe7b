"""What the worker believes: all that its files say of certificates and tokens.

They are read together, at the start and when the worker is told to (SIGHUP); what is
read is either all right, or not used at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from ddump_common.errors import UsageError
from ddump_common.text import printable
from ddump_common.tls import server_context

from .private import check_unread_by_others
from .tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ddump_common.tls import ServerContext

    from .config import Config

__all__ = ["Trust"]

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The files of one moment, read.

    ``context`` is ``None`` where the worker does not serve by TLS; ``names`` are those
    of its own certificate; ``authorities`` the certificates (DER) of those that clients'
    certificates must come from; ``revoked`` pairs of an issuer and a serial number.
    ``warnings`` are what may be used, and is hardly meant.
    """

    context: ServerContext | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    authorities: frozenset[bytes] = field(default=frozenset(), repr=False)
    revoked: frozenset[tuple[x509.Name, int]] = field(default=frozenset(), repr=False)
    tokens: Tokens = field(default_factory=Tokens)
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Config) -> Self:
        """Read all files that ``config`` names. Blocks.

        Raises:
            UsageError: one cannot be used; with its path, and why.

        """
        context = certificate = None
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
                context.authorities = _authorities(config.tls_client_ca)
        authorities = frozenset() if context is None else context.authorities
        lists = () if config.tls_crl is None else _lists(config.tls_crl)
        return cls(
            context=context,
            names=() if certificate is None else _names(certificate, config.tls_cert),
            authorities=authorities,
            revoked=frozenset(
                (each.issuer, entry.serial_number) for each in lists for entry in each
            ),
            tokens=(
                Tokens()
                if config.token_file is None
                else Tokens.read(config.token_file)
            ),
            warnings=(
                *_warnings_of(certificate, config.tls_cert),
                *_warnings_of_lists(lists, config.tls_crl, authorities),
            ),
        )

    def doubt(
        self, certificate: x509.Certificate, verified_by: frozenset[bytes]
    ) -> str:
        """Return why a client's certificate, once verified, does not hold; or nothing.

        ``verified_by`` are the authorities of that time, none where a proxy verified it.
        """
        if (certificate.issuer, certificate.serial_number) in self.revoked:
            return "is revoked"
        now = datetime.now(UTC)
        if now > certificate.not_valid_after_utc:
            return "has expired"
        if now < certificate.not_valid_before_utc:
            return "is not valid yet"
        if not verified_by <= self.authorities and not self._signs(certificate):
            # Its chain may have led to one that is gone. The client can come again.
            return "is of an authority that is not known any more"
        return ""

    def _signs(self, certificate: x509.Certificate) -> bool:
        for each in self.authorities:
            try:
                certificate.verify_directly_issued_by(
                    x509.load_der_x509_certificate(each)
                )
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
        return False


def _authorities(path: Path) -> frozenset[bytes]:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot read the authorities in {path}: {exc}") from exc
    return frozenset(each.public_bytes(Encoding.DER) for each in found)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot read the certificate in {path}: {exc}") from exc


def _names(certificate: x509.Certificate, path: Path | None) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    except ValueError as exc:
        raise UsageError(f"cannot read the certificate in {path}: {exc}") from exc
    return tuple(extension.value.get_values_for_type(x509.DNSName))


def _lists(path: Path) -> tuple[x509.CertificateRevocationList, ...]:
    try:
        lists = tuple(
            x509.load_pem_x509_crl(each) for each in _LIST.findall(path.read_bytes())
        )
        for each in lists:
            each.issuer  # noqa: B018 - what is wrong with it is seen here
            len(each)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"cannot read the revocations in {path}: {exc}") from exc
    if not lists:
        raise UsageError(f"{path} holds no list of revocations (PEM)")
    return lists


def _warnings_of(
    certificate: x509.Certificate | None, path: Path | None
) -> Iterator[str]:
    if certificate is None:
        return
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        yield (
            f"the worker's own certificate in {path} has expired on "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}: clients refuse it"
        )
    if now < certificate.not_valid_before_utc:
        yield (
            f"the worker's own certificate in {path} is not valid before "
            f"{certificate.not_valid_before_utc:%Y-%m-%d}: clients refuse it"
        )


def _warnings_of_lists(
    lists: Sequence[x509.CertificateRevocationList],
    path: Path | None,
    authorities: Iterable[bytes],
) -> Iterator[str]:
    now = datetime.now(UTC)
    for each in lists:
        if each.next_update_utc is not None and now > each.next_update_utc:
            yield (
                f"the list of {_told(each.issuer)} in {path} was to be renewed by "
                f"{each.next_update_utc:%Y-%m-%d}: by TLS its clients are refused"
            )
    if not lists:
        return
    subjects = {x509.load_der_x509_certificate(each).subject for each in authorities}
    for missing in subjects.difference(each.issuer for each in lists):
        yield f"{path} has no list of {_told(missing)}: its clients are refused"


def _told(name: x509.Name) -> str:
    return printable(name.rfc4514_string())
