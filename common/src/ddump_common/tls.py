"""TLS contexts."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["client_context"]


def client_context(
    *, ca: Path | None = None, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a context that verifies the server's chain and name, TLS 1.2 and up.

    Args:
        ca: PEM file of the authorities to trust instead of the system's.
        cert: PEM chain of the client's own certificate.
        key: its private key, when it is not in ``cert``.

    Raises:
        UsageError: a file cannot be read or does not hold what it should.

    """
    if key is not None and cert is None:
        raise UsageError("a key without a certificate", hint="give --cert as well")
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"cannot use the authorities in {ca}: {_reason(exc)}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        try:
            # An empty password makes an encrypted key an error, not a prompt.
            context.load_cert_chain(cert, key, password="")
        except (OSError, ssl.SSLError, ValueError) as exc:
            files = f"{cert} with {key}" if key else f"{cert}"
            hint = "" if key else "the private key may be in another file: --key"
            raise UsageError(
                f"cannot use the certificate {files}: {_reason(exc)}", hint=hint
            ) from exc
    return context


def _reason(exc: Exception) -> str:
    reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None)
    return str(reason or exc)
