"""Who may do what: the operator's rules, of which the first that fits holds.

A rule says for whom it is, what they may do, a filter that is joined to whatever they
ask for, and the most that they may have. Without any rule, everybody who is admitted
may do everything. Nothing here waits, opens or compiles: a refusal costs nothing.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from ddump_common.api import CaptureQuery, check_filter
from ddump_common.errors import DdumpError, ParameterError, UsageError
from ddump_common.note import EndReason
from ddump_common.units import format_duration, parse_duration, parse_size

from .denial import ForbiddenError, UnauthorizedError
from .identity import Identity, IdentityKind, is_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .identity import Client

__all__ = ["Access", "AccessTable", "Grant", "Order", "Permission", "Rule"]

_RETRY_SECONDS = 5
_ANY_NAME = "*"

_Query = TypeVar("_Query", bound=CaptureQuery, covariant=True)
_Asked = TypeVar("_Asked", bound=CaptureQuery)


class Permission(enum.StrEnum):
    """What one may be allowed to do. Nothing asks for the last two as yet."""

    STREAM = "stream"
    WINDOW = "window"
    STATUS = "status"
    TRIGGER = "trigger"
    ADMIN = "admin"


class _Cap(enum.Enum):
    """The most of something: the grant's field, the query's, and the reason to end."""

    DURATION = "max_duration_ns", "duration_ns", EndReason.DURATION
    BYTES = "max_bytes", "bytes", EndReason.BYTES
    PACKETS = "max_packets", "packets", EndReason.PACKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What somebody may do; by default everything.

    ``filter`` holds for every packet that they get. ``max_age_ns`` is how far back the
    ring goes for them, the other maxima are of each stream, but for ``max_streams``, of
    all that one identity has at once. ``None`` is no limit.
    """

    allow: frozenset[Permission] = frozenset(Permission)
    filter: str = ""
    max_duration_ns: int | None = None
    max_bytes: int | None = None
    max_packets: int | None = None
    max_streams: int | None = None
    max_age_ns: int | None = None

    def require(self, permission: Permission, identity: Identity) -> None:
        """Refuse what is not allowed.

        Raises:
            ForbiddenError: it is not.

        """
        if permission not in self.allow:
            allowed = ", ".join(each for each in Permission if each in self.allow)
            raise ForbiddenError(
                f"{identity} does not have the permission {permission}",
                hint=f"it has {allowed}" if allowed else "it has none",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Generic[_Query]):
    """What somebody asked for, and what they get of it.

    ``query`` is what was asked, with the grant's caps where it set no limits of its own:
    ``capped`` are the reasons to end that then are not the client's.
    """

    client: Client
    grant: Grant
    query: _Query
    capped: frozenset[EndReason] = frozenset()

    @staticmethod
    def of(client: Client, grant: Grant, asked: _Asked) -> Order[_Asked]:
        """Return the order that ``asked`` becomes.

        Raises:
            ForbiddenError: it asks for more than may be had.

        """
        limits: dict[str, Any] = {}
        capped = set()
        for cap in _Cap:
            bound, field, reason = cap.value
            most, wanted = getattr(grant, bound), getattr(asked, field)
            if most is None:
                continue
            if wanted is None:
                limits[field] = most
                capped.add(reason)
            elif wanted > most:
                raise ForbiddenError(
                    f"{reason}: {_shown(cap, wanted)} is more than {client.identity} "
                    f"may have, which is max-{reason} = {_shown(cap, most)}"
                )
        return Order(
            client=client,
            grant=grant,
            query=dataclasses.replace(asked, **limits),
            capped=frozenset(capped),
        )

    @property
    def filter(self) -> str:
        """The filter as run: the rule's first, then what was asked for."""
        given = [
            each for each in (self.grant.filter, self.query.filter) if each.strip()
        ]
        return given[0] if len(given) == 1 else " and ".join(f"({e})" for e in given)

    def oldest_ns(self, now_ns: int) -> int:
        """Return from when on the ring is there for this client, at ``now_ns``."""
        age_ns = self.grant.max_age_ns
        return 0 if age_ns is None else max(now_ns - age_ns, 0)

    def end(self, reason: EndReason) -> EndReason:
        """Return why a stream ended, where it did for ``reason``."""
        return EndReason.CAP if reason in self.capped else reason

    def check_streams(self, running: int) -> None:
        """Refuse one more than may be; the client's identity has ``running``.

        Raises:
            ForbiddenError: with the time after which there may be room.

        """
        most = self.grant.max_streams
        if most is not None and running >= most:
            raise ForbiddenError(
                f"{self.client.identity} has {running} streams, and may have "
                f"max-streams = {most}",
                hint="end one of them, or try again later",
                retry_after_seconds=_RETRY_SECONDS,
            )


