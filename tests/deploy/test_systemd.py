"""The fleet of ``deploy/README.rst``: its own lines, on hosts that a real systemd runs.

Not run are the two lines that make and pack the programs: each machine has that of this
checkout, as if it came from these wheels. What ``ssh`` reaches there is dropbear, which,
unlike OpenSSH's, can be installed without being started; all else is the real thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ddump_common.pki import Authority
from ddump_common.tls import server_context
from ddump_common.units import SECONDS
from support.certificates import EXPIRED, older
from support.machines import Machine, await_fact, machine, write_hosts
from support.namespaces import Host, network
from support.programs import BIN, started
from support.readmes import blocks
from support.roots import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.process]

UNIT = "ddump-worker.service"
DAYS = 24 * 3600 * SECONDS
ONLY_NET_RAW = f"{1 << 13:016x}"
NOTHING = f"{0:016x}"
# What is run on a machine has its python, which may be none of Debian's.
_SERVE = """
dropbearkey -t ed25519 -f /root/host.key >/dev/null
systemd-run --quiet --property=Type=forking dropbear -s -r /root/host.key \\
    -c 'PATH=/opt/python/bin:$PATH; eval "$SSH_ORIGINAL_COMMAND"'
"""
_WHEEL = "ddump_worker-0-py3-none-any.whl"
# Of the program that each machine has; and of one that is not whole.
_THERE, _BROKEN = b"the program that is there", b"half a"
# Long enough for the worker on a busy machine, and for a test to wait for.
_DROP_IN = "[Service]\nWatchdogSec=4s\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Two machines that the README's lines have made workers; ``said`` is their output."""

    client: Host
    web1: Machine
    db1: Machine
    folder: Path
    hosts: Path
    said: str

    def command(self, script: str) -> list[str]:
        """Return ``script`` as somebody runs it, on a desk in the same network."""
        return self.client.command(
            "unshare", "--mount", "sh", "-ec",
            f"mount --bind '{self.hosts}' /etc/hosts; cd '{self.folder}'; {script}",
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}:{BIN}:{os.environ['PATH']}"}

    def run(self, script: str, *, code: int = 0) -> str:
        done = subprocess.run(
            self.command(script),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def make_client(self, name: str) -> str:
        """Make a certificate; return how ddump is told of it."""
        self.run(f"ddump pki client {name}")
        files = (
            f"--cert ddump-pki/clients/{name}.pem --key ddump-pki/clients/{name}.key"
        )
        return f"ddump --ca ddump-pki/ca.pem {files}"

    @contextlib.contextmanager
    def capturing(self, ddump: str, rest: str):
        """Run ``ddump`` with ``rest`` until the body has a packet; yield its process."""
        with (
            started(
                self.command(f"exec {ddump} {rest} -w -"),
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process,
        ):
            yield process


def folder_of(wheel: bytes) -> str:
    """Return where the program of this one wheel is installed."""
    line = f"{hashlib.sha256(wheel).hexdigest()}  ./{_WHEEL}\n"
    return hashlib.sha256(line.encode()).hexdigest()[:16]


def lay_program(machine: Machine) -> None:
    """Have the checkout's program stand where that of the wheels would."""
    name = folder_of(_THERE)
    machine.run(
        "sh", "-ec",
        "rm -rf /opt/ddump; mkdir /opt/ddump; cd /opt/ddump;"
        f"ln -s /opt/checkout {name}; ln -s {name} current",
    )  # fmt: skip


def write_ssh(folder: Path) -> str:
    """Put an ``ssh`` with a key of its own into ``folder``; return who that lets in."""
    key = folder / "ssh.key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {key}\nUserKnownHostsFile {folder}/known_hosts\n"
        "StrictHostKeyChecking accept-new\n"
    )
    ssh = folder / "ssh"
    ssh.write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
    )
    ssh.chmod(0o755)
    return key.with_suffix(".key.pub").read_text()


