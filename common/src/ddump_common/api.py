"""The HTTP contract between workers and whoever asks them: one module, both sides.

Paths, parameters, headers, media types and limits; the shapes of the answers are in
``ddump_common.answers``. A ``CaptureQuery`` that exists is one that a worker can be
asked.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ParameterError, UsageError
from .pcap import MAX_SNAPLEN, LinkType, Precision
from .timespec import format_time, parse_time
from .units import MILLISECONDS, SECONDS, format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

__all__ = [
    "ADDRESS_HEADER",
    "CAPTURE_PATH",
    "CERTIFICATE_HEADER",
    "DEFAULT_PORT",
    "HEALTH_PATH",
    "HEARTBEAT_NS",
    "HOST_HEADER",
    "INTERFACES_PATH",
    "MAX_COUNT",
    "MAX_FILTER_BYTES",
    "MAX_INTERFACES",
    "MEDIA_TYPE_PCAP",
    "MEDIA_TYPE_PCAPNG",
    "MEDIA_TYPE_PROBLEM",
    "METRICS_PATH",
    "OPENAPI_PATH",
    "RING_HEADER",
    "RING_PATH",
    "SEGMENTS_PATH",
    "STATUS_PATH",
    "STREAM_HEADER",
    "TIME_HEADER",
    "USER_HEADER",
    "WINDOW_HEADER",
    "CaptureQuery",
    "Link",
    "RingQuery",
    "check_filter",
    "join_filters",
    "one_of",
]

DEFAULT_PORT = 8475

CAPTURE_PATH = "/capture"
RING_PATH = "/ring"
HEALTH_PATH = "/api/v1/health"
STATUS_PATH = "/api/v1/status"
INTERFACES_PATH = "/api/v1/interfaces"
SEGMENTS_PATH = "/api/v1/segments"
OPENAPI_PATH = "/api/v1/openapi.json"
METRICS_PATH = "/metrics"

HOST_HEADER = "Ddump-Host"
TIME_HEADER = "Ddump-Time"
"""Every answer says which host gave it, and when: nanoseconds since the epoch."""

STREAM_HEADER = "Ddump-Stream"
"""The number that the stream of this answer has in the worker's status."""

WINDOW_HEADER = "Ddump-Window"
"""What of a window the ring has: see ``ddump_common.window``."""

RING_HEADER = "Ddump-Ring"
"""What the ring keeps that answers: see ``ddump_common.ring``."""

CERTIFICATE_HEADER = "Ddump-Client-Certificate"
USER_HEADER = "Ddump-Client-User"
ADDRESS_HEADER = "Ddump-Client-Address"
"""What a proxy says of its client: the certificate that it verified (PEM, each byte that
is no letter or digit as %XX), the user whose password it checked, ADDRESS:PORT. They are
believed on a unix socket, from the proxy's own uid alone.
"""

MEDIA_TYPE_PCAP = "application/vnd.tcpdump.pcap"
MEDIA_TYPE_PCAPNG = "application/x-pcapng"
MEDIA_TYPE_PROBLEM = "application/problem+json"  # RFC 9457

HEARTBEAT_NS = 250 * MILLISECONDS
"""A pcapng stream has a statistics block this often, also when nothing arrives.

Its time is a promise: nothing earlier follows.
"""

MAX_FILTER_BYTES = 4096
MAX_INTERFACES = 64
MAX_COUNT = (1 << 63) - 1
_MAX_DURATION = 366 * 86400 * SECONDS
# IFNAMSIZ less its NUL; Linux refuses "/" and white space in a name (dev_valid_name).
_INTERFACE_NAME = re.compile(r"[^\s/\0]{1,15}")


class Link(enum.StrEnum):
    """The link type that a worker is asked for."""

    SLL = "sll"
    SLL2 = "sll2"

    @property
    def link_type(self) -> LinkType:
        """The number in the capture's header."""
        return LinkType.LINUX_SLL if self is Link.SLL else LinkType.LINUX_SLL2


