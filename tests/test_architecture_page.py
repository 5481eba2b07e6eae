"""The architecture page names files and definitions that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# `name` (`path`), possibly over a line break; a name may be Class.field.
NAMED = re.findall(r"`([\w.]+)`\s+\(`([\w/]+\.py)`\)", PAGE)


def test_every_file_and_folder_exists() -> None:
    paths = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", PAGE))
    assert len(paths) > 25
    rooms = {f"{room}/" for room in re.findall(r"^\| `(\w+)/` \| ", PAGE.split("### The rooms")[1], re.MULTILINE)}
    missing = [
        path
        for path in paths
        if not (ROOT / path).exists() and not (path in rooms and (ROOT / "train" / path).is_dir())
    ]
    assert not [path for path in missing if path != "models/diffusion_models"]


def test_the_rooms_are_those_of_the_trainer() -> None:
    rooms = set(re.findall(r"^\| `(\w+)/` \| ", PAGE.split("### The rooms")[1], re.MULTILINE))
    there = {folder.parent.name for folder in (ROOT / "train").glob("*/__init__.py")}
    assert rooms == there


@pytest.mark.parametrize(("name", "path"), NAMED, ids=[name for name, _ in NAMED])
def test_every_definition_is_in_its_file(name: str, path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    owner, _, member = name.partition(".")
    assert re.search(rf"^\s*(class|def) {owner}\b", text, re.MULTILINE)
    assert not member or re.search(rf"\b{member}\b", text)
