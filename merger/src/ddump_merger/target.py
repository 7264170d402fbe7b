"""What the user named: workers by URL, capture files, standard input.

::

    TARGET = [LABEL=]http(s)://[USER[:PASSWORD]@]HOST[:PORT][/PATH][?filter=...]
           | a capture file
           | -

No port means 8475; no path means ``/capture``, or ``/ring`` when a window is asked for;
a path that ends in ``/`` is the prefix under which a proxy serves that worker. The
query may be written as people type it, spaces and all; it is decoded as a form is, and
only what a worker takes is let through.
Credentials leave the URL here and are never shown again.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ddump_common.api import (
    CAPTURE_PATH,
    DEFAULT_PORT,
    RING_PATH,
    CaptureQuery,
    Link,
    RingQuery,
    join_filters,
)
from ddump_common.errors import ParameterError, UsageError
from ddump_common.text import printable
from ddump_common.units import format_duration

from .credentials import is_open_to_others, not_private
from .window import WINDOW_NAMES, parse_window

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ddump_common.pcap import Precision

    from .credentials import Authorization, Keyring

__all__ = [
    "FileTarget",
    "HttpTarget",
    "QueryOptions",
    "Target",
    "parse_target",
    "read_targets_file",
    "redacted",
    "unique_names",
]

STANDARD_INPUT = "-"

_URL = re.compile(r"(?:([^=]*)=)?(https?)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{0,5}))?")
# What RFC 3986 lets stand in a path, and the percent sign of what is encoded already.
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_COMMENT = re.compile(r"(?:^|\s)#.*")
# A URL that went wrong, with whatever stands before it: it may hold a password.
_LIKE_URL = re.compile(r"(?:[^/]*=)?[A-Za-z][A-Za-z0-9+.-]*:/")
# A URL without its beginning, maybe: what stands before the @ may be a password.
_LIKE_LOGIN = re.compile(r".*:.*@", re.DOTALL)
_PASSWORD = re.compile(r"://[^/@]*:[^/]*@")

# Forty thousand targets; whoever has more means another file.
_MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryOptions:
    """The options of the command that become parameters of every worker's query.

    ``window`` are those of a window, as they were written; ``now_ns`` is the moment
    from which all windows are counted, one for all targets.
    """

    window: tuple[tuple[str, str], ...] = ()
    now_ns: int = field(default_factory=time.time_ns)
    filter: str = ""
    interfaces: tuple[str, ...] = ()
    snaplen: int | None = None
    duration_ns: int | None = None
    link: Link | None = None
    precision: Precision | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Return them as a query has them, without the filter, which is joined."""
        pairs = [*self.window, *(("interface", name) for name in self.interfaces)]
        if self.snaplen is not None:
            pairs.append(("snaplen", str(self.snaplen)))
        if self.duration_ns is not None:
            pairs.append(("duration", format_duration(self.duration_ns)))
        if self.link is not None:
            pairs.append(("link", self.link.value))
        if self.precision is not None:
            pairs.append(("precision", self.precision.value))
        return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """A worker, or anything else that answers ``GET`` with a capture."""

    name: str
    scheme: str
    host: str
    port: int
    path: str
    query: CaptureQuery | RingQuery
    authorization: Authorization | None = field(default=None, repr=False)

    @property
    def live(self) -> bool:
        """Whether it delivers what happens now, from the start on."""
        return not isinstance(self.query, RingQuery)

    @property
    def follows(self) -> bool:
        """Whether it is a window that goes on with what happens now."""
        return isinstance(self.query, RingQuery) and self.query.follow

    @property
    def goes_on(self) -> bool:
        """Whether it delivers what happens now, be it after a window."""
        return self.live or self.follows

    @property
    def origin(self) -> str:
        """The URL as far as the path, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def address(self) -> str:
        """What its server calls itself: the host without its zone, which is ours."""
        return self.host.partition("%")[0]

    @property
    def exposed(self) -> bool:
        """Whether its credentials leave this machine in plain, as far as its name tells."""
        return (
            self.scheme == "http"
            and self.authorization is not None
            and not _is_loopback(self.host)
        )

    @property
    def url(self) -> str:
        """The whole URL, encoded, without credentials."""
        query = urlencode(self.query.pairs(), quote_via=quote)
        return f"{self.origin}{self.path}" + (f"?{query}" if query else "")

    @property
    def _prefix(self) -> str:
        return self.path.rpartition("/")[0]

    def api_url(self, path: str) -> str:
        """Return the URL of another resource of the same worker, behind its proxy."""
        return f"{self.origin}{self._prefix}{path}"

    def at(self, path: str, query: CaptureQuery) -> HttpTarget:
        """Return the same worker's target with another path and query."""
        return replace(self, path=self._prefix + path, query=query)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTarget:
    """A capture file, or standard input."""

    name: str
    path: str

    @property
    def is_standard_input(self) -> bool:
        """Whether it is the word ``-``."""
        return self.path == STANDARD_INPUT


Target = HttpTarget | FileTarget


def redacted(text: str) -> str:
    """Return ``text`` for a message: printable, and without a URL's credentials."""
    return printable(re.sub(r":/.*@", "://***@", text, flags=re.DOTALL), limit=200)


def parse_target(
    text: str, options: QueryOptions | None = None, keyring: Keyring | None = None
) -> Target:
    """Return the target that ``text`` names, with what the options add to its query.

    Raises:
        UsageError: it is none; the text never holds the credentials.

    """
    match = _URL.fullmatch(text)
    if match is None or "://" in (match[1] or ""):
        return _parse_file(text, options or QueryOptions())
    try:
        return _parse_url(match, options or QueryOptions(), keyring)
    except ParameterError as exc:
        raise UsageError(f"{redacted(text)}: {exc}") from None
    except UsageError as exc:
        raise UsageError(f"{redacted(text)}: {exc.message}", hint=exc.hint) from None


