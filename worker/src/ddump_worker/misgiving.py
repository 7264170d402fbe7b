"""What may be used of certificates and lists, and is hardly meant.

With each of these somebody will be refused by TLS, who is not told why in such words.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ddump_common.malformed import MALFORMED
from ddump_common.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "told",
    "warnings_of_authorities",
    "warnings_of_certificate",
    "warnings_of_lists",
]

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def warnings_of_certificate(
    certificate: x509.Certificate | None, path: Path | None
) -> Iterator[str]:
    """Say why clients will refuse the worker's own certificate."""
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
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        yield (
            f"the worker's own certificate in {path} is not for servers (its extended "
            "key usage has no serverAuth): clients refuse it"
        )


def warnings_of_authorities(
    authorities: Iterable[x509.Certificate], path: Path | None
) -> Iterator[str]:
    """Say whose certificates will be refused with them."""
    now = datetime.now(UTC)
    for each in authorities:
        name = f"{told(each.subject)} in {path}"
        constraints = _extension(each, x509.BasicConstraints)
        # One of before version 3 has nothing that says it.
        if each.version is x509.Version.v3 and not (constraints and constraints.ca):
            yield f"{name} is not an authority: whose certificate it signed is refused"
        if now > each.not_valid_after_utc:
            yield (
                f"the authority {name} has expired on "
                f"{each.not_valid_after_utc:%Y-%m-%d}: its clients are refused"
            )
        if now < each.not_valid_before_utc:
            yield (
                f"the authority {name} is not valid before "
                f"{each.not_valid_before_utc:%Y-%m-%d}: its clients are refused"
            )


def warnings_of_lists(
    lists: Sequence[x509.CertificateRevocationList],
    path: Path | None,
    authorities: Iterable[x509.Certificate],
) -> Iterator[str]:
    """Say whom these lists of revocations keep out beside those on them."""
    now = datetime.now(UTC)
    for each in lists:
        if each.next_update_utc is not None and now > each.next_update_utc:
            yield (
                f"the list of {told(each.issuer)} in {path} was to be renewed by "
                f"{each.next_update_utc:%Y-%m-%d}: by TLS its clients are refused"
            )
        if now < each.last_update_utc:
            yield (
                f"the list of {told(each.issuer)} in {path} is not valid before "
                f"{each.last_update_utc:%Y-%m-%d %H:%M} UTC: by TLS its clients are "
                "refused"
            )
    if not lists:
        return
    subjects = {each.subject for each in authorities}
    for missing in subjects.difference(each.issuer for each in lists):
        yield f"{path} has no list of {told(missing)}: its clients are refused"


def told(name: x509.Name) -> str:
    """Return who that is, for a terminal."""
    try:
        return printable(name.rfc4514_string())
    except MALFORMED:
        return "an authority whose name cannot be read"


def _extension(
    certificate: x509.Certificate, kind: type[_Extension]
) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, *MALFORMED):  # OpenSSL judges what cannot be read
        return None