def _shown(cap: _Cap, value: int) -> str:
    return format_duration(value) if cap is _Cap.DURATION else str(value)


class AccessTable(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="kebab",
    forbid_unknown_fields=True,
):
    """One ``[[access]]`` of the worker's file, as it is written there."""

    identity: list[str]
    allow: list[Permission]
    filter: str = ""
    max_duration: str | int | None = None
    max_bytes: str | int | None = None
    max_packets: int | None = None
    max_streams: int | None = None
    max_age: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Identities, and what they may do: ``KIND:NAME`` exactly, or ``KIND:*`` for all."""

    identities: tuple[str, ...]
    grant: Grant

    def __post_init__(self) -> None:
        if not self.identities:
            raise UsageError("identity: names nobody")
        for each in self.identities:
            _check_pattern(each)

    @classmethod
    def parse(cls, table: AccessTable) -> Rule:
        """Read what the file says.

        Raises:
            UsageError: something that cannot be, by name.

        """
        try:
            check_filter(table.filter)
        except ParameterError as exc:
            raise UsageError(f"filter: {exc.message}") from exc
        return cls(
            identities=tuple(table.identity),
            grant=Grant(
                allow=frozenset(table.allow),
                filter=table.filter,
                max_duration_ns=_most(
                    "max-duration", table.max_duration, parse_duration
                ),
                max_bytes=_most("max-bytes", table.max_bytes, parse_size),
                max_packets=_most("max-packets", table.max_packets, int),
                max_streams=_most("max-streams", table.max_streams, int),
                max_age_ns=_most("max-age", table.max_age, parse_duration),
            ),
        )

    def fits(self, identity: Identity) -> bool:
        """Return whether this rule is for ``identity``."""
        return not {f"{identity}", f"{identity.kind}:{_ANY_NAME}"}.isdisjoint(
            self.identities
        )


def _check_pattern(pattern: str) -> None:
    kind, colon, name = pattern.partition(":")
    if pattern == IdentityKind.ANONYMOUS:
        return
    if kind not in set(IdentityKind) - {IdentityKind.ANONYMOUS} or not (colon and name):
        raise UsageError(
            f"identity: {pattern!r} is none",
            hint="for example cert:CN=alice, user:alice, token:*, or anonymous",
        )
    if kind == IdentityKind.CERT and name != _ANY_NAME and not is_subject(name):
        # Nobody would be known by it: a rule that is to keep somebody out would not.
        raise UsageError(
            f"identity: {pattern!r} is no subject as RFC 4514 writes it",
            hint="for example cert:CN=alice,O=Team; the log has it of who was here",
        )


def _most(
    name: str, value: str | int | None, parse: Callable[[str], int]
) -> int | None:
    if value is None:
        return None
    try:
        most = parse(str(value))
    except DdumpError as exc:
        raise UsageError(f"{name}: {exc.message}", hint=exc.hint) from exc
    if most < 1:
        raise UsageError(f"{name}: {value} is not more than 0")
    return most


class Access:
    """The rules of now."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)

    def check(self, rules: Sequence[Rule]) -> None:
        """Refuse rules that may not take the place of these.

        Raises:
            UsageError: there are none any more, and everybody might do everything.

        """
        if self._rules and not rules:
            raise UsageError(
                "the rules of access are gone",
                hint="without any everybody may do everything: restart the worker if "
                "that is intended",
            )

    def replace(self, rules: Sequence[Rule]) -> None:
        """Have other rules from now on."""
        self._rules = tuple(rules)

    def grant(self, identity: Identity) -> Grant:
        """Return what ``identity`` may do.

        Raises:
            UnauthorizedError: nothing, and who it is was not told.
            ForbiddenError: nothing.

        """
        if not self._rules:
            return Grant()
        for rule in self._rules:
            if rule.fits(identity):
                return rule.grant
        if identity.kind is IdentityKind.ANONYMOUS:
            raise UnauthorizedError(
                "no rule of this worker is for clients that do not say who they are",
                hint="show a certificate or a token",
            )
        raise ForbiddenError(
            f"no rule of this worker is for {identity}",
            hint="whoever runs it may add one ([[access]] in its file)",
        )

    def holds(self, identity: Identity, grant: Grant) -> bool:
        """Return whether what was granted before is what would be granted now."""
        try:
            return self.grant(identity) == grant
        except (UnauthorizedError, ForbiddenError):
            return False
