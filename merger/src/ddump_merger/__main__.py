"""The command: ``ddump`` is ``python -m ddump_merger``.

An interrupt while its parts are imported ends it at once, silently: there is nothing to
end in order yet. Not by an exception, of which some modules make an error of their own.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

# What a shell says of a command that SIGINT ended.
_INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process, and return the exit code."""
    try:
        import signal

        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.default_int_handler:  # else it is ignored, and stays so
            signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
        from .cli import main as run

        signal.signal(signal.SIGINT, handler)
        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
