"""Why the other side does not take the certificate that it was shown.

A worker says so by an alert of TLS, nginx in front of one by an answer that has the words
of OpenSSL. Neither says which certificate it was: that is ours, and known here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ddump_common.text import printable
from ddump_common.timespec import format_time

if TYPE_CHECKING:
    from .certificate import Certificate

__all__ = ["REJECTING_ALERTS", "told_rejection"]

_UNKNOWN = "it does not know its authority, {0.issuer}"
_EXPIRED = "it has expired"
_EARLY = "it is not valid yet"
_REVOKED = "it is revoked, or its authority is"
_NOT_A_CLIENTS = "it is not one for a client"
_UNTOLD = "for a reason that its log tells"

_ALERTS = {
    "unknown ca": _UNKNOWN,
    "certificate expired": _EXPIRED,
    "certificate revoked": _REVOKED,
    "unsupported certificate": _NOT_A_CLIENTS,
    "bad certificate": _UNTOLD,
    "certificate unknown": _UNTOLD,
    "decrypt error": _UNTOLD,
}
# As X509_verify_cert_error_string() has them in several versions.
_WORDS = {
    "certificate has expired": _EXPIRED,
    "certificate is not yet valid": _EARLY,
    "certificate revoked": _REVOKED,
    "unsupported certificate purpose": _NOT_A_CLIENTS,
    "unsuitable certificate purpose": _NOT_A_CLIENTS,
    "unable to get issuer certificate": _UNKNOWN,
    "unable to get local issuer certificate": _UNKNOWN,
    "unable to verify the first certificate": _UNKNOWN,
    "self signed certificate": _UNKNOWN,
    "self-signed certificate": _UNKNOWN,
    "self signed certificate in certificate chain": _UNKNOWN,
    "self-signed certificate in certificate chain": _UNKNOWN,
    "unable to get certificate CRL": f"{_UNKNOWN}, or what that has revoked",
    "CRL has expired": "it may be revoked: the list there is out of date",
    "CRL is not yet valid": "it may be revoked: the list there is not valid yet",
}

REJECTING_ALERTS = frozenset(_ALERTS)
"""The alerts of TLS (RFC 8446, 6.2) by which a certificate is not taken."""


def told_rejection(why: str, own: Certificate) -> str:
    """Return that ``own`` is not taken, and why, of an alert or of OpenSSL's words."""
    known = _ALERTS.get(why, _WORDS.get(why))
    reason = printable(why, limit=300) if known is None else known.format(own)
    now_ns = time.time_ns()
    # There is no alert for one that is not valid yet: our own clock knows.
    untold = known in {_UNTOLD, None}
    if known == _EARLY or (untold and own.begin_ns > now_ns):
        reason = f"it is not valid before {format_time(own.begin_ns)}"
    elif known == _EXPIRED and own.end_ns > now_ns:
        reason = "it has expired there, or its authority has"
        if why in _ALERTS:
            reason += ", or its list of revocations"
    elif known == _EXPIRED:
        reason = f"it has expired, it was valid until {format_time(own.end_ns)}"
    return f"it does not take my certificate ({own.subject}): {reason}"
