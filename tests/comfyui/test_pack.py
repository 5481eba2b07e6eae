"""Installing the pack into an environment that runs ComfyUI adds and replaces nothing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~!;\[ ]", requirement, maxsplit=1)[0].lower()


def test_every_dependency_is_one_of_comfyuis(comfyui_dir: Path) -> None:
    lines = (comfyui_dir / "requirements.txt").read_text().splitlines()
    comfyuis = {name_of(line) for line in lines if line and not line.startswith("#")}
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} <= comfyuis


def test_no_dependency_has_an_upper_bound() -> None:
    assert not [requirement for requirement in PROJECT["dependencies"] if re.search(r"<|==|~=", requirement)]


def test_installer_has_nothing_to_do() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", *PROJECT["dependencies"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout
    assert done.stdout.count("Requirement already satisfied") >= len(PROJECT["dependencies"])
