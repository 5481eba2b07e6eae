"""The fields that the Comfy registry reads from the project, and the files of its archive."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The parts of an installed pack; the rest is for training and development.
PACKED = {"nodes", "magicdistill_core", "workflows", "subgraphs", "locales", "docs"}
PACKED_FILES = {"__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", ".comfyignore"}
LIMIT_MB = 60


@pytest.fixture(scope="module")
def packed() -> list[Path]:
    """Return the files of the registry's archive: those in git except those in .comfyignore."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")

    def listed(*options: str) -> set[str]:
        return set(subprocess.check_output(["git", "ls-files", *options], cwd=ROOT, text=True).splitlines())

    ignored = listed("--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted(Path(name) for name in listed() - ignored if (ROOT / name).exists())


def test_archive_holds_the_pack_and_nothing_else(packed: list[Path]) -> None:
    assert {path.parts[0] for path in packed} - PACKED_FILES == PACKED
    assert sum((ROOT / path).stat().st_size for path in packed) < LIMIT_MB * 1e6


def test_archive_runs_without_the_rest(packed: list[Path], comfyui_dir: Path, tmp_path: Path) -> None:
    script = Path("tests/comfyui/import_cost.py")
    for path in [*packed, script]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        # Check the weights by name only; copying the code shows that it needs no file from the clone.
        place = os.symlink if path.suffix == ".safetensors" else shutil.copy
        place(ROOT / path, tmp_path / path)
    command = [sys.executable, str(tmp_path / script), str(comfyui_dir), "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])[0]["packages"] == []


def test_comfyui_reads_the_metadata(comfyui_dir: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from comfy_config.config_parser import extract_node_configuration as read\n"
        "sys.stdout.write(read(sys.argv[2]).model_dump_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(comfyui_dir), str(ROOT)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    project, comfy = found["project"], found["tool_comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["supported_os"] == ["OS Independent"]
    assert project["supported_accelerators"] == []
    assert comfy["publisher_id"]
    assert comfy["display_name"].startswith("MagicDistillation")
    assert not comfy["models"]


def test_icon_is_a_small_picture_in_the_archive(packed: list[Path]) -> None:
    icon = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["comfy"]["Icon"]
    path = Path(icon.partition("/main/")[2])
    assert path.suffix == ".svg"
    assert (ROOT / path).read_text().startswith("<svg")
    assert path in packed
