"""What is given to Kubernetes: judged by its schemas, and run as a pod would be.

There is no cluster in a test. The pod is a mount and a pid namespace, in the network of a
host: its container has the capabilities, the files, the read-only root and the command
that the DaemonSet and the image name. Its seccomp profile is not in force.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dockerfile
import kubernetes_validate
import pytest
import yaml
from cryptography import x509

import ddump_worker
from ddump_worker.config import read_file
from support.machines import await_fact
from support.namespaces import network
from support.programs import BIN, DDUMP
from support.roots import CHECKOUT, ENTER, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = CHECKOUT / "deploy/kubernetes.yaml"
DOCUMENTS = {each["kind"]: each for each in yaml.safe_load_all(PATH.read_text())}
POD = DOCUMENTS["DaemonSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = DOCUMENTS["ConfigMap"]["data"]
README = (CHECKOUT / "deploy/README.rst").read_text()
RELOAD = re.search(r"sh -c '(.+?)'\n", README, re.DOTALL)[1]
# The oldest that is maintained by anybody, and the newest that is known.
VERSIONS = ("1.28", kubernetes_validate.latest_version())

_KUBECTL = """#!/bin/sh
[ "$1" != get ] || echo 10.0.0.1 2001:db8::1 10.0.0.2
[ "$*" != "apply -f -" ] || cat >secret
"""

# The kubelet's and the runtime's work, after which the container's first process begins.
_RUN = (
    ENTER
    + """
ln -s checkout opt/ddump
show "$VOLUMES/settings" etc/ddump
mkdir -p var/lib/ddump run/ddump
mount --bind "$VOLUMES/ring" var/lib/ddump
mount -t tmpfs -o mode=777 tmpfs run/ddump
pivot_root . mnt
umount -l mnt
mount -o remount,ro /
exec env -i PATH=/usr/bin:/bin setpriv --bounding-set=-all,+net_raw --inh-caps=-all \\
    --no-new-privs "$@"
