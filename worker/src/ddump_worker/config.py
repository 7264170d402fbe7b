"""What the worker was told: one frozen value, checked once.

Options come first, then the environment (``DDUMP_WORKER_`` and the option's name),
then the file of ``--config``, whose keys are the options' names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ddump_common.api import DEFAULT_PORT, Link, check_filter
from ddump_common.errors import ParameterError, UsageError
from ddump_common.pcap import MAX_SNAPLEN
from ddump_common.units import MEBIBYTES, format_size

from .access import AccessTable, Rule
from .capture import DEFAULT_BUFFER_SIZE
from .listen import UnixAddress, check_access
from .log import LogFormat
from .ring import (
    DEFAULT_PINNED,
    DEFAULT_RESERVE,
    DEFAULT_SEGMENT_SIZE,
    DEFAULT_SIZE,
    RingOptions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .listen import TcpAddress
    from .share import Share

__all__ = ["Config", "read_file", "read_rules"]

DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_CAPTURE_MEMORY = 256 * MEBIBYTES
DEFAULT_MAX_STREAMS = 8  # each costs every packet of the host about 0.17 µs
DEFAULT_MAX_CONNECTIONS = 2048  # a thousand at once from one host, and half for others
DEFAULT_MAX_WINDOWS = 64

_LEAST_BUFFER_SIZE = MEBIBYTES  # four of libpcap's blocks
_LARGEST_BUFFER_SIZE = (1 << 31) - 1  # an int of C


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All options of the worker; sizes are bytes.

    Without ``ring_dir`` there is no ring, and what else is said of one is not used.
    ``access`` are the rules that ``config_file`` had at the start, ``config_said`` what
    it said of options; it may say something else when it is read again.
    """

    config_file: Path | None = None
    config_said: Mapping[str, object] = field(default_factory=dict)
    log_format: LogFormat = LogFormat.TEXT
    access: tuple[Rule, ...] = ()
    listen: tuple[TcpAddress | UnixAddress, ...]
    listen_group: str | None = None
    allow_anonymous: bool = False
    allow_plaintext: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_crl: Path | None = None
    token_file: Path | None = None
    proxy_uid: int | None = None
    server_name: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    promiscuous: tuple[str, ...] = ()
    buffer_size: int = DEFAULT_BUFFER_SIZE
    capture_memory: int = DEFAULT_CAPTURE_MEMORY
    max_streams: int = DEFAULT_MAX_STREAMS
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    ring_dir: Path | None = None
    ring_size: int = DEFAULT_SIZE
    segment_size: int = DEFAULT_SEGMENT_SIZE
    ring_reserve: Share = DEFAULT_RESERVE
    ring_pinned: Share = DEFAULT_PINNED
    ring_link: Link = Link.SLL
    ring_interface: tuple[str, ...] = ()
    ring_filter: str = ""
    ring_snaplen: int = MAX_SNAPLEN
    ring_buffer_size: int = DEFAULT_BUFFER_SIZE
    max_windows: int = DEFAULT_MAX_WINDOWS

    def __post_init__(self) -> None:
        if not self.listen:
            raise UsageError("listen names no address")
        if not all(expression.strip() for expression in self.exclude):
            raise UsageError("an empty --exclude would leave out everything")
        if any("\0" in expression for expression in self.exclude):
            raise UsageError("--exclude holds a NUL character")
        check_access(
            self.listen,
            tls=self.tls_cert is not None,
            identified=self.tls_client_ca is not None or self.token_file is not None,
            allow_anonymous=self.allow_anonymous,
            allow_plaintext=self.allow_plaintext,
        )
        self._check_tls()
        self._check_unix()
        _check_buffer("--buffer-size", self.buffer_size)
        if self.capture_memory < self.buffer_size:
            raise UsageError(
                f"a capture memory of {format_size(self.capture_memory)} is less than "
                f"one buffer of {format_size(self.buffer_size)}"
            )
        self._check_ring()

    def _check_tls(self) -> None:
        if self.tls_client_ca is None and self.proxy_uid is None and self.tls_crl:
            raise UsageError(
                "--tls-crl without --tls-client-ca or --proxy-uid",
                hint="it revokes certificates of clients, and none are asked for",
            )
        if self.tls_cert is None and self.tls_key is not None:
            raise UsageError("--tls-key without --tls-cert")
        if self.tls_cert is None and self.tls_client_ca is not None:
            raise UsageError(
                "--tls-client-ca without --tls-cert",
                hint="clients show certificates to a worker that shows one itself",
            )

    def _check_unix(self) -> None:
        if any(isinstance(each, UnixAddress) for each in self.listen):
            return
        for option, value in (
            ("--proxy-uid", self.proxy_uid),
            ("--listen-group", self.listen_group),
        ):
            if value is not None:
                raise UsageError(
                    f"{option} is about unix sockets, and there is none",
                    hint="for example --listen unix:/run/ddump/worker.sock",
                )

    def _check_ring(self) -> None:
        _check_buffer("--ring-buffer-size", self.ring_buffer_size)
        try:
            check_filter(self.ring_filter)
        except ParameterError as exc:
            raise UsageError(f"--ring-filter {exc.message}") from exc
        if self.ring_dir is not None:
            self.ring_options(self.ring_dir)

    def ring_options(self, directory: Path) -> RingOptions:
        """Return what the ring in ``directory`` shall be.

        Raises:
            UsageError: it cannot be.

        """
        return RingOptions(
            directory=directory,
            size=self.ring_size,
            segment_size=self.segment_size,
            reserve=self.ring_reserve,
            pinned=self.ring_pinned,
            link=self.ring_link,
            interfaces=self.ring_interface,
            filter=self.ring_filter,
            snaplen=self.ring_snaplen,
            buffer_size=self.ring_buffer_size,
        )


