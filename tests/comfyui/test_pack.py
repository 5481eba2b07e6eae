"""The pack in ComfyUI's environment: it adds and replaces no package, and it reports a Python that is too old."""

import ast
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from train.comfyui.server import OLDEST_VERSION, VERSION, ComfyUIError, find_comfyui

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKS = [Requirement(text) for text in PROJECT["dependencies"]]


@pytest.fixture(params=[(VERSION, "COMFYUI_DIR"), (OLDEST_VERSION, "COMFYUI_OLDEST_DIR")], ids=lambda param: param[0])
def comfyuis(request: pytest.FixtureRequest, skip_or_fail: Callable[[str, str], NoReturn]) -> dict[str, Requirement]:
    """Return the requirements of the newest tested and the oldest supported ComfyUI, by name."""
    version, variable = request.param
    try:
        folder = find_comfyui(version=version, variable=variable)
    except ComfyUIError as error:
        skip_or_fail("comfyui", f"there is no ComfyUI {version} to compare with: {error}")
    lines = (line.strip() for line in (folder / "requirements.txt").read_text().splitlines())
    return {found.name.lower(): found for found in (Requirement(line) for line in lines if line and line[0] != "#")}


def test_every_dependency_is_one_of_comfyuis(comfyuis: dict[str, Requirement]) -> None:
    assert {requirement.name.lower() for requirement in PACKS} <= set(comfyuis)
    assert not [requirement for requirement in PACKS if requirement.extras or requirement.marker]


def test_comfyuis_own_packages_are_enough(comfyuis: dict[str, Requirement]) -> None:
    """The pack accepts ComfyUI's lower bounds, so no installed package must be replaced by a newer one."""
    for requirement in PACKS:
        if not requirement.specifier:
            continue
        bounds = [Version(bound.version) for bound in comfyuis[requirement.name.lower()].specifier]
        assert bounds, f"ComfyUI takes any {requirement.name}, the pack {requirement.specifier}"
        assert requirement.specifier.contains(min(bounds)), requirement


def test_no_dependency_has_an_upper_bound() -> None:
    assert {bound.operator for requirement in PACKS for bound in requirement.specifier} <= {">="}


def test_older_pythons_get_an_error_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ROOT / "__init__.py"
    ast.parse(entry.read_text(), feature_version=(3, 10))
    loaded = set(sys.modules)
    assert runpy.run_path(str(entry))["WEB_DIRECTORY"]
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    with pytest.raises(ImportError, match=r"Python 3\.11 .*Python 3\.10\.14"):
        runpy.run_path(str(entry))
    assert set(sys.modules) <= loaded
    assert PROJECT["requires-python"] == ">=3.11"