"""
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Namespace", "ConfigMap", "DaemonSet"])
def test_each_document_is_as_its_schema_has_it(kind, version):
    kubernetes_validate.validate(DOCUMENTS[kind], version, strict=True)


def test_the_schema_is_strict():
    pod = {**POD, "hostNetwrok": True}
    spec = {**DOCUMENTS["DaemonSet"]["spec"], "template": {"spec": pod}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**DOCUMENTS["DaemonSet"], "spec": spec}, VERSIONS[-1], strict=True
        )


def test_what_is_named_is_there():
    spec = DOCUMENTS["DaemonSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    namespace = DOCUMENTS["Namespace"]["metadata"]["name"]
    for kind in ("ConfigMap", "DaemonSet"):
        assert DOCUMENTS[kind]["metadata"]["namespace"] == namespace
    mounted = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}
    config_map, secret = volume("settings")["projected"]["sources"]
    assert config_map["configMap"]["name"] == DOCUMENTS["ConfigMap"]["metadata"]["name"]
    assert f"create secret generic {secret['secret']['name']} " in README


def test_the_image_is_of_this_version():
    image = f"registry.example/ddump-worker:{ddump_worker.__version__}"
    assert CONTAINER["image"] == image
    assert f"podman push {image}\n" in README


def test_each_node_is_a_target_and_its_certificate_is_for_it(tmp_path):
    """Run the README's lines with a ``kubectl`` that knows three addresses."""
    (lines,) = re.findall(r"::\n\n((?:    .*\n)+?    done >fleet.targets\n)", README)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(_KUBECTL)
    kubectl.chmod(0o755)
    script = f"ddump pki init; {lines} {lines}"
    subprocess.run(
        ["sh", "-euc", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{BIN}:/usr/bin:/bin"},
        check=True,
    )
    targets = (tmp_path / "fleet.targets").read_text().split()
    assert targets == ["https://10.0.0.1", "https://[2001:db8::1]", "https://10.0.0.2"]
    pem = (tmp_path / "ddump-pki/servers/ddump-worker.pem").read_bytes()
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    addresses = set(map(str, names.value.get_values_for_type(x509.IPAddress)))
    assert addresses == {"10.0.0.1", "2001:db8::1", "10.0.0.2"}


def test_secrets_are_for_root_alone_and_root_has_one_capability():
    assert volume("settings")["projected"]["defaultMode"] == 0o400
    security = CONTAINER["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_RAW"]}
    # Nobody else would be given it.
    assert security["runAsUser"] == 0
    assert not security["allowPrivilegeEscalation"]
    assert not security["privileged"]
    assert security["readOnlyRootFilesystem"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not POD["automountServiceAccountToken"]


def test_the_settings_are_of_the_worker_and_name_files_that_it_has(tmp_path):
    file = tmp_path / "worker.toml"
    file.write_text(SETTINGS["worker.toml"])
    told = read_file(file)
    secret = set(
        re.findall(r"--from-file=(?:ddump-pki/)?([a-z]+\.(?:pem|key))", README)
    )
    named = {
        Path(str(value)) for name, value in told.items() if name.startswith("tls_")
    }
    assert named == {Path("/etc/ddump", name) for name in secret}
    ports = {int(each.rpartition(":")[2]) for each in told["listen"] if each[0] != "u"}
    assert ports == {each["containerPort"] for each in CONTAINER["ports"]}


def volume(name: str) -> dict:
    return next(each for each in POD["volumes"] if each["name"] == name)


def fill(settings: Path, folder: Path, *, name: str) -> None:
    """Write what the kubelet would: files behind a link that is replaced as a whole."""
    data = settings / name
    data.mkdir(mode=0o755)
    contents = {
        **{file: text.encode() for file, text in SETTINGS.items()},
        "server.pem": (folder / "servers/ddump-worker.pem").read_bytes(),
        "server.key": (folder / "servers/ddump-worker.key").read_bytes(),
        **{file: (folder / file).read_bytes() for file in ("ca.pem", "crl.pem")},
    }
    mode = volume("settings")["projected"]["defaultMode"]
    for file, content in contents.items():
        (data / file).write_bytes(content)
        (data / file).chmod(mode)
        link = settings / file
        if not link.is_symlink():
            link.symlink_to(f"..data/{file}")
    new = settings / "..new"
    new.symlink_to(name)
    new.rename(settings / "..data")


@contextlib.contextmanager
def pod(host, volumes: Path) -> Iterator[list[str]]:
    """Run the container in the network of ``host``; yield how a command is run in it."""
    steps = dockerfile.parse_file(str(CHECKOUT / "deploy/Containerfile"))
    words = {step.cmd: list(step.value) for step in steps if step.json}
    assert CONTAINER.keys().isdisjoint({"command", "args"})
    root = volumes / "root"
    root.mkdir()
    with (volumes / "log").open("wb") as log:
        process = subprocess.Popen(
            host.command(
                "unshare", "--mount", "--pid", "--fork", "--ipc", "--kill-child",
                "sh", "-c", _RUN, "run", *words["ENTRYPOINT"], *words["CMD"],
            ),
            env=environment(root, VOLUMES=str(volumes)),
            stderr=log,
        )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        await_fact(
            lambda: (
                b"listening" in (volumes / "log").read_bytes()
                or process.poll() is not None
            )
        )
        assert process.returncode is None
        (pid,) = children.read_text().split()
        yield ["nsenter", f"--target={pid}", "--all", "--root", "--wd"]
    finally:
        process.kill()
        process.wait()
        # Shown when the test fails.
        sys.stderr.write((volumes / "log").read_text())


@pytest.mark.live
@pytest.mark.process
def test_a_pod_captures_its_node_and_is_told_who_is_revoked(tmp_path):
    folder = tmp_path / "ddump-pki"
    settings = tmp_path / "settings"
    settings.mkdir()
    (tmp_path / "ring").mkdir()

    def pki(*words: str) -> None:
        subprocess.run([BIN / "ddump", "pki", *words], cwd=tmp_path, check=True)

    with network(1, prefix="pod") as net:
        (node,) = net.hosts
        pki("init")
        pki("server", "ddump-worker", node.address)
        pki("client", "alice")
        fill(settings, folder, name="..1")
        client = [
            DDUMP, "--ca", folder / "ca.pem", "--cert", folder / "clients/alice.pem",
            "--key", folder / "clients/alice.key", "--last", "1m", "-f", "icmp",
            f"https://{node.address}", "-w", "-",
        ]  # fmt: skip

        def ask() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                net.client.command(*map(str, client)), capture_output=True, check=False
            )

        with pod(node, tmp_path) as inside:
            for probe in ("readinessProbe", "livenessProbe"):
                asked = CONTAINER[probe]["exec"]["command"]
                subprocess.run([*inside, *asked], check=True)
            status = subprocess.check_output(
                [*inside, "cat", "/proc/1/status"], text=True
            )
            assert re.search(rf"^CapEff:\t{1 << 13:016x}$", status, re.MULTILINE)
            net.client.run("ping", "-c", "1", node.address)
            await_fact(lambda: len(ask().stdout) > 24)
            # As the README tells to.
            pki("revoke", "alice")
            fill(settings, folder, name="..2")
            subprocess.run([*inside, "sh", "-c", RELOAD], check=True)
            await_fact(lambda: b"revoked" in ask().stderr)
            assert ask().returncode == 3
