"""The worker's privileges: CAP_NET_RAW, and what it had beside that given up.

Capabilities belong to threads, and a thread begins with those of its parent: this has
to be done before any other thread runs. What is opened later then has no more than it
needs, also where the worker runs as root; and the helpers that compile filters, to which
root's processes hand on what is left, need nothing.

What is imported here each helper waits for.
"""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = ["keep_none", "keep_only_net_raw"]

_NET_RAW = 13
_LAST = 63  # two words of 32 bits

# linux/capability.h, linux/prctl.h
_VERSION = 0x2008_0522
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def keep_only_net_raw() -> None:
    """Give up all capabilities of this thread but CAP_NET_RAW, for good.

    Raises:
        PermissionError: the thread does not have CAP_NET_RAW.
        RuntimeError: the process has other threads, which would keep theirs.

    """
    with os.scandir("/proc/self/task") as threads:
        count = len(list(threads))
    if count > 1:
        raise RuntimeError("capabilities are dropped before any other thread begins")
    for capability in range(_LAST + 1):
        if capability != _NET_RAW:
            # Without CAP_SETPCAP this fails, and then there is little to drop; for
            # numbers that the kernel does not know it fails as well.
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _keep(1 << _NET_RAW)


def keep_none() -> None:
    """Give up all capabilities of this thread, for as long as it runs this program."""
    _keep(0)


def _keep(capabilities: int) -> None:
    # Effective, permitted, inheritable: the lower words, then the upper ones. What is
    # not inheritable is not ambient either.
    header = struct.pack("=Ii", _VERSION, 0)
    data = struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0)
    _check(_libc.capset(header, data))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
