"""Bytes from the network, made safe for a terminal or a log."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]


def printable(text: str, *, limit: int = 500) -> str:
    r"""Return ``text`` on one line, without anything a terminal would act on.

    Control, format, surrogate and separator characters other than the plain space
    become ``\xNN`` escapes; what is longer than ``limit`` characters is cut and ends
    in an ellipsis.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char
        if char == " " or unicodedata.category(char)[0] not in "CZ"
        else _escape(char)
        for char in cut
    )


def _escape(char: str) -> str:
    code = ord(char)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
