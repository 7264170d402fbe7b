"""What a ring keeps, as the header of its answers says it.

``Ddump-Ring`` is a dictionary of structured fields (RFC 9651)::

    Ddump-Ring: link=sll, recording, adopting

Who goes on out of a ring where a live stream broke has to know whether it has all that
this would have brought, and needs no other permission for that than to be let in there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .api import Link
from .errors import UsageError
from .fields import parse_dictionary

__all__ = ["RingNote"]

_FLAGS = ("recording", "partial", "adopting")
_TRUE = ("", "?1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RingNote:
    """A ring of link type ``link``, the value of ``Ddump-Ring``.

    ``recording`` is whether it is recorded now, and without trouble. ``partial`` is
    whether it does not keep all that a live capture would have: it is recorded through a
    filter, from some interfaces, or cut. ``adopting`` is whether what an earlier run
    left is still being looked through.
    """

    link: Link
    recording: bool = False
    partial: bool = False
    adopting: bool = False

    def serialize(self) -> str:
        """Return the header's value."""
        flags = [name for name in _FLAGS if getattr(self, name)]
        return ", ".join([f"link={self.link}", *flags])

    @classmethod
    def parse(cls, value: str) -> RingNote:
        """Read a header's value; members that are not known are left alone.

        Raises:
            UsageError: it is not such a value.

        """
        members = parse_dictionary(value)
        link = members.get("link", "").partition(";")[0]
        if link not in set(Link):
            raise UsageError(f"{link!r} is no link type of a ring")
        flags = {
            name: members[name].partition(";")[0] in _TRUE
            for name in _FLAGS
            if name in members
        }
        return cls(link=Link(link), **flags)
