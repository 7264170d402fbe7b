"""What the merge says of bytes that are no capture, or none that it can take."""

from __future__ import annotations

from ddump_common.errors import BadMagicError, CorruptError, FormatError

__all__ = ["bad_magic", "corrupt", "unfit"]

_LOOKS_LIKE = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zX", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
)

# By the number that the kernel has for each (_reader.pxd).
_FAULTS = (
    "no fault",
    "no memory",
    "a packet claims {0} captured bytes, the most is 262144",
    "a packet's timestamp does not fit the output",
    "a block claims {0} bytes, which cannot be",
    "a block claims {0} bytes, more than anybody writes",
    "a block of {0} bytes does not end with its length",
    "a block of type {0} is too short for what it must hold",
    "a section header has the byte-order magic {0:#010x}",
    "pcapng version {0} is not known",
    "the options of an interface overrun, or have a length that cannot be",
    "a packet belongs to interface {0}, which was not described",
    "more than {0} interfaces",
    "an interface has link type {0}, those before it have another",
    "a packet claims {0} captured bytes, more than its block has",
    "a statistics block belongs to interface {0}, which was not described",
    "the options of a statistics block overrun, or have a length or a time"
    " that cannot be",
    "a statistics block has a time that cannot be, or does not fit the output",
)


def bad_magic(beginning: bytes) -> BadMagicError:
    """Return what is wrong with an input that begins so."""
    shown = beginning[:4].hex()
    for magic, name in _LOOKS_LIKE:
        if beginning.startswith(magic):
            return BadMagicError(
                f"not a capture file but {name}", offset=0, hint="decompress it first"
            )
    if beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return BadMagicError("not a capture file but HTML or XML", offset=0)
    return BadMagicError(f"not a capture file (begins {shown})", offset=0)


def corrupt(fault: int, value: int, *, offset: int) -> CorruptError:
    """Return what is wrong with the unit that begins at ``offset``."""
    return CorruptError(_FAULTS[fault].format(value), offset=offset)


def unfit(link_type: int, output: int) -> FormatError:
    """Return why packets of this link type cannot be taken."""
    return FormatError(
        f"link type {link_type} cannot become the output's {output}", offset=0
    )
