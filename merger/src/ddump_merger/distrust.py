"""Why the certificate that a worker shows is not trusted.

OpenSSL says why, but shows nothing of what it saw. So the worker is asked for its
certificate once more, and nothing is sent to it.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from ddump_common.text import printable
from ddump_common.timespec import format_time

from .certificate import Certificate
from .resolver import Resolver

if TYPE_CHECKING:
    from .target import HttpTarget

__all__ = ["presented", "why_not_trusted"]

# It is only for the message, and its host has answered just now.
_PATIENCE_SECONDS = 2.0


class _Fault(enum.IntEnum):
    """The X509_V_ERR_* of OpenSSL's ``x509_vfy.h`` that are told in words of our own."""

    ISSUER_UNKNOWN = 2
    NO_LIST = 3
    NOT_YET_VALID = 9
    EXPIRED = 10
    LIST_NOT_YET_VALID = 11
    LIST_EXPIRED = 12
    SELF_SIGNED = 18
    ROOT_UNKNOWN = 19
    ISSUER_NOT_FOUND = 20
    LEAF_UNVERIFIED = 21
    REVOKED = 23
    WRONG_PURPOSE = 26
    WRONG_HOST = 62
    WRONG_ADDRESS = 64


async def presented(target: HttpTarget) -> Certificate | None:
    """Return what a worker shows to whoever comes; ``None`` when that cannot be had."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    data = None
    with suppress(OSError, ValueError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            addresses = await Resolver().resolve(target.host, target.port)
            transport, _ = await loop.create_connection(
                asyncio.Protocol, addresses[0]["host"], target.port,
                ssl=context, server_hostname=target.address,
            )  # fmt: skip
            try:
                shown = transport.get_extra_info("ssl_object")
                data = shown.getpeercert(binary_form=True)
            finally:
                transport.abort()
        return None if data is None else Certificate.parse(data)
    return None


def why_not_trusted(
    error: ssl.SSLCertVerificationError,
    host: str,
    shown: Certificate | None,
    *,
    now_ns: int,
) -> tuple[str, str]:
    """Return why the certificate of ``host`` is not trusted, and what may help.

    ``shown`` is what it said when it was asked again.
    """
    code = error.verify_code
    subject = "" if shown is None or not shown.subject else f" ({shown.subject})"
    issuer = "" if shown is None else f", {shown.issuer}"
    named = f"the certificate of {host}{subject}"
    match code:
        case _Fault.EXPIRED | _Fault.NOT_YET_VALID:
            return _when(named, code, shown, now_ns)
        case _Fault.WRONG_HOST | _Fault.WRONG_ADDRESS:
            whose = "" if shown is None else f", but for {shown.told_names}"
            # A common name that is right does not count.
            hint = "" if shown is None or shown.names else "it has no alternative names"
            return f"{named} is not for {host}{whose}", hint
        case _Fault.SELF_SIGNED:
            return f"{named} is self-signed, and not trusted", "see --ca"
        case (
            _Fault.ISSUER_UNKNOWN
            | _Fault.ROOT_UNKNOWN
            | _Fault.ISSUER_NOT_FOUND
            | _Fault.LEAF_UNVERIFIED
        ):
            return f"{named} is of an unknown authority{issuer}", "see --ca"
        case _Fault.REVOKED:
            return f"{named} is revoked, or its authority is", ""
        case _Fault.WRONG_PURPOSE:
            return f"{named} is not one for a server", ""
        case _Fault.NO_LIST:
            whose = "its authority" if shown is None else shown.issuer
            told = f"--crl has no list of {whose}, or of an authority above it"
            return f"{named} may be revoked: {told}", ""
        case _Fault.LIST_EXPIRED | _Fault.LIST_NOT_YET_VALID:
            old = (
                "is out of date" if code == _Fault.LIST_EXPIRED else "is not valid yet"
            )
            return f"{named} may be revoked: a list in --crl {old}", ""
        case _:
            reason = printable(error.verify_message or str(error), limit=300)
            return f"{named} is not valid: {reason}", ""


def _when(
    named: str, code: int, shown: Certificate | None, now_ns: int
) -> tuple[str, str]:
    """Return when a certificate was valid; it may be that of its authority, too."""
    expired = code == _Fault.EXPIRED
    if shown is None:
        what = "has expired" if expired else "is not valid yet"
        return f"{named}, or of its authority, {what}", ""
    if expired and shown.end_ns <= now_ns:
        return (
            f"{named} has expired: it was valid until {format_time(shown.end_ns)}",
            "",
        )
    if not expired and shown.begin_ns > now_ns:
        begin = format_time(shown.begin_ns)
        return f"{named} is not valid before {begin}", "is a clock wrong?"
    what = "has expired" if expired else "is not valid yet"
    return f"the authority of {named}, {shown.issuer}, {what}", ""
