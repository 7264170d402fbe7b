"""Structured fields (RFC 9651) in the headers of answers: dictionaries, as they are read.

They are written where their values are known. Sans-I/O; a header is anybody's bytes.
"""

from __future__ import annotations

import re

from .errors import UsageError

__all__ = ["MAX_HEADER_BYTES", "items", "parse_dictionary"]

MAX_HEADER_BYTES = 8190
"""What aiohttp takes of one header."""

# RFC 9651, 4.2: a dictionary of items and inner lists, with parameters or without.
# What is no string of ours is only passed over, so its grammar is wider here. No two
# parts that repeat can begin with the same character: there is one way to read it.
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_BARE = rf"""(?:%?{_STRING}|:[A-Za-z0-9+/=]*:|[^\s"%:,;()=][^\s",;()=]*)"""
_KEY = "[a-z*][a-z0-9_.*-]*"
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE})?)*"
_ITEM = rf"{_BARE}{_PARAMETERS}"
_INNER_LIST = rf"\( *((?:{_ITEM}(?: +{_ITEM})* *)?)\){_PARAMETERS}"
_MEMBER = re.compile(rf"({_KEY})(?:=(?:{_INNER_LIST}|({_ITEM}))|{_PARAMETERS})")
_ITEMS = re.compile(_ITEM)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def parse_dictionary(value: str) -> dict[str, str]:
    """Return the members of a dictionary by name: what is after ``=``, or in a list.

    It is empty for a member that is only named. Of members of one name the last counts,
    as RFC 9651 has it.

    Raises:
        UsageError: it is no dictionary, or has no member, or is too long for a header.

    """
    if len(value) > MAX_HEADER_BYTES:
        raise UsageError("a header that is too long")
    value = value.strip(" ")
    members: dict[str, str] = {}
    comma, at = None, 0
    while match := _MEMBER.match(value, at):
        members[match[1]] = match[2] or match[3] or ""
        comma = _COMMA.match(value, match.end())
        at = comma.end() if comma else match.end()
        if comma is None:
            break
    if comma is not None or at < len(value) or not members:
        raise UsageError("a header that is no structured field")
    return members


def items(members: str) -> list[str]:
    """Return the items of an inner list, as ``parse_dictionary`` found it."""
    return _ITEMS.findall(members)
