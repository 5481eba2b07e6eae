"""The files around the code: GitHub's forms and workflows, versions, the changelog."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
LOCKED = {package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


LIMIT = 50_000_000
"""Bytes of all tracked files: small enough to clone in seconds and to send to a machine with 64 MiB of upload."""


def test_all_tracked_files_together_are_small() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is a copy without Git")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert len(sizes) > 400
    largest = sorted(sizes, key=sizes.__getitem__)[-6:]
    assert sum(sizes.values()) <= LIMIT, {name: sizes[name] for name in largest}


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_github_files_are_yaml_of_their_kind(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        # YAML 1.1 reads the key `on` as true.
        assert content.keys() >= {"name", True, "permissions", "jobs"}
        assert all(step.keys() & {"uses", "run"} for job in content["jobs"].values() for step in job["steps"])
    elif path.name != "config.yml":
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_checks_are_the_script_of_the_repository() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_tag_publishes_only_its_own_version() -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]["publish"]["steps"]
    assert any("GITHUB_REF_NAME#v" in step.get("run", "") for step in steps)
    # The line that the workflow looks for.
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_versions_agree() -> None:
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["rev"] == f"v{LOCKED['ruff']['version']}"
    assert LOCKED["magicdistillation"]["version"] == VERSION
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == VERSION
