"""Whether a worker could start with what it is told, and read its files again.

All that ``--config`` and the options name is read and compiled, by the same code as at
the start and with no more rights than the worker then has; and this host has to have the
addresses, interfaces and the directory that they name. Nothing is listened on, captured,
or left behind: the worker that is checked may be running.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from .capabilities import keep_only_net_raw
from .directory import check_directory
from .door import Door
from .filters import FilterCompiler
from .listen import check_address, find_group
from .promiscuous import find_interface
from .recording import check_interfaces
from .vetting import vet_exclusions, vet_ring, vet_rules

if TYPE_CHECKING:
    from .config import Config

__all__ = ["check"]


async def check(config: Config) -> None:
    """Read the files that ``config`` names, compile its filters, look for the rest.

    Capabilities of this process are given up, as the worker's are.

    Raises:
        UsageError: something cannot be used; with its name, and why.
        CaptureError: this host cannot compile.

    """
    for name in config.promiscuous:
        find_interface(name)
    if config.listen_group is not None:
        find_group(config.listen_group)
    for address in config.listen:
        check_address(address)
    # Without CAP_NET_RAW, which nothing here needs, there is none to give up.
    with contextlib.suppress(PermissionError):
        keep_only_net_raw()
    await Door.open(config)
    filters = FilterCompiler()
    await vet_exclusions(config.exclude, filters)
    if config.ring_dir is not None:
        check_interfaces(config.ring_interface)
        await asyncio.to_thread(check_directory, config.ring_dir)
    await vet_ring(config, filters)
    await vet_rules(config.access, filters, config)