def serve_ssh(machine: Machine, who: str) -> None:
    """Let who has that key be root there, from now on."""
    home = machine.path("/root/.ssh")
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "authorized_keys").write_text(who)
    machine.run("sh", "-ec", _SERVE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    with network(2, prefix="fleet") as net, contextlib.ExitStack() as stack:
        addresses = {"web1": net.hosts[0].address, "db1": net.hosts[1].address}
        machines, who = [], write_ssh(folder)
        for name, host in zip(addresses, net.hosts, strict=True):
            running = stack.enter_context(
                machine(name, host, addresses=addresses, folder=folder)
            )
            serve_ssh(running, who)
            drop_in = running.path(f"/etc/systemd/system/{UNIT}.d/test.conf")
            drop_in.parent.mkdir()
            drop_in.write_text(_DROP_IN)
            lay_program(running)
            machines.append(running)
        (folder / "wheels").mkdir()
        (folder / "wheels" / _WHEEL).write_bytes(_THERE)
        (folder / "deploy").symlink_to(CHECKOUT / "deploy")
        made = Fleet(
            client=net.client,
            web1=machines[0],
            db1=machines[1],
            folder=folder,
            hosts=write_hosts(folder / "hosts", addresses),
            said="",
        )
        lines = blocks(CHECKOUT / "deploy/README.rst")[0].splitlines(keepends=True)
        assert [line.split()[0] for line in lines[:2]] == ["make", "pip"]
        said = made.run("".join(lines[2:]))
        assert [each.unit(UNIT)["NRestarts"] for each in machines] == ["0", "0"]
        yield Fleet(**{**{k: getattr(made, k) for k in made.__slots__}, "said": said})


@pytest.fixture
def web1(fleet):
    """The first machine, with its worker running."""
    fleet.web1.run("systemctl", "start", UNIT)
    return fleet.web1


def main_pid(host: Machine) -> str:
    return host.unit(UNIT)["MainPID"]


def test_ten_lines_show_the_last_minute_of_two_hosts(fleet):
    replies = re.findall(r"IP \S+ > \S+: ICMP echo reply", fleet.said)
    # Each of three, where it leaves.
    assert len(replies) == 3, fleet.said
    for target in ("web1: 6", "db1: 0", "all: 6"):
        assert f"\n{target} packets received, 0" in fleet.said
    for host in (fleet.web1, fleet.db1):
        unit = host.unit(UNIT)
        assert (unit["ActiveState"], unit["UnitFileState"]) == ("active", "enabled")


def test_the_unit_is_verified_and_its_exposure_is_below_two(web1):
    path = f"/etc/systemd/system/{UNIT}"
    assert web1.path(path).read_bytes() == (CHECKOUT / "deploy" / UNIT).read_bytes()
    assert web1.run("systemd-analyze", "verify", "--recursive-errors=yes", path) == ""
    told = web1.run("systemd-analyze", "security", "--no-pager", "--offline=true", path)
    exposure = re.search(r"Overall exposure level for \S+: (\S+)", told)[1]
    assert float(exposure) < 2.0
    assert (
        f"rates its exposure {exposure} of 10"
        in (CHECKOUT / "deploy/README.rst").read_text()
    )


def test_it_runs_as_its_own_user_with_one_capability(fleet, web1):
    ddump = fleet.make_client("carol")
    with fleet.capturing(ddump, "-c 1 -f icmp https://web1") as capture:
        assert capture.stdout.read(24)
        for task in web1.path(f"/proc/{main_pid(web1)}/task").iterdir():
            said = dict(
                line.partition(":\t")[::2]
                for line in (task / "status").read_text().splitlines()
            )
            user = web1.run("id", "--user", "ddump").strip()
            assert set(said["Uid"].split()) == {user} != {"0"}
            for name in ("CapEff", "CapPrm", "CapBnd"):
                assert said[name] == ONLY_NET_RAW
            for name in ("CapInh", "CapAmb"):
                assert said[name] == NOTHING
            assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
        fleet.run("ping -c 1 web1")
        assert capture.wait(10) == 0


def test_its_files_are_its_own(web1):
    for path, expected in {
        "/etc/ddump/server.key": "root:ddump 640",
        "/etc/ddump": "root:ddump 750",
        "/etc/ddump/pushed": "root:ddump 750",
        "/var/lib/ddump": "ddump:ddump 700",
        "/var/lib/ddump/ring": "ddump:ddump 700",
    }.items():
        assert web1.run("stat", "-L", "--format=%U:%G %a", path).strip() == expected
    web1.run("runuser", "-u", "nobody", "cat", "/etc/ddump/server.key", code=1)


def test_it_may_use_neither_keyrings_nor_io_uring(web1):
    allowed = set(web1.unit(UNIT)["SystemCallFilter"].split())
    assert {"bind", "epoll_wait", "capset", "chown"} <= allowed
    assert not {each for each in allowed if "key" in each or "io_uring" in each}


def test_nothing_that_it_can_write_can_be_executed(web1):
    pid = main_pid(web1)
    mounts = web1.path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    options = {line.split()[4]: set(line.split()[5].split(",")) for line in mounts}
    # In these two no user makes files.
    assert {path for path, each in options.items() if not each & {"ro", "noexec"}} == {
        "/dev/pts",
        "/dev/hugepages",
    }
    there = ("nsenter", f"--target={pid}", "--mount", "sh", "-c")
    for folder in ("/var/lib/ddump", "/run/ddump", "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108
        done = web1.run(
            *there, f"cd {folder} && cp /bin/true it && {{ ./it; s=$?; rm it; exit $s; }}",
            code=126,
        )  # fmt: skip
        assert "Permission denied" in done


def test_it_is_active_only_when_it_takes_requests(fleet, web1):
    web1.run("systemctl", "stop", UNIT)
    web1.run("systemctl", "start", "--no-block", UNIT)
    await_fact(lambda: main_pid(web1) != "0")
    web1.run("systemctl", "kill", "--signal=STOP", UNIT)
    assert web1.unit(UNIT)["ActiveState"] == "activating"
    # Nobody listens there yet.
    assert fleet.run("curl -s https://web1:8475/", code=7) == ""
    web1.run("systemctl", "kill", "--signal=CONT", UNIT)
    web1.run("systemctl", "start", UNIT)  # waits for the start that is under way
    assert web1.unit(UNIT)["SubState"] == "running"
    fleet.run("curl -s --insecure https://web1:8475/", code=56)  # certificate required


def test_the_watchdog_ends_a_worker_that_hangs(web1):
    before = web1.unit(UNIT)
    web1.run("kill", "-STOP", before["MainPID"])
    await_fact(lambda: int(web1.unit(UNIT)["NRestarts"]) > int(before["NRestarts"]))
    web1.run("systemctl", "start", UNIT)
    after = web1.unit(UNIT)
    assert after["SubState"] == "running"
    assert after["MainPID"] != before["MainPID"]
    journal = web1.journal(UNIT)
    assert "Watchdog timeout" in journal
    # What it did meanwhile, by thread.
    assert "Fatal Python error: Aborted" in journal
    assert "recorder.py" in journal


def test_what_was_recorded_survives_a_kill(fleet, web1):
    ddump = fleet.make_client("dave")
    fleet.run("ping -c 1 -s 1234 web1")

    def is_in_the_ring() -> bool:
        window = f"{ddump} --last 1m -w - https://web1 | tcpdump -nr-"
        return "echo request" in fleet.run(f"{window} 'icmp and greater 1234'")

    await_fact(is_in_the_ring)
    before = web1.unit(UNIT)
    web1.run("kill", "-KILL", before["MainPID"])
    await_fact(lambda: int(web1.unit(UNIT)["NRestarts"]) > int(before["NRestarts"]))
    web1.run("systemctl", "start", UNIT)
    assert main_pid(web1) != before["MainPID"]
    await_fact(is_in_the_ring)  # once what was there is adopted


def test_a_push_lets_in_no_more_who_is_revoked(fleet, web1):
    before = main_pid(web1)
    alice, bob = fleet.make_client("alice2"), fleet.make_client("bob")
    stream = "-f icmp https://web1"
    with (
        fleet.capturing(alice, stream) as hers,
        fleet.capturing(bob, f"-c 2 {stream}") as his,
    ):
        for capture in (hers, his):
            assert capture.stdout.read(24)
        lines = blocks(CHECKOUT / "deploy/README.rst")[1]
        assert lines.startswith("ddump pki revoke alice\n")
        fleet.run(lines.replace("alice", "alice2"))
        assert hers.wait(10) != 0
        assert b"revoked" in hers.stderr.read()
        fleet.run("ping -c 1 web1")
        assert his.wait(10) == 0
    assert "revoked" in fleet.run(f"{alice} --last 1m https://web1 -w - 2>&1", code=3)
    assert main_pid(web1) == before


def shown_by(fleet) -> str:
    """Return the serial number of the certificate that the first machine shows."""
    return fleet.run(
        "openssl s_client -connect web1:8475 </dev/null 2>/dev/null | "
        "openssl x509 -noout -serial"
    )


def pushed(host: Machine) -> list[str]:
    """Return what is in force of what was pushed, and all folders that are there."""
    settings = host.path("/etc/ddump")
    for name in ("server.key", "server.pem", "ca.pem", "crl.pem"):
        assert (settings / name).readlink().as_posix() == f"pushed/{name}"
    folders = sorted(each.name for each in settings.glob("pushed.*"))
    return [(settings / "pushed").readlink().name, *folders]


def test_a_new_certificate_is_shown_after_a_push(fleet, web1):
    before, pid = shown_by(fleet), main_pid(web1)
    fleet.run(blocks(CHECKOUT / "deploy/README.rst")[2])
    await_fact(lambda: shown_by(fleet) != before)
    assert main_pid(web1) == pid


def test_a_push_without_wheels_leaves_the_program_as_it_is(fleet, web1):
    pid, wheels = main_pid(web1), fleet.folder / "wheels"
    aside = wheels.rename(fleet.folder / "aside")
    try:
        said = fleet.run("deploy/push web1")
    finally:
        aside.rename(wheels)
    assert said == "ok\nweb1: its worker takes requests\n"
    assert main_pid(web1) == pid


def test_a_push_that_is_refused_leaves_all_in_force(fleet, web1):
    fleet.run("deploy/push web1")
    before, there = shown_by(fleet), pushed(web1)
    settings = web1.path("/etc/ddump/worker.toml")
    text = settings.read_text()
    settings.write_text(f"{text}{_RULE}")
    try:
        fleet.run("ddump pki server --renew web1")
        assert "port nowhere" in fleet.run("deploy/push web1", code=1)
    finally:
        settings.write_text(text)
    assert pushed(web1) == there
    assert len(there) == 2
    assert not web1.path("/run/ddump-push").exists()
    web1.run("systemctl", "restart", UNIT)
    assert shown_by(fleet) == before


def test_a_push_takes_over_files_and_what_one_that_was_cut_has_left(fleet, web1):
    settings, pid = web1.path("/etc/ddump"), main_pid(web1)
    for name in ("server.key", "server.pem", "ca.pem", "crl.pem"):
        text = (settings / name).read_bytes()
        (settings / name).unlink()
        (settings / name).write_bytes(text)
    left = settings / "pushed.cut", web1.path("/run/ddump-push")
    for each in left:
        each.mkdir()
        (each / "server.key").touch()
    fleet.run("deploy/push web1")
    assert len(pushed(web1)) == 2
    assert not any(each.exists() for each in left)
    assert main_pid(web1) == pid


# Kills itself before its command of that number, in functions as well.
_CUT = """
cut() { [ $((++commands)) != "$at" ] || kill -KILL $$; }
at=$1 commands=0
set -T
trap cut DEBUG
BASH_ARGV0=/root/cut/install
. /root/cut/install
"""


def test_a_push_that_is_cut_leaves_what_belongs_together(fleet, web1):
    folder, settings = web1.path("/root/cut"), web1.path("/etc/ddump")
    shutil.copytree(CHECKOUT / "deploy", folder)
    for name in ("ca.pem", "crl.pem"):
        shutil.copy(fleet.folder / "ddump-pki" / name, folder)
    authority = authority_of(fleet)
    web1.run("systemctl", "stop", UNIT)
    shown = set()
    try:
        for at in range(1, 1000, 7):
            made = authority.server(["web1"], now_ns=time.time_ns())
            (folder / "server.pem").write_bytes(made.certificate_pem)
            (folder / "server.key").write_bytes(made.key_pem)
            cut = subprocess.run(
                web1.command("bash", "-c", _CUT, "bash", str(at)),
                capture_output=True, timeout=20, check=False,
            )  # fmt: skip
            server_context(
                cert=settings / "server.pem",
                key=settings / "server.key",
                client_ca=settings / "ca.pem",
                crl=settings / "crl.pem",
            )
            shown.add((settings / "server.pem").read_bytes())
            if cut.returncode == 0:
                break
            assert cut.returncode == -signal.SIGKILL, cut.stderr
    finally:
        shutil.rmtree(folder)
    assert len(shown) > 2
    assert (settings / "server.pem").read_bytes() == made.certificate_pem
    assert at > 40
    assert len(pushed(web1)) == 2


_RULE = """
[[access]]
identity = ["cert:*"]
allow = ["stream"]
filter = "port nowhere"
"""


@pytest.mark.parametrize(
    ("name", "added", "reason"),
    [
        ("crl.pem", "no list", "/etc/ddump/crl.pem: "),
        ("worker.toml", _RULE, "port nowhere"),
    ],
)
def test_a_reload_of_what_is_wrong_fails_and_changes_nothing(
    fleet, web1, name, added, reason
):
    ddump = fleet.make_client(f"erin.{name}")
    before, path = main_pid(web1), web1.path(f"/etc/ddump/{name}")
    text = path.read_text()
    path.write_text(added if name == "crl.pem" else f"{text}{added}")
    try:
        web1.run("systemctl", "reload", UNIT, code=1)
        assert reason in web1.journal(UNIT)
        if name == "worker.toml":  # which a push leaves as it is
            said = fleet.run("deploy/push web1", code=1)
            assert reason in said
            assert said.endswith("web1: failed\nfailed: web1\n")
        fleet.run(f"{ddump} --duration 0.1s https://web1 -w /dev/null")
    finally:
        path.write_text(text)
    web1.run("systemctl", "reload", UNIT)
    unit = web1.unit(UNIT)
    assert (unit["MainPID"], unit["ActiveState"]) == (before, "active")


def authority_of(fleet) -> Authority:
    pki = fleet.folder / "ddump-pki"
    return Authority.parse(
        *((pki / f"ca.{end}").read_bytes() for end in ("pem", "key"))
    )


def test_a_push_does_what_can_be_done_and_names_the_rest(fleet, web1):
    assert "usage" in fleet.run("deploy/push", code=2)
    authority = older(authority_of(fleet))
    over = authority.server(["over"], now_ns=time.time_ns() - EXPIRED * DAYS)
    servers = fleet.folder / "ddump-pki/servers"
    (servers / "over.pem").write_bytes(over.certificate_pem)
    (servers / "over.key").write_bytes(over.key_pem)
    fleet.run("ddump pki server gone && ddump pki revoke gone")
    fleet.run(
        "ddump pki server swapped && cd ddump-pki/servers && cp over.key swapped.key"
    )
    fleet.run("ddump pki server 2001:db8::1")
    said = fleet.run("deploy/push gone nowhere over swapped 2001:DB8::01 WEB1", code=1)
    assert "/servers/gone.pem is no good: certificate revoked" in said
    assert "/servers/over.pem is no good: certificate has expired" in said
    assert (
        "\nWEB1: its worker takes requests\nfailed: "
        "gone nowhere over swapped 2001:DB8::01\n" in said
    )
    assert "/servers/swapped.key is not the key of " in said
    assert {"gone.pem", "nowhere.pem", "web1.pem"} < {
        each.name for each in servers.iterdir()
    }
    assert not {"WEB1.pem", "2001:db8::01.pem"} & {
        each.name for each in servers.iterdir()
    }


_BROKEN_MAIN = """
import sys
def main():
    sys.exit(None if "--check" in sys.argv else "the interpreter is gone")
"""


def wheel_of(program: str, *, main: str = "ddump_worker.cli:main") -> bytes:
    """Return a wheel that is whole, and has the program in that folder."""
    packages = [
        f"{program}/{each}" for each in ("packages", "src/common", "src/worker")
    ]
    info = "ddump_worker-0.dist-info"
    files = {
        "ddump.pth": "\n".join(packages),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: ddump-worker\nVersion: 0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nddump-worker = {main}\n",
        "broken.py": _BROKEN_MAIN,
    }
    files[f"{info}/RECORD"] = "".join(
        f"{name},,\n" for name in (*files, f"{info}/RECORD")
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def test_a_program_is_replaced_by_one_that_is_whole(fleet, web1):
    before = main_pid(web1)
    wheel, programs = fleet.folder / "wheels" / _WHEEL, web1.path("/opt/ddump")
    try:
        wheel.write_bytes(_BROKEN)
        assert "web1: failed" in fleet.run("deploy/push web1", code=1)
        assert {each.name for each in programs.iterdir()} == {
            "current", folder_of(_THERE),
        }  # fmt: skip
        assert (programs / "current").readlink().name == folder_of(_THERE)
        assert main_pid(web1) == before
        web1.run("/opt/ddump/current/bin/ddump-worker", "--version")

        whole = wheel_of("/opt/checkout")
        wheel.write_bytes(whole)
        fleet.run("deploy/push web1")
        assert (programs / "current").readlink().name == folder_of(whole)
        assert {each.name for each in programs.iterdir()} == {
            "current", folder_of(whole),
        }  # fmt: skip
        after = web1.unit(UNIT)
        assert (after["ActiveState"], after["NRestarts"]) == ("active", "0")
        assert after["MainPID"] != before
        # A venv, made there, of whose python it is.
        running = web1.path(f"/proc/{after['MainPID']}/cmdline").read_bytes()
        assert running.startswith(f"/opt/ddump/{folder_of(whole)}/bin/".encode())
    finally:
        wheel.write_bytes(_THERE)
        lay_program(web1)
        web1.run("systemctl", "restart", UNIT)


def test_a_program_that_does_not_run_gives_way_to_what_ran(fleet, web1):
    fleet.run("deploy/push web1")
    wheel, programs = fleet.folder / "wheels" / _WHEEL, web1.path("/opt/ddump")
    there, before = pushed(web1), shown_by(fleet)
    try:
        wheel.write_bytes(wheel_of("/opt/checkout", main="broken:main"))
        fleet.run("ddump pki server --renew web1")
        said = fleet.run("deploy/push web1", code=1)
        assert "it does not run: what ran before does so again\nweb1: failed\n" in said
        assert "the interpreter is gone" in said
        assert (programs / "current").readlink().name == folder_of(_THERE)
        assert not (programs / "before").exists()
        assert pushed(web1)[0] == there[0]
        assert web1.unit(UNIT)["ActiveState"] == "active"
        assert shown_by(fleet) == before
        wheel.write_bytes(_THERE)
        fleet.run("deploy/push web1")
        assert shown_by(fleet) != before
        assert {each.name for each in programs.iterdir()} == {
            "current", folder_of(_THERE),
        }  # fmt: skip
    finally:
        wheel.write_bytes(_THERE)


def test_it_ends_streams_as_they_are_and_then_itself(fleet, web1):
    ddump = fleet.make_client("frank")
    with fleet.capturing(ddump, "--no-reconnect -f icmp https://web1") as capture:
        assert capture.stdout.read(24)
        web1.run("systemctl", "stop", UNIT)
        capture.wait(10)
        assert b"its worker shut down" in capture.stderr.read()
    unit = web1.unit(UNIT)
    assert (unit["Result"], unit["ExecMainStatus"]) == ("success", "0")
    assert unit["ActiveState"] == "inactive"
    assert web1.run("pgrep", "--uid", "ddump", code=1) == ""


def test_behind_a_proxy_it_gives_the_socket_to_that_group(fleet, web1):
    toml, drop_in, limits, links = blocks(CHECKOUT / "deploy/README.rst")[3:7]
    client = fleet.make_client("grace")
    site = web1.path("/etc/nginx/conf.d/ddump.conf")
    settings = web1.path("/etc/ddump/worker.toml")
    before = settings.read_text()
    place = web1.path(f"/etc/systemd/system/{UNIT}.d/proxy.conf")
    try:
        place.write_text(drop_in)
        kept = [
            line
            for line in before.splitlines()
            if not re.match("listen|tls-(cert|key|client-ca) ", line)
        ]
        settings.write_text("\n".join([toml, *kept]))
        web1.run("systemctl", "daemon-reload")
        web1.run("systemctl", "restart", UNIT)
        socket = "/run/ddump/worker.sock"
        told = web1.run("stat", "--format=%U:%G %a", socket)
        assert told == "ddump:www-data 660\n"
        web1.run(
            "runuser", "-u", "www-data", "--", "curl", "--fail", "--unix-socket",
            socket, "http://localhost/api/v1/health",
        )  # fmt: skip
        web1.run("sh", "-ec", "mkdir /var/log/nginx; nginx 2>/dev/null")
        web1.run("sh", "-ec", limits)
        site.write_bytes((CHECKOUT / "nginx/ddump.conf").read_bytes())
        web1.run("sh", "-ec", links)
        await_fact(lambda: ":8475 " in web1.run("ss", "-Hlnt"))
        with fleet.capturing(client, "-c 2 -f icmp https://web1") as capture:
            assert capture.stdout.read(24), capture.stderr.read()
            fleet.run("ping -c 1 web1")
            assert capture.wait(10) == 0
    finally:
        web1.run("sh", "-c", "nginx -s stop || :")
        site.unlink(missing_ok=True)
        settings.write_text(before)
        place.unlink()
        web1.run("systemctl", "daemon-reload")
        web1.run("systemctl", "restart", UNIT)
