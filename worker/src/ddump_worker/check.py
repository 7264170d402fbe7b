"""Whether a worker could start with what it is told, and read its files again.

All that ``--config`` and the options name is read and compiled, by the same code as at
the start and with no more rights than the worker then has. Nothing is listened on,
captured, or written.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .capabilities import keep_only_net_raw
from .door import Door
from .filters import FilterCompiler
from .listen import find_group
from .vetting import vet_exclusions, vet_ring, vet_rules

if TYPE_CHECKING:
    from .config import Config

__all__ = ["check"]


async def check(config: Config) -> None:
    """Read the files that ``config`` names, and compile its filters.

    Capabilities of this process are given up, as the worker's are.

    Raises:
        UsageError: one cannot be used; with its name, and why.
        CaptureError: this host cannot compile.

    """
    if config.listen_group is not None:
        find_group(config.listen_group)
    # Without CAP_NET_RAW, which nothing here needs, there is none to give up.
    with contextlib.suppress(PermissionError):
        keep_only_net_raw()
    await Door.open(config)
    filters = FilterCompiler()
    await vet_exclusions(config.exclude, filters)
    await vet_ring(config, filters)
    await vet_rules(config.access, filters, config)
