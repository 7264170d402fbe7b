"""Bearer tokens: a file with NAME:TOKEN a line, of which only digests are kept.

A token is what a program shows that has no certificate (RFC 6750). What is kept of one,
and what the log says of it, does not tell it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ddump_common.errors import UsageError
from ddump_common.units import MEBIBYTES

from .private import read_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Tokens", "digest"]

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TOKEN = re.compile(rb"[!-~]{16,1024}")  # what a header takes, and not a word to guess
_MAX_FILE = MEBIBYTES


def digest(token: bytes) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token).digest()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The digest of each token, by its name."""

    digests: dict[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read NAME:TOKEN a line; empty lines, and those with ``#`` first, are passed over.

        Raises:
            UsageError: a line that is something else; by number, and without the token.

        """
        digests: dict[str, bytes] = {}
        for number, line in enumerate(data.splitlines(), start=1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            label, _, token = text.partition(b":")
            name = label.decode(errors="replace")
            # By number alone: who swaps them has a token for a name.
            if not _NAME.fullmatch(name) or not _TOKEN.fullmatch(token):
                raise UsageError(
                    f"line {number} is not NAME:TOKEN",
                    hint="a name is up to 64 letters, digits and . _ @ -, a token 16 to "
                    "1024 visible ASCII characters, as of openssl rand -hex 32",
                )
            if name in digests:
                raise UsageError(f"line {number}: the name is there already")
            if digest(token) in digests.values():
                raise UsageError(f"line {number}: the token is there already")
            digests[name] = digest(token)
        return cls(digests)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that nobody else can read.

        Raises:
            UsageError: others can, or it says something else than tokens.

        """
        data = read_private(path, max_bytes=_MAX_FILE)
        try:
            return cls.parse(data)
        except UsageError as exc:
            raise UsageError(f"{path}: {exc.message}", hint=exc.hint) from exc

    def name_of(self, shown: bytes) -> str | None:
        """Return whose token has the digest ``shown``.

        All are compared, in a time that does not tell how much of one was right.
        """
        found = None
        for name, kept in self.digests.items():
            if hmac.compare_digest(kept, shown):
                found = name
        return found

    def holds(self, name: str, shown: bytes) -> bool:
        """Return whether ``name`` still has the token of this digest."""
        return hmac.compare_digest(self.digests.get(name, b""), shown)