def _parse_file(text: str, options: QueryOptions) -> FileTarget:
    if not text or "\0" in text:
        raise UsageError("a target is a URL, a capture file or -")
    if _LIKE_URL.match(text):
        raise UsageError(
            f"{redacted(text)}: not a URL of a worker",
            hint="[LABEL=]http://HOST or https://HOST",
        )
    if _LIKE_LOGIN.match(text) and not os.path.lexists(text):
        raise UsageError(
            f"***@{printable(text.rpartition('@')[2], limit=200)}: no such file, and not a "
            "URL of a worker",
            hint="[LABEL=]http://HOST or https://HOST",
        )
    if options.window:
        raise UsageError(
            f"{redacted(text)}: --last, --since, --until and --follow are for workers, "
            "not for files",
            hint="editcap -A and -B cut files",
        )
    if options.filter.strip() or options.interfaces or options.snaplen is not None:
        raise UsageError(
            f"{redacted(text)}: --filter, --interface and --snaplen are for workers, "
            "not for files",
            hint="filter the output: ddump ... | tcpdump -r- EXPRESSION",
        )
    return FileTarget(name=text, path=text)


def _parse_url(
    match: re.Match[str], options: QueryOptions, keyring: Keyring | None
) -> HttpTarget:
    label, scheme, rest = match[1], match[2].lower(), match[3]
    if label is not None and not label.strip():
        raise UsageError("an empty label", hint="LABEL=http://HOST")
    authority, path, query = _split(rest)
    userinfo, at, host_port = authority.rpartition("@")
    host, port = _parse_host_port(host_port)
    authorization = None
    if keyring is not None:
        user, colon, password = userinfo.partition(":")
        authorization = keyring.authorization(
            host, unquote(user) if at else None, unquote(password) if colon else None
        )
    path, asked = _compose(path, query, options)
    return HttpTarget(
        name=host if label is None else label.strip(),
        scheme=scheme,
        host=host,
        port=port,
        path=path,
        query=asked,
        authorization=authorization,
    )


def _split(rest: str) -> tuple[str, str, str]:
    """Return authority, path and query. A ``#`` is an ordinary character."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    if "@" in path + query and "@" not in authority:
        # Most likely the rest of a password: nothing of it may be quoted.
        raise UsageError(
            "an @ after the host",
            hint="in a password / is written %2F and ? is %3F, elsewhere @ is %40",
        )
    return authority, slash + path, query


def _parse_host_port(text: str) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise UsageError(
            "the part before the path is not HOST or HOST:PORT",
            hint="an IPv6 address stands in brackets",
        )
    host, port = match[1], int(match[2] or DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port} is out of range, it goes from 1 to 65535")
    return _parse_host(host), port


def _parse_host(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(unquote(host[1:-1])))
        except ValueError:
            raise UsageError("not an IPv6 address in the brackets") from None
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise UsageError("not a host's name") from None
    if not _HOST.fullmatch(ascii_host):
        raise UsageError("not a host's name" if host else "no host")
    return ascii_host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # RFC 6761, 6.3
        name = host.lower().removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")


def _complete_path(path: str, default: str) -> str:
    if not path or path.endswith("/"):
        path = path.removesuffix("/") + default
    return quote(path, safe=_PATH_SAFE)


def _compose(
    path: str, query: str, options: QueryOptions
) -> tuple[str, CaptureQuery | RingQuery]:
    """Return the URL's path and query with what the options add to them."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, encoding="utf-8", errors="strict"
        )
    except (UnicodeDecodeError, ValueError):
        raise UsageError("the query is not valid UTF-8") from None
    names = {name for name, _ in pairs}
    added = options.pairs()
    for name, _ in added:
        if name in names:
            raise UsageError(
                f"--{name} is given, and {name}= in the URL", hint="give one"
            )
    window = not WINDOW_NAMES.isdisjoint(names) or bool(options.window)
    if window and path.endswith(CAPTURE_PATH):
        raise UsageError(
            f"{CAPTURE_PATH} has no past",
            hint=f"for a window leave it out, or write {RING_PATH}",
        )

    pairs += added
    if window or path.endswith(RING_PATH):
        asked: CaptureQuery | RingQuery = parse_window(pairs, now_ns=options.now_ns)
    else:
        asked = CaptureQuery.parse(pairs)
    asked = replace(asked, filter=join_filters(asked.filter, options.filter))
    return _complete_path(path, RING_PATH if window else CAPTURE_PATH), asked


def unique_names(targets: Iterable[Target]) -> list[Target]:
    """Return the targets with names that differ: the second NAME becomes ``NAME#2``."""
    taken: set[str] = set()
    named: list[Target] = []
    for target in targets:
        name, count = target.name, 1
        while name in taken:
            count += 1
            name = f"{target.name}#{count}"
        taken.add(name)
        named.append(replace(target, name=name))
    return named


def read_targets_file(path: Path) -> list[tuple[str, str]]:
    """Return ``(where, TARGET)`` for each line that has one; ``#`` begins a comment.

    ``where`` is the file and the line, for messages.

    Raises:
        UsageError: the file cannot be read, or is not a list of targets; or it has a
            password, and others can read it.

    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")  # some editors begin a file with a mark
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {path}: not text in UTF-8") from None
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is too long for a list of targets")
    lines = [_COMMENT.sub("", line).strip() for line in text.split("\n")]
    if is_open_to_others(status) and any(map(_PASSWORD.search, lines)):
        raise not_private(path)
    return [(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line]
