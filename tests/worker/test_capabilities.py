"""Giving up privileges: the kernel's own account of a process is the judge."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp

from support.loopback import payloads, talker
from support.workers import wait_until, worker

_SCRIPT = """
import subprocess, threading
from pathlib import Path
from ddump_worker.capabilities import keep_only_net_raw
try:
    keep_only_net_raw()
except PermissionError as exc:
    print("refused", exc.errno)
else:
    def show():
        print(Path("/proc/thread-self/status").read_text())
    show()
    thread = threading.Thread(target=show)
    thread.start()
    thread.join()
    print(subprocess.check_output(["cat", "/proc/self/status"], text=True))
"""


def run(*prefix: str) -> str:
    return subprocess.run(
        [*prefix, sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def values(said: str, name: str) -> list[str]:
    return [
        line.split()[1] for line in said.splitlines() if line.startswith(f"{name}:")
    ]


def test_of_root_s_capabilities_one_is_left_to_threads_and_children():
    said = run()
    only = f"{1 << 13:016x}"
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert values(said, name) == [only] * 3
    assert values(said, "CapInh")[:2] == [f"{0:016x}"] * 2
    assert values(said, "NoNewPrivs") == ["1"] * 3


def test_without_setpcap_it_gives_up_what_it_can():
    only = "-all,+net_raw,+kill"
    said = run("setpriv", "--bounding-set", only, "--inh-caps", only)
    assert values(said, "CapEff")[:2] == [f"{1 << 13:016x}"] * 2


def test_without_net_raw_it_is_refused():
    only = "-net_raw"
    assert run("setpriv", "--bounding-set", only, "--inh-caps", only) == "refused 1\n"


def test_it_is_refused_when_another_thread_has_begun():
    script = (
        "import threading\n"
        "from ddump_worker.capabilities import keep_only_net_raw\n"
        "ended = threading.Event()\n"
        "threading.Thread(target=ended.wait).start()\n"
        "try:\n"
        "    keep_only_net_raw()\n"
        "except RuntimeError as exc:\n"
        "    print(exc)\n"
        "ended.set()\n"
    )
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said == "capabilities are dropped before any other thread begins\n"


async def test_every_task_of_root_s_worker_has_one_and_captures_opened_later_work(
    tmp_path,
):
    ring = ("--ring-dir", str(tmp_path / "ring"), "--ring-size", "8MB")
    small = ("--segment-size", "2MB", "--ring-reserve", "1MB")
    async with worker(*ring, *small) as running, aiohttp.ClientSession() as http:
        for _ in range(2):
            with talker() as udp:
                query = {"filter": udp.filter, "packets": "1"}
                async with http.get(f"{running.url}/capture", params=query) as answer:
                    sent = udp.send()
                    # The loop's, the recorder's, and those that open handles.
                    for name in ("CapEff", "CapPrm", "CapBnd"):
                        assert running.status_fields(name) == {f"{1 << 13:016x}"}
                    for name in ("CapInh", "CapAmb"):
                        assert running.status_fields(name) == {f"{0:016x}"}
                    assert running.status_fields("NoNewPrivs") == {"1"}
                    assert payloads(await answer.read()) == sent


async def test_root_s_helpers_have_none_and_look_names_up():
    slow = " or ".join(f"port {number}" for number in range(1, 301))
    async with worker() as running, aiohttp.ClientSession() as http:
        url = f"{running.url}/capture"

        async def compile_slowly() -> None:
            async with http.get(url, params={"filter": slow}) as answer:
                assert answer.status == 400  # it takes too long

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(compile_slowly())
            await wait_until(running.children)
            (helper,) = running.children()
            await wait_until(lambda: capabilities_of(helper) == {f"{0:016x}"})
        async with http.head(url, params={"filter": "host localhost"}) as answer:
            assert answer.status == 200


def capabilities_of(pid: int) -> set[str]:
    said = Path(f"/proc/{pid}/status").read_text()
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    return {value for name in names for value in values(said, name)}
