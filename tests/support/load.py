"""Load for measurements: many packets from trafgen, and what a process takes for them."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.traffic import PORT

if TYPE_CHECKING:
    from support.namespaces import Network


def cpu_seconds(pid: int) -> float:
    """Return what the threads of ``pid`` have used so far, to the nanosecond."""
    return (
        sum(
            int(file.read_text().split()[0])
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        / 1e9
    )


def generate(net: Network, packets: int, pace: int | None, *, payload: int) -> float:
    """Send ``packets`` of UDP to the only host; return how many a second were reached.

    ``pace`` is the rate in packets a second, ``None`` as fast as trafgen can. Each has
    ``payload`` bytes of data, and 42 of headers.
    """
    (host,) = net.hosts
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(
            f"{{ eth(da={host.hardware_address}, sa={net.client.hardware_address}), "
            f"ipv4(saddr={net.client.address}, daddr={host.address}), "
            f"udp(sp={PORT}, dp={PORT}), fill(0x41, {payload}) }}"
        )
        config.flush()
        began = time.monotonic()
        subprocess.run(
            net.client.command(
                "trafgen", "--dev", "port1", "--conf", config.name, "--num",
                str(packets), "--cpus", "1", *(["-b", f"{pace}pps"] if pace else []),
            ),
            check=True,
            capture_output=True,
        )  # fmt: skip
        return packets / (time.monotonic() - began)
