from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest

import ddump_common

ROOT = Path(__file__).parents[2]


def test_the_package_exports_what_its_modules_do():
    exported = [
        name
        for module in pkgutil.iter_modules(ddump_common.__path__)
        for name in importlib.import_module(f"ddump_common.{module.name}").__all__
    ]
    assert sorted(ddump_common.__all__) == sorted(exported)
    assert len(set(exported)) == len(exported)


@pytest.mark.parametrize("folder", ["common", "worker", "merger"])
def test_versions_are_in_lockstep(folder):
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    module = importlib.import_module(f"ddump_{folder}")
    assert project["version"] == module.__version__ == ddump_common.__version__
    for requirement in project["dependencies"]:
        if requirement.startswith("ddump"):
            assert requirement == f"ddump-common=={ddump_common.__version__}"
