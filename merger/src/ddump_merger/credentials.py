"""Who the user is to each worker: where secrets come from, and how little they show.

A target's own ``USER:PASSWORD@`` comes first, then the user of ``--user`` or
``DDUMP_USER``, then the token of ``--token-file``, then the netrc file. Secrets are
read from the environment and from files that only their owner can read. What leaves
this module is an ``Authorization``, which shows nothing when it is printed.
"""

from __future__ import annotations

import base64
import netrc
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ddump_common.errors import UsageError

__all__ = ["Authorization", "Keyring", "is_open_to_others", "not_private"]

_SOURCES = "give it by DDUMP_PASSWORD, --password-file or netrc"

# A secret is a line of text; a file that goes on for longer is something else.
_MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """The value of an ``Authorization`` header, which no representation shows."""

    header: str = field(repr=False)

    @property
    def secret(self) -> str:
        """What of it is secret: a password or a token."""
        return "password" if self.header.startswith("Basic ") else "token"

    @classmethod
    def basic(cls, user: str, password: str) -> Authorization:
        """Return the header of RFC 7617, in UTF-8.

        Raises:
            UsageError: the user holds a colon, which would begin the password.

        """
        _check_user(user)
        pair = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        return cls(header=f"Basic {pair}")

    @classmethod
    def bearer(cls, token: str) -> Authorization:
        """Return the header of RFC 6750.

        Raises:
            UsageError: the token holds what no token can.

        """
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise UsageError("a token is printable ASCII without spaces")
        return cls(header=f"Bearer {token}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """What the user gave for all targets together.

    ``password`` is that of ``user``, ``token`` is for whom no user is known, and
    ``netrc_path`` is read only when a target has nothing else.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    netrc_path: Path | None = None

    @classmethod
    def open(
        cls,
        *,
        user: str | None = None,
        password_file: Path | None = None,
        token_file: Path | None = None,
    ) -> Keyring:
        """Read the secrets from the files given and from the environment.

        Raises:
            UsageError: a file cannot be read, or others can read it.

        """
        password = os.environ.get("DDUMP_PASSWORD")
        if password_file is not None:
            password = _read_secret(password_file)
        token = None if token_file is None else _read_secret(token_file)
        return cls(user=user, password=password, token=token, netrc_path=_netrc_path())

    def authorization(
        self, host: str, user: str | None = None, password: str | None = None
    ) -> Authorization | None:
        """Return what to send to ``host``, whose URL named ``user`` and ``password``.

        Raises:
            UsageError: there is a user, and nowhere a password.

        """
        if user is None and self.user is None and self.token is not None:
            return Authorization.bearer(self.token)
        login = self.user if user is None else user
        if user is None or password is None:
            password = self.password
        if login is not None and password is not None:
            return Authorization.basic(login, password)
        entry = self._netrc_entry(host)
        if entry is not None and login in {None, entry[0]}:
            return Authorization.basic(*entry)
        if login is None:
            return None
        _check_user(login)  # what is behind a colon may be a password: it is not quoted
        raise UsageError(f"no password for the user {login!r}", hint=_SOURCES)

    def _netrc_entry(self, host: str) -> tuple[str, str] | None:
        if self.netrc_path is None:
            return None
        try:
            entry = netrc.netrc(self.netrc_path).authenticators(host)
            private = not self.netrc_path.stat().st_mode & 0o077
        except netrc.NetrcParseError as exc:
            # Its own words quote the file, which may be a password.
            raise UsageError(f"{exc.filename}, line {exc.lineno}: not netrc") from None
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"cannot read {self.netrc_path}: {_reason(exc)}") from None
        if entry is None:
            return None
        if not private:
            raise not_private(self.netrc_path)
        return entry[0], entry[2]


def _check_user(user: str) -> None:
    if ":" in user:
        raise UsageError(
            "a user's name cannot hold a colon", hint=f"is there a password? {_SOURCES}"
        )


def _netrc_path() -> Path | None:
    """Return the file that ``NETRC`` names, else the one at home when there is one."""
    named = os.environ.get("NETRC")
    if named:
        return Path(named)
    try:
        path = Path.home() / ".netrc"
        return path if path.exists() else None
    except (OSError, RuntimeError):
        return None


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_SECRET_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {_reason(exc)}") from None
    if is_open_to_others(status):
        raise not_private(path)
    secret = text.partition("\n")[0].rstrip("\r")
    if len(secret) > _MAX_SECRET_BYTES:
        raise UsageError(f"{path} begins with a line that is too long for a secret")
    if not secret:
        raise UsageError(f"{path} begins with an empty line")
    return secret


def is_open_to_others(status: os.stat_result) -> bool:
    """Return whether a file of this status may be read, or changed, by more than its owner."""
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o077)


def not_private(path: Path) -> UsageError:
    """Return why a file with a secret is not used that is open to others."""
    return UsageError(
        f"{path} has a secret, and can be read by others", hint=f"chmod 600 {path}"
    )


def _reason(exc: OSError | UnicodeDecodeError) -> str:
    return exc.strerror or "" if isinstance(exc, OSError) else "not text in UTF-8"
