"""The errors of ddump, split first by whose fault they are, and the exit codes.

::

    DdumpError                    never raised itself
    ├── UsageError                what was asked for makes no sense
    │   └── ParameterError        a request parameter, named
    ├── CaptureError              this host cannot capture as asked
    │   ├── PrivilegeError        a capability is missing
    │   └── FilterError           the BPF expression does not compile or fit
    ├── FormatError               bytes that are not the format they claim to be
    │   ├── BadMagicError         not a capture at all
    │   ├── CorruptError          a length or a field that cannot be
    │   └── TruncatedError        the capture ends in the middle of something
    ├── PeerError                 the other side, or the way to it
    │   ├── UnreachableError      no connection, or no answer in time
    │   ├── UntrustedError        one side does not take the other's certificate
    │   ├── RefusedError          an answer that is not a capture
    │   ├── BrokenStreamError     the capture ended without its proper end
    │   └── CappedStreamError     the worker's rules ended it before its end
    └── OutputError               the result cannot be written

Attributes come first, the text is made of them in ``__str__``; ``hint`` says what
to do. Texts never hold credentials.
"""

from __future__ import annotations

import enum

__all__ = [
    "BadMagicError",
    "BrokenStreamError",
    "CappedStreamError",
    "CaptureError",
    "CorruptError",
    "DdumpError",
    "ExitCode",
    "FilterError",
    "FormatError",
    "OutputError",
    "ParameterError",
    "PeerError",
    "PrivilegeError",
    "RefusedError",
    "TruncatedError",
    "UnreachableError",
    "UntrustedError",
    "UsageError",
]


class ExitCode(enum.IntEnum):
    """What both programs exit with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NO_TARGET = 3
    INCOMPLETE = 4
    OUTPUT = 5


class DdumpError(Exception):
    """The root: catch it, never raise it.

    ``hint``, when not empty, is one sentence that says what to do about it.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(DdumpError):
    """What the caller asked for makes no sense."""

    exit_code = ExitCode.USAGE


class ParameterError(UsageError):
    """A request parameter that is unknown, repeated or out of range."""

    def __init__(self, parameter: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter

    def __str__(self) -> str:
        return f"{self.parameter}: {super().__str__()}"


class CaptureError(DdumpError):
    """This host cannot capture as asked."""


class PrivilegeError(CaptureError):
    """The process lacks a capability."""


class FilterError(CaptureError):
    """A BPF expression that does not compile, or that the kernel does not take."""


class FormatError(DdumpError):
    """Bytes that are not the format they claim to be.

    ``offset`` counts the bytes of the stream before the record or block at fault.
    """

    def __init__(self, message: str, *, offset: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset

    def __str__(self) -> str:
        return f"{super().__str__()}, at byte {self.offset}"


class BadMagicError(FormatError):
    """The first bytes are not those of a capture."""


class CorruptError(FormatError):
    """A length or a field that cannot be."""


class TruncatedError(FormatError):
    """The capture ends in the middle of a header or a record."""


class PeerError(DdumpError):
    """The other side, or the way to it, failed."""


class UnreachableError(PeerError):
    """No connection, or no answer in time."""


class UntrustedError(PeerError):
    """One side does not take the other's certificate: asking again is of no use."""


class RefusedError(PeerError):
    """The other side answered, but not with a capture.

    ``status`` is the HTTP status; ``retry_after_ns`` how long it asks to be left alone.
    """

    def __init__(
        self, message: str, *, status: int, hint: str = "", retry_after_ns: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_ns = retry_after_ns


class BrokenStreamError(PeerError):
    """The connection ended without the capture's proper end."""


class CappedStreamError(PeerError):
    """The capture ended in order, but before its end: a limit of the worker's rules."""


class OutputError(DdumpError):
    """The result cannot be written."""

    exit_code = ExitCode.OUTPUT
