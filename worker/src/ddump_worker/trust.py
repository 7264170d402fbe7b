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
from ddump_common.tls import server_context

from .private import check_unread_by_others
from .tokens import Tokens

if TYPE_CHECKING:
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
    """

    context: ServerContext | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    authorities: frozenset[bytes] = field(default=frozenset(), repr=False)
    revoked: frozenset[tuple[x509.Name, int]] = field(default=frozenset(), repr=False)
    tokens: Tokens = field(default_factory=Tokens)

    @classmethod
    def read(cls, config: Config) -> Self:
        """Read all files that ``config`` names. Blocks.

        Raises:
            UsageError: one cannot be used; with its path, and why.

        """
        context = None
        if config.tls_cert is not None:
            check_unread_by_others(config.tls_key or config.tls_cert)
            context = server_context(
                cert=config.tls_cert,
                key=config.tls_key,
                client_ca=config.tls_client_ca,
                crl=config.tls_crl,
            )
            if config.tls_client_ca is not None:
                context.authorities = _authorities(config.tls_client_ca)
        return cls(
            context=context,
            names=() if config.tls_cert is None else _names(config.tls_cert),
            authorities=frozenset() if context is None else context.authorities,
            revoked=(
                frozenset() if config.tls_crl is None else _revoked(config.tls_crl)
            ),
            tokens=(
                Tokens()
                if config.token_file is None
                else Tokens.read(config.token_file)
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


def _names(path: Path) -> tuple[str, ...]:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot read the certificate in {path}: {exc}") from exc
    return tuple(extension.value.get_values_for_type(x509.DNSName))


def _revoked(path: Path) -> frozenset[tuple[x509.Name, int]]:
    try:
        lists = [
            x509.load_pem_x509_crl(each) for each in _LIST.findall(path.read_bytes())
        ]
        if not lists:
            raise UsageError(f"{path} holds no list of revocations (PEM)")
        return frozenset(
            (each.issuer, entry.serial_number) for each in lists for entry in each
        )
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"cannot read the revocations in {path}: {exc}") from exc
