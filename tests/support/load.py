"""Load for measurements: many packets from trafgen, and what a process takes for them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.traffic import PORT

if TYPE_CHECKING:
    from support.namespaces import Host, Network


def cpu_seconds(pid: int) -> float:
    """Return what the threads of ``pid`` have used so far, to the nanosecond."""
    return (
        sum(
            int(file.read_text().split()[0])
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        / 1e9
    )


def trafgen(
    net: Network,
    interface: str,
    host: Host,
    *,
    packets: int,
    pace: int | None,
    payload: int,
) -> tuple[list[str], bytes]:
    """Return a command that sends UDP packets to ``host``, and its standard input.

    They leave by an interface of the client, ``pace`` a second, ``None`` as fast as
    trafgen can. Each has ``payload`` bytes of data, and 42 of headers.
    """
    config = (
        f"{{ eth(da={host.hardware_address}, sa={net.client.hardware_address}), "
        f"ipv4(saddr={net.client.address}, daddr={host.address}), "
        f"udp(sp={PORT}, dp={PORT}), fill(0x41, {payload}) }}"
    )
    command = net.client.command(
        "trafgen", "--dev", interface, "--conf", "-", "--num", str(packets),
        "--cpus", "1", *(["-b", f"{pace}pps"] if pace else []),
    )  # fmt: skip
    return command, config.encode()


def generate(net: Network, packets: int, pace: int | None, *, payload: int) -> float:
    """Send ``packets`` of UDP to the only host; return how many a second were reached."""
    (host,) = net.hosts
    command, config = trafgen(
        net, "port1", host, packets=packets, pace=pace, payload=payload
    )
    began = time.monotonic()
    subprocess.run(command, input=config, check=True, capture_output=True)
    return packets / (time.monotonic() - began)
