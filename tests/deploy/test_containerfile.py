"""The Containerfile, as far as it can be judged where no image can be pulled.

BuildKit's own parser reads it. What its steps name is looked up in this checkout; the
steps themselves are not run.
"""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import dockerfile

import ddump_worker._pcap
from support.roots import CHECKOUT

STEPS = dockerfile.parse_file(str(CHECKOUT / "deploy/Containerfile"))
INSTALLED = "/opt/ddump"


def values(*commands: str) -> list[tuple[str, ...]]:
    return [step.value for step in STEPS if step.cmd in commands]


def script(*, having: str) -> str:
    (found,) = (value for (value,) in values("RUN") if having in value)
    return found


def test_two_stages_of_one_base_and_no_unknown_step():
    build, image = values("FROM")
    assert build == (*image, "AS", "build")
    # A name that says where it is from, and which Debian: its python is the worker's.
    assert image == ("docker.io/library/debian:bookworm-slim",)
    known = {"FROM", "RUN", "COPY", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert {step.cmd for step in STEPS} == known


def test_each_shell_script_is_one():
    for (text,) in values("RUN"):
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_what_is_built_is_what_the_worker_depends_on():
    copied = {
        target: source
        for step in STEPS
        if step.cmd == "COPY" and not step.flags
        for source, target in [step.value]
    }
    names = {}
    for target, source in copied.items():
        project = tomllib.loads((CHECKOUT / source / "pyproject.toml").read_text())
        names[project["project"]["name"]] = project["project"]
        assert target in script(having="pip install").split()
    siblings = {
        need.partition("==")[0]
        for need in names["ddump-worker"]["dependencies"]
        if need.startswith("ddump")
    }
    assert set(names) == {"ddump-worker", *siblings}


def test_nothing_that_was_built_here_gets_into_the_image():
    ignored = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if line.startswith(("*", "!")) and "**" not in line] == [
        "*", "!common", "!worker",
    ]  # fmt: skip
    built = subprocess.check_output(
        ["git", "-c", "safe.directory=*", "ls-files", "--others", "--ignored", "--exclude-standard", "-z",
         "common", "worker"],
        cwd=CHECKOUT, text=True,
    ).split("\0")  # fmt: skip
    patterns = [line.removeprefix("**/") for line in ignored if line.startswith("**/")]
    named = [line for line in ignored if line.startswith("worker/")]
    for name in filter(None, built):
        path = Path(name)
        assert any(
            part.match(pattern)
            for part in (path, *path.parents)
            for pattern in (*patterns, *named)
        ), name


def test_the_image_runs_the_worker_with_the_libraries_it_needs():
    assert ("--from=build",) in [step.flags for step in STEPS if step.cmd == "COPY"]
    ((program,),) = values("ENTRYPOINT")
    (arguments,) = values("CMD")
    project = tomllib.loads((CHECKOUT / "worker/pyproject.toml").read_text())["project"]
    assert program in {f"{INSTALLED}/bin/{name}" for name in project["scripts"]}
    assert arguments == ("--config", "/etc/ddump/worker.toml")
    needed = subprocess.check_output(
        ["readelf", "--dynamic", ddump_worker._pcap.__file__], text=True
    )
    # Debian names a library's package by it and its version.
    assert "[libpcap.so.0.8]" in needed
    packages = script(having="rm -rf").split()
    assert {"libpcap0.8", "python3", "curl"} <= set(packages)
