"""What a certificate says of itself, for whoever has to mend what TLS refused."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ddump_common.errors import UsageError
from ddump_common.text import printable
from ddump_common.units import SECONDS

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

__all__ = ["Certificate"]

_LONGEST_NAME = 100
_MOST_NAMES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is shown of a certificate; times are since the epoch.

    Texts are safe for a terminal; whether they are true is for others to say.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    begin_ns: int
    end_ns: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one in DER, or the first in PEM.

        Raises:
            ValueError: it is none.

        """
        # It takes long to import, and few runs need it.
        from ddump_common.malformed import MALFORMED

        try:
            return cls._parse(data)
        except MALFORMED as exc:
            raise ValueError("no certificate that is right") from exc

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        from cryptography import x509

        if data.startswith(b"\x30"):
            found = x509.load_der_x509_certificate(data)
        else:
            found = x509.load_pem_x509_certificate(data)
        names: list[str] = []
        with suppress(x509.ExtensionNotFound):
            alternatives = found.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
            names += map(_dns_name, alternatives.get_values_for_type(x509.DNSName))
            names += map(str, alternatives.get_values_for_type(x509.IPAddress))
        return cls(
            subject=_name(found.subject.rfc4514_string()),
            issuer=_name(found.issuer.rfc4514_string()),
            names=tuple(map(_name, names)),
            begin_ns=_nanoseconds(found.not_valid_before_utc),
            end_ns=_nanoseconds(found.not_valid_after_utc),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the first one of a file. Blocks.

        Raises:
            UsageError: there is none.

        """
        try:
            return cls.parse(path.read_bytes())
        except OSError as exc:
            raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
        except ValueError as exc:
            raise UsageError(
                f"{path} begins with no certificate that is right"
            ) from exc

    @property
    def told_names(self) -> str:
        """What it is for."""
        shown = list(self.names[:_MOST_NAMES])
        if len(self.names) > _MOST_NAMES:
            shown.append("…")
        return ", ".join(shown) or "nobody"


def _dns_name(name: str) -> str:
    """Return what is told of a DNS name; one like an address is for no address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    return f"{name} as a DNS name"


def _name(text: str) -> str:
    return printable(text, limit=_LONGEST_NAME)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * SECONDS
