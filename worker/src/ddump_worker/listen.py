"""Where the worker listens: a TCP address, or the path of a unix socket.

Whoever reaches the worker reads the host's traffic. So a TCP address, loopback too,
needs clients to show certificates or tokens, or the words ``--allow-anonymous``; one that
is not loopback needs TLS as well, or ``--allow-plaintext``.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import logging
import os
import pwd
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddump_common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Listener",
    "TcpAddress",
    "UnixAddress",
    "check_access",
    "check_address",
    "find_group",
    "parse_address",
    "parse_user",
]

_log = logging.getLogger(__name__)

_BACKLOG = 2048  # or fewer: net.core.somaxconn
_TCP = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535
_UNIX_MODE = 0o660

# A peer that is gone without a word, while nothing is sent: noticed after
# 10 s and 4 times 5 s. (While something is sent, see connections.py.)
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 4),
)
# Linux 6.15: the longest pause between two attempts to send, here 10 s. By default it
# grows to 120 s, and a client that stops reading and vanishes is noticed that late.
_TCP_RTO_MAX_MS = 44
_RTO_MAX_MS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """An IP address and a port, 0 for any that is free."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __str__(self) -> str:
        return self.url(tls=False)

    def url(self, *, tls: bool) -> str:
        """Return what clients write."""
        host = f"[{self.host}]" if self.host.version == 6 else f"{self.host}"
        return f"http{'s' if tls else ''}://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """The path of a unix socket."""

    path: Path

    def __str__(self) -> str:
        return self.url(tls=False)

    def url(self, *, tls: bool) -> str:
        """Return what people write; a unix socket is never one of TLS."""
        return f"unix:{self.path}"


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """Read ``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``unix:PATH``.

    Raises:
        UsageError: it is none of them.

    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise UsageError(f"{text!r} names no path")
        return UnixAddress(path=Path(path).absolute())
    match = _TCP.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise _bad_address(text)
    try:
        host = (
            ipaddress.IPv6Address(match["v6"])
            if match["v6"]
            else ipaddress.IPv4Address(match["v4"])
        )
    except ValueError as exc:
        raise _bad_address(text) from exc
    return TcpAddress(host=host, port=int(match["port"]))


def _bad_address(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is not an address to listen on",
        hint="for example 127.0.0.1:8475, [::1]:8475 or unix:/run/ddump/worker.sock",
    )


def check_access(
    addresses: Iterable[TcpAddress | UnixAddress],
    *,
    tls: bool,
    identified: bool,
    allow_anonymous: bool,
    allow_plaintext: bool,
) -> None:
    """Refuse to listen more openly than was said.

    ``tls`` is whether TCP addresses are encrypted, ``identified`` whether their clients
    must show who they are.

    Raises:
        UsageError: an address needs words that were not given.

    """
    for address in addresses:
        if isinstance(address, UnixAddress):
            continue
        if not identified and not allow_anonymous:
            raise UsageError(
                f"whoever reaches {address.url(tls=tls)} can read this host's traffic",
                hint="ask for certificates (--tls-cert, --tls-client-ca) or tokens "
                "(--token-file), listen on unix:PATH, or say --allow-anonymous if that "
                "is intended",
            )
        if not tls and not address.host.is_loopback and not allow_plaintext:
            raise UsageError(
                f"what {address} sends is not encrypted",
                hint="give --tls-cert, put a proxy with TLS in front of unix:PATH, or say "
                "--allow-plaintext if that is intended",
            )


def parse_user(text: str) -> int:
    """Read the name of a user of this host, or a uid.

    Raises:
        UsageError: there is no such user.

    """
    if re.fullmatch("[0-9]{1,10}", text, re.ASCII):
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"there is no user {text!r}") from exc


def find_group(name: str) -> int:
    """Return the number of a group of this host.

    Raises:
        UsageError: there is no such group.

    """
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"there is no group {name!r}") from exc


class Listener:
    """A socket that listens, and what it leaves in the file system."""

    def __init__(
        self, address: TcpAddress | UnixAddress, *, group: str | None = None
    ) -> None:
        """Bind and listen.

        Raises:
            UsageError: the address cannot be had, or ``group`` does not exist.

        """
        self._inode: tuple[int, int] | None = None
        try:
            if isinstance(address, TcpAddress):
                self.socket = _tcp(address)
                port = self.socket.getsockname()[1]
                self.address: TcpAddress | UnixAddress = TcpAddress(
                    host=address.host, port=port
                )
            else:
                self.socket = _unix(address.path, group)
                self.address = address
                found = address.path.stat()
                self._inode = found.st_dev, found.st_ino
        except OSError as exc:
            raise _unavailable(address, exc) from exc

    def close(self) -> None:
        """Close the socket, and remove its file unless another has taken its place."""
        self.socket.close()
        if self._inode is None or not isinstance(self.address, UnixAddress):
            return
        try:
            found = self.address.path.stat()
            if (found.st_dev, found.st_ino) == self._inode:
                self.address.path.unlink()
        except FileNotFoundError:
            pass
        except OSError as exc:
            # The next worker replaces it: nobody listens there any more.
            _log.warning("cannot remove %s: %s", self.address.path, exc.strerror)


def check_address(address: TcpAddress | UnixAddress) -> None:
    """Refuse a TCP address that is not one of this host; its port may be in use.

    Raises:
        UsageError: nobody can listen there.

    """
    if isinstance(address, UnixAddress):
        return
    try:
        with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
            probe.bind((str(address.host), 0))
    except OSError as exc:
        raise _unavailable(address, exc) from exc


def _unavailable(address: TcpAddress | UnixAddress, exc: OSError) -> UsageError:
    return UsageError(f"cannot listen on {address}: {exc.strerror or exc}")


def _family(address: TcpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if address.host.version == 6 else socket.AF_INET


def _tcp(address: TcpAddress) -> socket.socket:
    family = _family(address)
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] is not 0.0.0.0 as well: each address is said on its own.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # What is accepted inherits these.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, _RTO_MAX_MS)
        listening.bind((str(address.host), address.port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _unix(path: Path, group: str | None) -> socket.socket:
    group_id = -1 if group is None else find_group(group)
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody may connect between bind and chmod.
        before = os.umask(0o777 & ~stat.S_IRUSR & ~stat.S_IWUSR)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        os.chown(path, -1, group_id)
        path.chmod(_UNIX_MODE)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise UsageError(f"another process listens on {path}")
