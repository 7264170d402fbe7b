"""Who asks: typed identities, and what each was known by.

A user that is named like a certificate's subject is not that certificate: the kind is
part of the identity, and ``str`` shows it: ``cert:CN=alice``, ``user:alice``,
``token:backup``, ``anonymous``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddump_common.tls import Grounds

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = [
    "ANONYMOUS",
    "Client",
    "Identity",
    "IdentityKind",
    "host_of",
    "is_subject",
    "peer_address",
]


# As cryptography writes names: types by RFC 4514, 3, or as numbers; in a value with a
# backslash what means something, and a space at an end.
_TYPE = r"(?:CN|L|ST|O|OU|C|STREET|DC|UID|[0-9]+(?:\.[0-9]+)+)"
_CHARACTER = r"""(?:[^\\",+;<>\0 ]|\\(?:[\\",+;<># ]|00))"""
_ATTRIBUTE = f"{_TYPE}=(?:{_CHARACTER}(?: *{_CHARACTER})*)?"
_SUBJECT = re.compile(f"{_ATTRIBUTE}(?:[,+]{_ATTRIBUTE})*")


class IdentityKind(enum.StrEnum):
    """How somebody was known."""

    CERT = "cert"
    USER = "user"
    TOKEN = "token"  # noqa: S105 - no password
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A kind and a name: a subject as RFC 4514 has it, a user, the name of a token."""

    kind: IdentityKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else f"{self.kind}"


ANONYMOUS = Identity(kind=IdentityKind.ANONYMOUS)


def is_subject(text: str) -> bool:
    """Return whether a certificate's subject, as an ``Identity`` has it, may be ``text``.

    There are other ways to write one, by which nobody is ever known.
    """
    return _SUBJECT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who makes a request, from where, and what it showed for it.

    ``address`` is ``ADDRESS:PORT`` as people write it, or ``unix``. The rest is kept to
    see whether it still holds when that is asked again: a certificate, whatever the
    client is known by, and the ``grounds`` on which the worker verified it (which
    authorities the proxy knows, it does not say); the digest of a token.
    """

    identity: Identity
    address: str
    certificate: Certificate | None = field(default=None, repr=False)
    grounds: Grounds = field(default_factory=Grounds, repr=False)
    token_digest: bytes | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """The address without its port."""
        return host_of(self.address)


def peer_address(peer: object) -> str:
    """Return the address of a socket's other side as people write it."""
    if not isinstance(peer, tuple):
        return "unix"
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """Return an address without its port; ``unix`` has none."""
    return address.rpartition(":")[0] or address
