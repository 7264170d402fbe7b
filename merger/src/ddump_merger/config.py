"""What one run is asked to do: parsed and checked at the edge, then only read."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddump_common.errors import UsageError
from ddump_common.tls import client_context
from ddump_common.units import MEBIBYTES, MILLISECONDS, SECONDS

from .certificate import Certificate
from .target import FileTarget, HttpTarget, Target
from .trust import Trust

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ddump_common.api import Link
    from ddump_common.pcap import Precision

__all__ = ["ClockMode", "Config", "TlsFiles"]

# An interface's ring is read per CPU, and a host's clock serves all of them: captures
# of "any" on two CPUs were 0.2 to 9 ms out of order.
DISORDER_NS = 50 * MILLISECONDS
# Longer than a worker's batches (50 ms) and a slow network's stalls, shorter than what
# annoys someone who watches.
HOLD_NS = SECONDS
# A second of 100,000 packets of 600 bytes.
BUFFER_BYTES = 64 * MEBIBYTES
TIMEOUT_NS = 30 * SECONDS
CONNECT_TIMEOUT_NS = 10 * SECONDS


class ClockMode(enum.StrEnum):
    """What is done about a target's clock that is not ours."""

    REPORT = "report"
    CORRECT = "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the authorities to trust, the client's certificate and its key.

    ``crl`` is what the authorities have revoked. Or else nothing is verified, and it is
    ``insecure``.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    crl: Path | None = None
    insecure: bool = False

    def trust(self, targets: Iterable[HttpTarget]) -> Trust | None:
        """Return what to speak TLS with; ``None`` when nothing asks for it.

        Files that are given are read in any case: a mistake in them is to be told.

        Raises:
            UsageError: a file cannot be used.

        """
        given = self.ca or self.cert or self.key or self.crl
        if not given and all(target.scheme != "https" for target in targets):
            return None
        context = client_context(
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            crl=self.crl,
            insecure=self.insecure,
        )
        own = None if self.cert is None else Certificate.read(self.cert)
        return Trust(context=context, own=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One run of the merge.

    ``output`` is ``None`` for standard output, ``link`` and ``precision`` are ``None``
    when they follow from the targets, ``count`` 0 is no limit. ``report`` is where an
    account of the run goes; ``fail_fast`` ends it at the first loss.
    """

    targets: tuple[Target, ...]
    output: Path | None = None
    pcapng: bool = False
    link: Link | None = None
    precision: Precision | None = None
    count: int = 0
    duration_ns: int | None = None
    hold_ns: int = HOLD_NS
    disorder_ns: int = DISORDER_NS
    buffer_bytes: int = BUFFER_BYTES
    timeout_ns: int = TIMEOUT_NS
    connect_timeout_ns: int = CONNECT_TIMEOUT_NS
    tls: TlsFiles = field(default_factory=TlsFiles)
    clock: ClockMode = ClockMode.REPORT
    reconnect: bool = True
    fail_fast: bool = False
    report: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError("no target", hint="ddump --help shows what a target is")
        if (
            sum(isinstance(t, FileTarget) and t.is_standard_input for t in self.targets)
            > 1
        ):
            raise UsageError("standard input can be only one of the targets")
        if self.duration_ns is not None and not self.http_targets:
            raise UsageError("--duration is for workers: a file ends by itself")
        if self.clock is ClockMode.CORRECT and not self.http_targets:
            raise UsageError("--clock is for workers: a file has no clock to ask")
        if self.report is not None and str(self.report) == "-":
            raise UsageError(
                "--report -: standard output is for packets",
                hint="--report FILE, or /dev/stderr",
            )

    @property
    def http_targets(self) -> list[HttpTarget]:
        """The targets that are asked over HTTP."""
        return [target for target in self.targets if isinstance(target, HttpTarget)]

    @property
    def file_targets(self) -> list[FileTarget]:
        """The targets that are files, pipes or standard input."""
        return [target for target in self.targets if isinstance(target, FileTarget)]
