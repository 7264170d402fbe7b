"""A certificate authority for one test: nothing of it outlives the test's folder.

It is that of ``ddump pki``, so that all that is tested with certificates tests it too.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ddump_common import pki
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

_DAY_NS = 86400 * SECONDS
NOW = 0
"""How many days ago a certificate is made: it is valid."""
EXPIRED = 400
"""So long ago that it has expired."""
EARLY = -1
"""Tomorrow: it is not valid yet."""
_AUTHORITY = 500
"""An authority is older than all that it has made."""
ENDING = 397 - 3 / 86400
"""So long ago that it expires in two to three seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """PEM files of a certificate and of its key."""

    cert: Path
    key: Path

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert.read_bytes())

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text())


def no_version(der: bytes) -> bytes:
    """Return the certificate with a version that there is not."""
    return _replaced(der, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x61")


def no_text(der: bytes, name: str) -> bytes:
    """Return the certificate with bits in place of the text ``name`` of its subject."""
    text = name.encode()
    size = bytes([len(text)])
    return _replaced(der, b"\x0c" + size + text, b"\x03" + size + b"\0" + text[1:])


def _replaced(der: bytes, old: bytes, new: bytes) -> bytes:
    assert der.count(old) == 1
    return der.replace(old, new)


class Authority:
    """Signs certificates and writes them into ``folder``; its own is ``cert``.

    ``crl`` is its list of revocations, which is there from the beginning. What one
    ``under`` another makes has that one's certificate for it in its file as well.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "authority",
        *,
        path_length: int = 0,
        under: Authority | None = None,
    ) -> None:
        self._folder = folder
        now_ns = time.time_ns() - _AUTHORITY * _DAY_NS
        self._authority = pki.Authority.create(now_ns=now_ns, name=name)
        self._chain = b""
        if path_length or under is not None:
            self._authority = _signed(
                self._authority.credential,
                (self if under is None else under)._authority.credential,
                path_length,
            )
        if under is not None:
            self._chain = self._authority.credential.certificate_pem + under._chain
        self._revocations = pki.RevocationList()
        self._made = 0
        self.cert = folder / f"{name}.pem"
        self.crl = folder / f"{name}.crl.pem"
        self.cert.write_bytes(self._authority.credential.certificate_pem)
        self.revoke()

    def server(self, *names: str, made: int = NOW) -> Pair:
        """A server's pair for DNS names and addresses."""
        now_ns = time.time_ns() - made * _DAY_NS
        return self._write(names[0], self._authority.server(names, now_ns=now_ns))

    def client(self, name: str, *, made: float = NOW) -> Pair:
        """A client's pair; its subject is ``CN=name``."""
        now_ns = time.time_ns() - round(made * _DAY_NS)
        return self._write(name, self._authority.client(name, now_ns=now_ns))

    @property
    def certificate(self) -> x509.Certificate:
        return self._authority.credential.certificate

    def revoke(self, *pairs: Pair | Authority) -> None:
        """Revoke certificates: ``crl`` is written anew, as a whole."""
        now_ns = time.time_ns()
        serials = [pair.certificate.serial_number for pair in pairs]
        self._revocations = self._revocations.adding(serials, now_ns=now_ns)
        new = self.crl.with_suffix(".new")
        new.write_bytes(
            self._authority.sign_revocations(self._revocations, now_ns=now_ns)
        )
        new.replace(self.crl)

    def _write(self, name: str, credential: pki.Credential) -> Pair:
        self._made += 1  # one name may have several
        stem = f"{self.cert.stem}-{self._made}-{name}"
        pair = Pair(cert=self._folder / f"{stem}.pem", key=self._folder / f"{stem}.key")
        pair.cert.write_bytes(credential.certificate_pem + self._chain)
        pair.key.touch(0o600)
        pair.key.write_bytes(credential.key_pem)
        return pair


def older(authority: pki.Authority) -> pki.Authority:
    """Return the same authority as if it were old enough for what is ``EXPIRED``."""
    own = authority.credential
    return _signed(own, own, path_length=0, days=_AUTHORITY)


def _signed(
    credential: pki.Credential,
    issuer: pki.Credential,
    path_length: int,
    *,
    days: int = 0,
) -> pki.Authority:
    """Return an authority with that key and all else, but signed by ``issuer``.

    And so many ``days`` older.
    """
    made = credential.certificate
    builder = x509.CertificateBuilder(
        issuer.certificate.subject,
        made.subject,
        made.public_key(),
        made.serial_number,
        made.not_valid_before_utc - timedelta(days=days),
        made.not_valid_after_utc,
    ).add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    )
    for each in made.extensions:
        if not isinstance(each.value, x509.BasicConstraints):
            builder = builder.add_extension(each.value, critical=each.critical)
    signed = builder.sign(issuer.key, hashes.SHA256())
    return pki.Authority(
        credential=pki.Credential(certificate=signed, key=credential.key)
    )


def self_signed(folder: Path, name: str) -> Pair:
    """Return a pair that no authority has signed: its issuer is itself."""
    made = pki.Authority.create(now_ns=time.time_ns(), name=name).credential
    pair = Pair(cert=folder / "self-signed.pem", key=folder / "self-signed.key")
    pair.cert.write_bytes(made.certificate_pem)
    pair.key.touch(0o600)
    pair.key.write_bytes(made.key_pem)
    return pair
