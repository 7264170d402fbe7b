from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ddump_common

ROOT = Path(__file__).parents[2]


def test_no_two_modules_export_the_same_name():
    exported = [
        name
        for module in pkgutil.iter_modules(ddump_common.__path__)
        for name in importlib.import_module(f"ddump_common.{module.name}").__all__
    ]
    assert len(set(exported)) == len(exported)


def test_the_package_itself_imports_nothing_that_takes_long():
    code = "import sys, ddump_common.errors; print({'ssl', 'msgspec'} & {*sys.modules})"
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "set()\n"


@pytest.mark.parametrize("folder", ["common", "worker", "merger"])
def test_versions_are_in_lockstep(folder):
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    module = importlib.import_module(f"ddump_{folder}")
    assert project["version"] == module.__version__ == ddump_common.__version__
    for requirement in project["dependencies"]:
        if requirement.startswith("ddump"):
            assert requirement == f"ddump-common=={ddump_common.__version__}"
