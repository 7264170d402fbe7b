"""Whether a request was meant for this worker, and not sent by another's web page.

A page can have a browser ask any address. With a name of its own that it lets point to
the worker (DNS rebinding) it could even read the answer, were it not that the browser
then says that name in ``Host``. An address there cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ddump_common.errors import UsageError
from ddump_common.text import printable

from .denial import ForbiddenError, MisdirectedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ServedNames", "check_origin", "single_host"]

# RFC 9110, 7.2; RFC 3986, 3.2.2: an address in brackets, or a name; then a port.
_HOST = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[!-Z^-~]+)?\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]*)?"
)
# What stands before a host, or behind the path: RFC 3986, 3.2.1 and 3.4.
_SECRET = re.compile(r".*(?=@)|(?<=[?#]).*", re.DOTALL)
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})


@dataclass(frozen=True, slots=True)
class ServedNames:
    """The names by which clients may call this worker, in lower case."""

    names: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Take names; ``*.example.org`` stands for one label more.

        Raises:
            UsageError: one that is no name of a host.

        """
        normal = frozenset(_normal(name) for name in names)
        for name in normal:
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"{printable(name)!r} is not the name of a host",
                    hint="for example web1.example.org, without a port",
                )
        return cls(normal)

    def check(self, host: str) -> None:
        """Refuse a request for another host; ``host`` is what its ``Host`` says.

        Raises:
            UsageError: that is not a host and perhaps a port.
            MisdirectedError: it is neither an address nor one of the names.

        """
        match = _HOST.fullmatch(host)
        if match is None:
            raise UsageError(f"{_quoted(host)!r} is not a host")
        name = _normal(match["host"])
        if _is_address(name) or self._has(name):
            return
        raise MisdirectedError(
            f"this worker does not go by the name {printable(name)!r}",
            hint=f"--server-name {printable(name)} has it do so, or ask for its address",
        )

    def _has(self, name: str) -> bool:
        label, _, parent = name.partition(".")
        if label in ("", "*"):
            return False
        return name in self.names or f"*.{parent}" in self.names


def _quoted(text: str) -> str:
    """Return what may be shown of an authority or a URL: no credential, and no query."""
    return printable(_SECRET.sub("…", text))


def _normal(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def single_host(hosts: Sequence[str], *, required: bool) -> str | None:
    """Return what the ``Host`` fields of a request say.

    Raises:
        UsageError: there are several, or none where one is required.

    """
    if len(hosts) > 1 or (required and not hosts):
        raise UsageError(f"a request with {len(hosts)} Host fields")
    return hosts[0] if hosts else None


def check_origin(
    host: str | None, *, origins: Sequence[str], sites: Sequence[str]
) -> None:
    """Refuse what a page of another site has a browser ask.

    ``origins`` and ``sites`` are what ``Origin`` and ``Sec-Fetch-Site`` say; programs
    send neither. A proxy passes ``Host`` on as it came, or pages of its own are refused.

    Raises:
        ForbiddenError: the page is not from ``host``.

    """
    foreign = [site for site in sites if site.lower() in _FOREIGN_SITES]
    foreign += [origin for origin in origins if not _is_from(origin, host)]
    if foreign:
        raise ForbiddenError(
            f"a page of another site asks: {_quoted(foreign[0])}",
            hint="packets are not for web pages",
        )


def _is_from(origin: str, host: str | None) -> bool:
    scheme, separator, authority = origin.partition("://")
    return (
        bool(separator)
        and scheme.lower() in ("http", "https")
        and host is not None
        and authority.lower() == host.lower()
    )