def check_filter(expression: str) -> None:
    """Refuse what no worker would compile.

    Raises:
        ParameterError: longer than ``MAX_FILTER_BYTES`` in UTF-8, or with a NUL.

    """
    if "\0" in expression:
        raise ParameterError("filter", "holds a NUL character")
    try:
        size = len(expression.encode())
    except UnicodeEncodeError as exc:
        raise ParameterError("filter", "is not valid UTF-8") from exc
    if size > MAX_FILTER_BYTES:
        raise ParameterError(
            "filter", f"has {size} bytes, the most is {MAX_FILTER_BYTES}"
        )


def join_filters(*expressions: str) -> str:
    """Return one expression that holds where all of ``expressions`` do; empty ones hold.

    Raises:
        ParameterError: the parentheses of one do not match: joined, it would reach out
            of those that are put around it.

    """
    given = [expression for expression in expressions if expression.strip()]
    if len(given) == 1:
        return given[0]
    for expression in given:
        if not _parentheses_match(expression):
            raise ParameterError(
                "filter", f"the parentheses of {expression!r} do not match"
            )
    return " and ".join(f"({each})" for each in given)


def _parentheses_match(expression: str) -> bool:
    depth = 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureQuery:
    """What ``GET /capture`` is asked for.

    ``packets``, ``bytes`` (of packet data), ``duration_ns`` and ``idle_ns`` stop the
    stream at the first that is reached; ``None`` is no limit.
    """

    filter: str = ""
    interfaces: tuple[str, ...] = ()
    snaplen: int = MAX_SNAPLEN
    packets: int | None = None
    bytes: int | None = None
    duration_ns: int | None = None
    idle_ns: int | None = None
    link: Link = Link.SLL
    precision: Precision = Precision.MICRO

    def __post_init__(self) -> None:
        check_filter(self.filter)
        if len(self.interfaces) > MAX_INTERFACES:
            raise ParameterError(
                "interface", f"is given more than {MAX_INTERFACES} times"
            )
        for name in self.interfaces:
            if not _INTERFACE_NAME.fullmatch(name):
                raise ParameterError(
                    "interface", f"{name!r} is not an interface's name"
                )
        _check_range("snaplen", self.snaplen, MAX_SNAPLEN)
        _check_range("packets", self.packets, MAX_COUNT)
        _check_range("bytes", self.bytes, MAX_COUNT)
        _check_range("duration", self.duration_ns, _MAX_DURATION, shown=format_duration)
        _check_range("idle", self.idle_ns, _MAX_DURATION, shown=format_duration)

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> CaptureQuery:
        """Read the decoded pairs of a query string.

        Raises:
            ParameterError: one that is unknown, repeated or out of range, by name.

        """
        return cls(**cls._read(pairs, names=("interface", *_PARAMETERS)))

    @staticmethod
    def _read(
        pairs: Iterable[tuple[str, str]], *, names: Iterable[str]
    ) -> dict[str, Any]:
        """Return the fields that ``pairs`` give; ``names`` are what there is."""
        fields: dict[str, Any] = {}
        interfaces: list[str] = []
        for name, value in pairs:
            if name == "interface":
                interfaces.append(value)
                continue
            if name not in _PARAMETERS:
                raise ParameterError(
                    _cut(name),
                    "unknown parameter",
                    hint=f"there are {', '.join(names)}; "
                    "an & inside a filter is written %26",
                )
            field, read = _PARAMETERS[name]
            if field in fields:
                raise ParameterError(name, "given more than once")
            try:
                fields[field] = read(value)
            except UsageError as exc:
                raise ParameterError(name, exc.message, hint=exc.hint) from exc
        return {"interfaces": tuple(interfaces), **fields}

    def pairs(self) -> list[tuple[str, str]]:
        """Return the parameters that differ from the defaults; ``parse`` reads them back."""
        pairs = [("interface", name) for name in self.interfaces]
        if self.filter:
            pairs.append(("filter", self.filter))
        if self.snaplen != MAX_SNAPLEN:
            pairs.append(("snaplen", str(self.snaplen)))
        if self.packets is not None:
            pairs.append(("packets", str(self.packets)))
        if self.bytes is not None:
            pairs.append(("bytes", str(self.bytes)))
        if self.duration_ns is not None:
            pairs.append(("duration", format_duration(self.duration_ns)))
        if self.idle_ns is not None:
            pairs.append(("idle", format_duration(self.idle_ns)))
        if self.link is not Link.SLL:
            pairs.append(("link", self.link.value))
        if self.precision is not Precision.MICRO:
            pairs.append(("precision", self.precision.value))
        return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class RingQuery(CaptureQuery):
    """What ``GET /ring`` is asked for.

    The records from ``since_ns`` on (``None``: from the oldest) that are before
    ``until_ns`` (``None``: up to now); with ``follow`` also those that come later, up
    to ``until_ns`` if there is one.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    follow: bool = False

    def __post_init__(self) -> None:
        # Not super(): dataclasses make a class with slots anew, and super() has the old.
        CaptureQuery.__post_init__(self)
        if (
            self.since_ns is not None
            and self.until_ns is not None
            and self.since_ns >= self.until_ns
        ):
            raise ParameterError("until", "is not after since")

    @classmethod
    def parse_at(cls, pairs: Iterable[tuple[str, str]], *, now_ns: int) -> RingQuery:
        """Read the decoded pairs of a query string that came at ``now_ns``.

        ``last`` is ``since`` counted back from now.

        Raises:
            ParameterError: as ``CaptureQuery.parse``; also a time without a zone, and
                ``last`` beside ``since``.

        """
        times: dict[str, str] = {}
        others: list[tuple[str, str]] = []
        for name, value in pairs:
            if name not in _WINDOW_PARAMETERS:
                others.append((name, value))
            elif name in times:
                raise ParameterError(name, "given more than once")
            else:
                times[name] = value
        names = (*_WINDOW_PARAMETERS, "interface", *_PARAMETERS)
        fields = cls._read(others, names=names)
        if "last" in times and "since" in times:
            raise ParameterError("last", "since is given as well")
        for name, value in times.items():
            field, read = _WINDOW_PARAMETERS[name]
            try:
                fields[field] = read(value, now_ns)
            except UsageError as exc:
                raise ParameterError(name, exc.message, hint=exc.hint) from exc
        return cls(**fields)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the parameters that differ from the defaults; ``parse_at`` reads them."""
        pairs = CaptureQuery.pairs(self)
        if self.since_ns is not None:
            pairs.append(("since", format_time(self.since_ns)))
        if self.until_ns is not None:
            pairs.append(("until", format_time(self.until_ns)))
        if self.follow:
            pairs.append(("follow", "1"))
        return pairs