def _check_buffer(option: str, size: int) -> None:
    if not _LEAST_BUFFER_SIZE <= size <= _LARGEST_BUFFER_SIZE:
        raise UsageError(
            f"a buffer of {format_size(size)}",
            hint=f"{option} goes from {format_size(_LEAST_BUFFER_SIZE)} to 2GiB less "
            "one byte",
        )


class _File(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="kebab",
    forbid_unknown_fields=True,
):
    log_format: str | msgspec.UnsetType = msgspec.UNSET
    listen: list[str] | msgspec.UnsetType = msgspec.UNSET
    listen_group: str | msgspec.UnsetType = msgspec.UNSET
    allow_anonymous: bool | msgspec.UnsetType = msgspec.UNSET
    allow_plaintext: bool | msgspec.UnsetType = msgspec.UNSET
    tls_cert: str | msgspec.UnsetType = msgspec.UNSET
    tls_key: str | msgspec.UnsetType = msgspec.UNSET
    tls_client_ca: str | msgspec.UnsetType = msgspec.UNSET
    tls_crl: str | msgspec.UnsetType = msgspec.UNSET
    token_file: str | msgspec.UnsetType = msgspec.UNSET
    proxy_uid: str | int | msgspec.UnsetType = msgspec.UNSET
    server_name: list[str] | msgspec.UnsetType = msgspec.UNSET
    exclude: list[str] | msgspec.UnsetType = msgspec.UNSET
    promiscuous: list[str] | msgspec.UnsetType = msgspec.UNSET
    buffer_size: int | str | msgspec.UnsetType = msgspec.UNSET
    capture_memory: int | str | msgspec.UnsetType = msgspec.UNSET
    max_streams: int | msgspec.UnsetType = msgspec.UNSET
    max_connections: int | msgspec.UnsetType = msgspec.UNSET
    ring_dir: str | msgspec.UnsetType = msgspec.UNSET
    ring_size: int | str | msgspec.UnsetType = msgspec.UNSET
    segment_size: int | str | msgspec.UnsetType = msgspec.UNSET
    ring_reserve: int | str | msgspec.UnsetType = msgspec.UNSET
    ring_pinned: int | str | msgspec.UnsetType = msgspec.UNSET
    ring_link: str | msgspec.UnsetType = msgspec.UNSET
    ring_interface: list[str] | msgspec.UnsetType = msgspec.UNSET
    ring_filter: str | msgspec.UnsetType = msgspec.UNSET
    ring_snaplen: int | msgspec.UnsetType = msgspec.UNSET
    ring_buffer_size: int | str | msgspec.UnsetType = msgspec.UNSET
    max_windows: int | msgspec.UnsetType = msgspec.UNSET
    access: list[AccessTable] = []


def read_file(path: Path) -> dict[str, object]:
    """Return what a TOML file says of options, by the names of ``Config``'s fields.

    Raises:
        UsageError: it cannot be read, or says something that it cannot; by name.

    """
    said = _read(path)
    values = {name: getattr(said, name) for name in said.__struct_fields__}
    return {
        name: value
        for name, value in values.items()
        if value is not msgspec.UNSET and name != "access"
    }


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules of access in a TOML file, in their order.

    Raises:
        UsageError: as ``read_file``.

    """
    rules = []
    for number, table in enumerate(_read(path).access, 1):
        try:
            rules.append(Rule.parse(table))
        except UsageError as exc:
            raise UsageError(
                f"{path}: access table {number}: {exc.message}", hint=exc.hint
            ) from exc
    return tuple(rules)


def _read(path: Path) -> _File:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: {exc}") from exc
