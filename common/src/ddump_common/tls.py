"""TLS contexts, of both sides."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Grounds", "ServerContext", "client_context", "server_context"]

_MAX_PEM_BYTES = 1 << 20


def client_context(
    *,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    crl: Path | None = None,
    insecure: bool = False,
) -> ssl.SSLContext:
    """Return a context that verifies the server's chain and name, TLS 1.2 and up. Blocks.

    The name has to be one of its alternative names: a common name is none (RFC 9525).

    Args:
        ca: PEM file of the authorities to trust instead of the system's.
        cert: PEM chain of the client's own certificate.
        key: its private key, when it is not in ``cert``; nobody else can read the file.
        crl: PEM file of what the authorities have revoked; a server is not trusted if an
            authority of its chain has no list in it.
        insecure: verify nothing.

    Raises:
        UsageError: a file cannot be read or does not hold what it should; or it is not
            used, as nothing is verified.

    """
    if key is not None and cert is None:
        raise UsageError("a key without a certificate", hint="give --cert as well")
    if insecure and not (ca is crl is None):
        raise UsageError(
            "--insecure verifies nothing", hint="give it without --ca and --crl"
        )
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"cannot use the authorities in {ca}: {_reason(exc)}") from exc
    if ca is not None and not context.cert_store_stats()["x509"]:
        raise UsageError(f"cannot use the authorities in {ca}: there is none")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if crl is not None:
        _load_revocations(context, crl)
    if cert is not None:
        _load_chain(context, cert, key)
        _check_private(key or cert)
    return context


def _check_private(key: Path) -> None:
    status = key.stat()
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise UsageError(f"{key} can be read by others", hint=f"chmod 600 {key}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What the certificates of clients are verified by, to see what has changed since.

    ``authorities`` are certificates (DER) that theirs must come from. ``lists`` has, of
    each list of revocations, its issuer (DER) and a digest of what it revokes.
    """

    authorities: frozenset[bytes] = frozenset()
    lists: frozenset[tuple[bytes, bytes]] = frozenset()


class ServerContext(ssl.SSLContext):
    """A server's context whose handshakes say what to tell the client when they fail.

    An ``SSLError`` of one has the attribute ``alert``: the bytes that tell the client why.
    Event loops close a connection without sending them, and the client could only guess.
    """

    grounds = Grounds()
    """What it verifies clients by, for whoever asks; set by whoever read the files."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begin a connection that talks through two buffers."""
        wrapped = super().wrap_bio(
            incoming, outgoing, server_side, server_hostname, session
        )
        assert isinstance(wrapped, _Alerting)  # noqa: S101 - see server_context()
        wrapped.outgoing = outgoing
        return wrapped


class _Alerting(ssl.SSLObject):
    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as exc:
            exc.alert = self.outgoing.read()  # type: ignore[attr-defined] # documented above
            raise


def server_context(
    *,
    cert: Path,
    key: Path | None = None,
    client_ca: Path | None = None,
    crl: Path | None = None,
) -> ServerContext:
    """Return the context of a server, TLS 1.2 and up. Blocks.

    Tickets are not given: who resumes a session does not show its certificate again.
    (One of TLS 1.2 may still be resumed by its number, but by this context alone.)

    Args:
        cert: PEM chain of the server's certificate.
        key: its private key, when it is not in ``cert``.
        client_ca: PEM file of the authorities that clients' certificates must come from;
            without it none is asked for.
        crl: PEM file of what these have revoked, and all authorities between them and
            a client: who comes by one without a list is refused.

    Raises:
        UsageError: a file cannot be read or does not hold what it should.

    """
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Alerting
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _load_chain(context, cert, key)
    if client_ca is None:
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    _load_authorities(context, client_ca)
    if crl is not None:
        _load_revocations(context, crl)
    return context


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"cannot use the authorities in {path}: {_reason(exc)}"
        ) from exc
    if not context.cert_store_stats()["x509"]:
        raise UsageError(f"cannot use the authorities in {path}: there is none")


def _load_revocations(context: ssl.SSLContext, path: Path) -> None:
    """Have no certificate of the other side's chain be on a list of revocations."""
    before = context.cert_store_stats()
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"cannot use the revocations in {path}: {_reason(exc)}"
        ) from exc
    after = context.cert_store_stats()
    if after["x509"] != before["x509"]:
        # OpenSSL has one store for all, and would trust them.
        raise UsageError(
            f"cannot use the revocations in {path}: there are certificates as well"
        )
    if after["crl"] == before["crl"]:
        raise UsageError(f"cannot use the revocations in {path}: there are none")
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    try:
        # An empty password makes an encrypted key an error, not a prompt.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise _unusable(exc, cert, key) from exc


def _unusable(exc: Exception, cert: Path, key: Path | None) -> UsageError:
    """Return what is wrong with a pair that OpenSSL does not take.

    It says neither which file it is, nor that a key is encrypted.
    """
    cannot = f"cannot use the certificate {cert}"
    try:
        chain = _beginning(cert)
        if chain is not None and b"CERTIFICATE-----" not in chain:
            return UsageError(f"{cannot}: there is none in it")
        secret = chain
        if key is not None:
            cannot = f"cannot use the key {key}"
            secret = _beginning(key)
    except OSError as unreadable:
        return UsageError(f"{cannot}: {unreadable.strerror}")
    if "MISMATCH" in _reason(exc):
        return UsageError(f"{cannot}: the key is not that of the certificate in {cert}")
    if secret is None:
        return UsageError(f"{cannot}: {_reason(exc)}")
    if b"PRIVATE KEY-----" not in secret:
        other = "" if key else "the private key may be in another file: --key"
        return UsageError(f"{cannot}: there is no private key in it", hint=other)
    if b"ENCRYPTED" in secret:
        return UsageError(
            f"{cannot}: the private key is encrypted",
            hint=f"openssl pkey -in {key or cert} writes it without its password",
        )
    return UsageError(f"{cannot}: {_reason(exc)}")


def _beginning(path: Path) -> bytes | None:
    """Return a file's bytes; ``None`` of a pipe, which is read once."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        return file.read(_MAX_PEM_BYTES)


def _reason(exc: Exception) -> str:
    reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None)
    return str(reason or exc)