def _cut(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _check_range(
    name: str, value: int | None, most: int, *, shown: Callable[[int], str] = str
) -> None:
    if value is not None and not 1 <= value <= most:
        raise ParameterError(
            name,
            f"{shown(value)} is out of range, it goes from {shown(1)} to {shown(most)}",
        )


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        _not_a_number(text)
    return int(text)


def _not_a_number(text: str) -> NoReturn:
    raise UsageError(f"{text!r} is not a whole number")


def one_of(values: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum]:
    """Return a reader of the words in ``values``, which raises UsageError for others."""

    def read(text: str) -> enum.StrEnum:
        try:
            return values(text)
        except ValueError:
            raise UsageError(f"{text!r} is not one of {', '.join(values)}") from None

    return read


_PARAMETERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "filter": ("filter", str),
    "snaplen": ("snaplen", _count),
    "packets": ("packets", _count),
    "bytes": ("bytes", _count),
    "duration": ("duration_ns", parse_duration),
    "idle": ("idle_ns", parse_duration),
    "link": ("link", one_of(Link)),
    "precision": ("precision", one_of(Precision)),
}


def _time(text: str, now_ns: int) -> int:
    # A time without a zone is local to whoever asks, and this is not the place.
    return parse_time(text, now_ns=now_ns, zone=None)


def _last(text: str, now_ns: int) -> int:
    # People also write it as they write since: -5m.
    return max(now_ns - parse_duration(text.removeprefix("-")), 0)


def _flag(text: str, _: int) -> bool:
    values = {"": True, "1": True, "true": True, "0": False, "false": False}
    if text not in values:
        raise UsageError(f"{text!r} is not one of 1, true, 0, false")
    return values[text]


_WINDOW_PARAMETERS: dict[str, tuple[str, Callable[[str, int], object]]] = {
    "since": ("since_ns", _time),
    "until": ("until_ns", _time),
    "last": ("since_ns", _last),
    "follow": ("follow", _flag),
}
