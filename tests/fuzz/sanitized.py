"""Build the kernels with AddressSanitizer and UBSan, and run a command that uses them.

    sanitized.py COMMAND [ARGUMENTS...]

The command, a program of the environment that runs this (``pytest``, ``python``), finds
the two packages in a temporary copy; the source folders are left as they are. What
either sanitizer finds ends the command with a report on stderr and a failing status.
Leaks are not looked for: the interpreter itself never gives everything back. No process
limits its address space, of which the sanitizer needs all there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("merger", "worker")
FLAGS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)

UNLIMITED = """\
import resource

set_limit = resource.setrlimit

def setrlimit(which, limits):
    if which != resource.RLIMIT_AS:
        set_limit(which, limits)

resource.setrlimit = setrlimit
"""


def build(distribution, folder):
    """Compile the kernels of ``distribution`` in a copy of its sources; return each
    one's name and where it is."""
    source = ROOT / distribution / "src"
    shutil.copytree(
        source, folder, ignore=shutil.ignore_patterns("*.so", "*.c", "*.egg-info")
    )
    with (source.parent / "pyproject.toml").open("rb") as file:
        modules = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    return [(module["name"], compiled(module, folder)) for module in modules]


def compiled(module, folder):
    """Compile one kernel as its entry in pyproject.toml says."""
    pyx = folder / Path(module["sources"][0]).relative_to("src")
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", pyx.relative_to(folder)],
        check=True,
        cwd=folder,
    )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run(
        [
            "gcc",
            *FLAGS,
            "-fPIC",
            "-shared",
            f"-I{sysconfig.get_path('include')}",
            pyx.with_suffix(".c"),
            "-o",
            pyx.with_suffix(suffix),
            *(f"-l{library}" for library in module.get("libraries", ())),
        ],
        check=True,
    )
    return pyx.with_suffix(suffix)


def environment(folders):
    """Return the variables with which a program runs on the kernels of ``folders``."""
    libasan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "LD_PRELOAD": str(Path(libasan).resolve()),
        "PYTHONMALLOC": "malloc",  # each object of its own, so that its end is seen
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def check_loaded(name, path, variables):
    """Fail unless the sanitized kernel is the one that is imported."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlib, sys\n"
            "module = importlib.import_module(sys.argv[1])\n"
            "assert module.__file__ == sys.argv[2], module.__file__",
            name,
            path,
        ],
        check=True,
        env=variables,
    )


def main():
    with tempfile.TemporaryDirectory(prefix="ddump-sanitized-") as name:
        folders = [Path(name) / distribution for distribution in DISTRIBUTIONS]
        kernels = [
            kernel
            for distribution, folder in zip(DISTRIBUTIONS, folders, strict=True)
            for kernel in build(distribution, folder)
        ]
        (folders[0] / "sitecustomize.py").write_text(UNLIMITED)
        variables = environment(folders)
        for module, path in kernels:
            check_loaded(module, path, variables)
        program = Path(sys.executable).parent / sys.argv[1]
        return subprocess.run(
            [program, *sys.argv[2:]], env=variables, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
