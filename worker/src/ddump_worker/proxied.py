"""What a proxy says of its client: its certificate, its user, its address.

Whoever calls this has made sure that it is the proxy who speaks. A field that is there
twice, or that cannot be read, is refused: the proxy does not set it as it should.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote_to_bytes

from cryptography import x509

from ddump_common.api import ADDRESS_HEADER, CERTIFICATE_HEADER, USER_HEADER
from ddump_common.errors import UsageError
from ddump_common.malformed import MALFORMED

from .identity import peer_address

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

__all__ = ["Proxied"]

_MAX_USER = 256
_ESCAPED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")
_ADDRESS = re.compile(r"\[?(?P<host>[0-9A-Fa-f:.]+)\]?:(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    """What the proxy says; ``address`` is ``unix`` where it says none."""

    certificate: x509.Certificate | None
    user: str
    address: str

    @classmethod
    def parse(cls, headers: CIMultiDictProxy[str]) -> Self:
        """Read the fields; one that is empty is as if it were not there.

        Raises:
            UsageError: one is there twice, or is not what it should be.

        """
        return cls(
            certificate=_certificate(_single(headers, CERTIFICATE_HEADER)),
            user=_user(_single(headers, USER_HEADER)),
            address=_address(_single(headers, ADDRESS_HEADER)),
        )


def _single(headers: CIMultiDictProxy[str], name: str) -> str:
    values = headers.getall(name, [])
    if len(values) > 1:
        raise UsageError(f"{name} is there {len(values)} times")
    return values[0] if values else ""


def _certificate(text: str) -> x509.Certificate | None:
    if not text:
        return None
    if not _ESCAPED.fullmatch(text):
        raise UsageError(
            f"{CERTIFICATE_HEADER} is not escaped",
            hint="in nginx that is $ssl_client_escaped_cert",
        )
    try:
        return x509.load_pem_x509_certificate(unquote_to_bytes(text))
    except MALFORMED as exc:
        raise UsageError(f"{CERTIFICATE_HEADER} holds no certificate") from exc


def _user(text: str) -> str:
    if len(text) > _MAX_USER or not text.isprintable():
        raise UsageError(f"{USER_HEADER} is not up to {_MAX_USER} printable characters")
    return text


def _address(text: str) -> str:
    if text in ("", "unix::"):  # the latter is what nginx has for its own unix sockets
        return "unix"
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise _bad_address()
    try:
        host = ipaddress.ip_address(match["host"])
    except ValueError as exc:
        raise _bad_address() from exc
    return peer_address((str(host), int(match["port"])))


def _bad_address() -> UsageError:
    return UsageError(f"{ADDRESS_HEADER} is not ADDRESS:PORT")
