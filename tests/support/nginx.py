"""nginx as Debian runs it, with our ``nginx/ddump.conf`` beside its own files.

It runs in a namespace of the network, where the paths that its files name are folders of
one test: nothing of this host is changed. Of nginx's own files that alone is edited which
``deploy/README.rst`` says.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.programs import started
from support.readmes import block_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.certificates import Authority, Pair
    from support.namespaces import Host

_CHECKOUT = Path(__file__).parents[2]
CONFIGURATION = _CHECKOUT / "nginx/ddump.conf"
PORT = 8475
USER = "www-data"
START_SECONDS = 8
# Where the parts of a test's folder are seen by nginx.
_PLACES = {
    "etc": "/etc/nginx",
    "run": "/run",
    "log": "/var/log/nginx",
    "lib": "/var/lib/nginx",
    "sysctl": "/etc/sysctl.d",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """A running nginx: its host, and the folder that it takes for the places above."""

    host: Host
    folder: Path
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"https://{self.host.address}:{PORT}"

    def log(self, name: str = "ddump.log") -> str:
        """Return what it has written to a log so far."""
        return (self.folder / "log" / name).read_text()

    def pids(self) -> set[int]:
        """Return the processes that serve connections."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, children.read_text().split()))

    def reload(self) -> set[int]:
        """Have it read its files anew; return the processes of before.

        Waits until new ones serve: of what the old ones accepted, they keep the rest.
        """
        before = self.pids()
        self.process.send_signal(signal.SIGHUP)
        _await(lambda: self.pids() - before, "nginx has no new processes")
        # The new ones are told first, the old ones to stop accepting only then.
        _await(lambda: not any(map(_accepts, before & self.pids())), "they accept")
        return before

    def wake(self) -> None:
        """Have each process look at its clock, and do what is due by it."""
        log = self.folder / "log/ddump.log"
        log.rename(log.with_suffix(".old"))
        # It opens its logs anew, after what is due.
        self.process.send_signal(signal.SIGUSR1)
        _await(
            lambda: log.exists() and all(_has_open(pid, log) for pid in self.pids()),
            "not all processes have opened their logs",
        )


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return any(each.samefile(path) for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _accepts(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return b"shutting down" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def socket_path(folder: Path, name: str = "worker") -> Path:
    """Return where the worker has to listen that nginx is to find by this name."""
    return folder / "run/ddump" / f"{name}.sock"


def prepare(
    folder: Path, *, authority: Authority, server: Pair, passwords: Mapping[str, str]
) -> None:
    """Lay out ``folder``: Debian's files, ours, and those that ours names."""
    shutil.copytree("/etc/nginx", folder / "etc", symlinks=True)
    shutil.copy(CONFIGURATION, folder / "etc/conf.d")
    for name in ("run/ddump", "log", "lib", "sysctl"):
        (folder / name).mkdir(parents=True)
    ours = folder / "etc/ddump"
    ours.mkdir()
    for name, source in (
        ("ca.pem", authority.cert),
        ("crl.pem", authority.crl),
        ("server.pem", server.cert),
        ("server.key", server.key),
    ):
        shutil.copy(source, ours / name)
    users = ours / "users"
    users.touch(0o640)
    users.write_text(
        "".join(f"{name}:{_crypt(each)}\n" for name, each in passwords.items())
    )
    shutil.chown(users, "root", USER)


def _crypt(password: str) -> str:
    return subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"],
        check=True,
        input=password,
        capture_output=True,
        text=True,
    ).stdout.strip()


@contextlib.contextmanager
def nginx(
    host: Host, folder: Path, *, environment: Mapping[str, str]
) -> Iterator[Nginx]:
    """Run nginx on ``host`` with what was prepared in ``folder``."""
    # ip netns exec has a mount namespace of its own, and nothing leaks out of it.
    mounts = [
        f"mount --bind {folder}/{part} {place}" for part, place in _PLACES.items()
    ]
    readme = _CHECKOUT / "deploy/README.rst"
    limits = [block_with(readme, name) for name in ("worker_connections", "sysctl")]
    words = ["exec", "env", *(f"{name}={value}" for name, value in environment.items())]
    # As systemd has it begin.
    begun = ["ulimit -Sn 1024", f"{' '.join(words)} nginx -g 'daemon off;'"]
    script = "\n".join([*mounts, *limits, *begun])
    with started(
        host.command("sh", "-ec", script),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with host.entered():
            _await_port(host.address, process)
        yield Nginx(host=host, folder=folder, process=process)


def _await_port(address: str, process: subprocess.Popen) -> None:
    def listens() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"nginx did not start:\n{process.stderr.read()}")
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((address, PORT), 1).close()
            return True
        return False

    _await(listens, "nginx does not listen")


def _await(condition, complaint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.02)  # nginx tells nobody: ask again
