"""What an installation brings: the wheel's files, and the names that an editable installation makes importable."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The folders of the wheel, and where their files are in the repository.
PACKAGES = {"magicdistill_core": "magicdistill_core", "magicdistill_train": "train"}
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
LOOK = """
import importlib.util, json, site, sys
before = set(sys.path)
site.addsitedir(sys.argv[1])
names = ("magicdistill_core", "magicdistill_train.presets", "magicdistill_train.cli", "train", "benchmarks", "nodes")
found = [name for name in names if importlib.util.find_spec(name)]
sys.stdout.write(json.dumps([found, sorted(set(sys.path) - before)]))
"""


def source_files(package: str) -> set[str]:
    """The files of a package in the repository, by their place in the wheel."""
    folder = ROOT / PACKAGES[package]
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{package}/{path.relative_to(folder).as_posix()}" for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, with empty weights files, since building leaves files next to the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in (*PACKAGES.values(), "nodes", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                place = copy / path.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    for folder in (copy / "train", copy / "train" / "run"):
        (folder / "__pycache__").mkdir(exist_ok=True)
        (folder / "__pycache__" / "left_over.cpython-311.pyc").touch()
    return copy


def build(kind: str, source: Path, out: Path) -> zipfile.ZipFile:
    """Build a wheel without a network: the backend of pyproject.toml, setuptools, is installed with PyTorch."""
    out.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_the_core_and_the_trainer_and_nothing_else(source: Path, tmp_path: Path) -> None:
    wheel = build("wheel", source, tmp_path / "out")
    (information,) = {name.split("/")[0] for name in wheel.namelist()} - PACKAGES.keys()
    assert information.endswith(".dist-info")
    files = {name for name in wheel.namelist() if not name.startswith(information)}
    assert files == {file for package in PACKAGES for file in source_files(package)}
    assert "magicdistill = magicdistill_train.cli:main" in wheel.read(f"{information}/entry_points.txt").decode()


def test_editable_installation_keeps_the_repository_off_the_path(source: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build("editable", source, tmp_path / "out").extractall(site)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", LOOK, str(site)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found, added = json.loads(done.stdout)
    assert found == ["magicdistill_core", "magicdistill_train.presets", "magicdistill_train.cli"]
    assert not [path for path in added if Path(path).is_relative_to(source)]


def test_installed_command_runs_outside_of_the_repository(source: Path, tmp_path: Path) -> None:
    build("wheel", source, tmp_path / "out").extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "magicdistill_train", "inspect", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    for fact in ("magicdistill_train", "inspect", "--sha256"):
        assert fact in done.stdout


def test_trainer_never_names_itself() -> None:
    """The installed package has another name."""
    wrong = [
        path
        for path in (ROOT / "train").rglob("*.py")
        if re.search(r"^\s*(from|import) (train|magicdistill_train)\b", path.read_text(encoding="utf-8"), re.M)
    ]
    assert not wrong
