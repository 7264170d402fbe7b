"""Machines that a real systemd has booted, each on the network of a ``Host``.

A machine is a set of namespaces over this host's own file system, what it changes is
in memory, and all of it is gone with its first process. Of this host's services none is
there. The program is in ``/opt/checkout``, made of this checkout and its environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.roots import ENTER, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from support.namespaces import Host

BOOT_SECONDS = 15

# Run in namespaces of its own; the kernel's settings, which all share, are read-only.
_BOOT = (
    ENTER
    + """
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in var/log etc/systemd usr/lib/systemd/system-generators; do
    mount -t tmpfs -o mode=755 tmpfs "$folder"
done
mkdir etc/systemd/system
for unit in modprobe@.service systemd-modules-load.service systemd-remount-fs.service \
    systemd-logind.service systemd-udevd.service; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
: >etc/machine-id
: >etc/fstab
cp "$HOSTS" etc/hosts
echo "$NAME" >etc/hostname

pivot_root . mnt
umount -l mnt
exec env -i container=ddump-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --show-status=no
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that runs; ``pid`` is its systemd, as it is seen from here."""

    name: str
    host: Host
    pid: int

    def command(self, *arguments: str) -> list[str]:
        """Return ``arguments`` as they are run on this machine, by root."""
        entered = ("nsenter", f"--target={self.pid}", "--all", "--root", "--wd")
        return [*entered, *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``arguments`` there; return what they said."""
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}: {done.stdout}"
        return done.stdout

    def path(self, path: str) -> Path:
        """Return where a file of this machine is from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def unit(self, name: str) -> dict[str, str]:
        """Return all that systemd has to tell of a unit."""
        lines = self.run("systemctl", "show", name).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def journal(self, name: str) -> str:
        """Return what a unit has said, and what systemd of it."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={name}")


def await_fact(fact: Callable[[], object], *, seconds: float = 15) -> None:
    """Ask again until ``fact()`` holds, for facts that nobody announces."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError("it has not come true")
        time.sleep(0.02)


@contextlib.contextmanager
def machine(
    name: str, host: Host, *, addresses: Mapping[str, str], folder: Path
) -> Iterator[Machine]:
    """Boot a machine on the network of ``host``; it knows others by ``addresses``."""
    root = folder / name
    root.mkdir()
    hosts = write_hosts(folder / f"{name}.hosts", addresses)
    with (
        _group(f"ddump-{os.getpid()}-{name}") as group,
        contextlib.ExitStack() as stack,
    ):
        log = stack.enter_context((folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [
                "sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group),
                *host.command(
                    "unshare", "--mount", "--pid", "--fork", "--uts", "--ipc",
                    "--cgroup", "--kill-child", "sh", "-c", _BOOT,
                ),
            ],
            env=environment(root, HOSTS=str(hosts), NAME=name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )  # fmt: skip
        try:
            await_fact(lambda: _children(process.pid), seconds=BOOT_SECONDS)
            (pid,) = _children(process.pid)
            running = Machine(name=name, host=host, pid=pid)
            await_fact(
                lambda: process.poll() is not None or _is_booting(pid),
                seconds=BOOT_SECONDS,
            )
            running.run("systemctl", "is-system-running", "--wait")
            yield running
        except BaseException:
            sys.stderr.write((folder / f"{name}.log").read_text())
            raise
        finally:
            process.kill()
            process.wait()


def write_hosts(path: Path, addresses: Mapping[str, str]) -> Path:
    """Write a file like /etc/hosts."""
    lines = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in addresses.items())]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _children(pid: int) -> list[int]:
    return [
        int(word)
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def _is_booting(pid: int) -> bool:
    # What systemctl speaks to.
    return (
        Path(f"/proc/{pid}/comm").read_text() == "systemd\n"
        and Path(f"/proc/{pid}/root/run/systemd/private").is_socket()
    )


@contextlib.contextmanager
def _group(name: str) -> Iterator[Path]:
    """Make a control group; remove it, and what is in it, when its processes are gone."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    place = next(
        Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2"
    )
    group = place / name
    group.mkdir()
    try:
        yield group
    finally:
        events = group / "cgroup.events"
        await_fact(lambda: "populated 0" in events.read_text())
        for path, _, _ in os.walk(group, topdown=False):
            Path(path).rmdir()
