"""Whom the command believes over TLS, and what it shows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    from .certificate import Certificate

__all__ = ["Trust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What to speak TLS with; ``own`` is the certificate that is shown to workers."""

    context: ssl.SSLContext
    own: Certificate | None = None
