"""Which modules may import which: nodes -> core <- train, no circles, and the pack is importable without ComfyUI."""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# ComfyUI's own top-level modules that nodes may use.
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "server"}
INSTALLED_WITH_COMFYUI = {"torch", "numpy", "einops", "safetensors", "pydantic", "PIL", "av", "typing_extensions"}
ABSOLUTE = {
    "nodes": COMFYUI | INSTALLED_WITH_COMFYUI,
    "magicdistill_core": INSTALLED_WITH_COMFYUI,
}
PACKAGES = ("magicdistill_core", "nodes", "train")
# The files of train/ outside its rooms.
TOP_OF_TRAIN = {
    *("__init__.py", "__main__.py", "cli.py", "command_line.py", "console.py", "distributed.py"),
    *("folder_lock.py", "run_folder.py", "signals.py", "surroundings.py"),
}
ROOMS = {
    *("config", "data", "networks", "engines", "methods", "run", "watch", "memory", "tools", "planning", "comfyui"),
    *("pocket", "commands", "curation", "eval", "presets"),
}
SIBLINGS = {"nodes": {"nodes", "magicdistill_core"}, "magicdistill_core": {"magicdistill_core"}}


def imports(file: Path) -> list[tuple[str, int]]:
    """Every import of a file as (dotted name, level); level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ["nodes", "magicdistill_core"])
def test_absolute_imports_are_ones_that_comfyui_has(package: str) -> None:
    allowed = ABSOLUTE[package] | set(sys.stdlib_module_names)
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files(package)
        for name, level in imports(file)
        if level == 0 and name.split(".")[0] not in allowed
    ]
    assert files(package)
    assert not wrong


@pytest.mark.parametrize("package", ["nodes", "magicdistill_core"])
def test_relative_imports_stay_inside_their_package(package: str) -> None:
    wrong = []
    for file in files(package):
        folder = file.relative_to(ROOT).parent.parts
        for name, level in imports(file):
            if level:
                target = (*folder[: len(folder) - level + 1], *name.split("."))
                if target[0] not in SIBLINGS[package]:
                    wrong.append(f"{file.relative_to(ROOT)}: {'.' * level}{name}")
    assert not wrong


def test_trainer_never_imports_nodes_or_comfyui() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files("train")
        for name, level in imports(file)
        if (level == 0 and name.split(".")[0] in COMFYUI | {"nodes"}) or name.split(".")[0] == "nodes"
    ]
    assert not wrong


def modules(package: str) -> dict[str, Path]:
    """Files by dotted name; a package's `__init__.py` has the package's name."""
    named = {}
    for file in files(package):
        parts = file.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


def targets(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Which of the known modules a file imports, anywhere in it; `from a import b` names `a.b` if that is a module."""
    folder = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            base = ".".join([*above, node.module] if node.module else above)
            full = {f"{base}.{alias.name}" for alias in node.names}
            yield from full & known.keys()
            if base in known and full - known.keys():
                yield base


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_each_other_in_one_direction(package: str) -> None:
    known = modules(package)
    edges = {name: set(targets(file, known)) for name, file in known.items()}
    assert sum(map(len, edges.values())) > len(known)
    assert not circle(edges)


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_import_each_other_in_one_direction(package: str) -> None:
    known = modules(package)
    edges: dict[str, set[str]] = {}
    for name, file in known.items():
        room = name.split(".")[1:2]
        others = {target.split(".")[1] for target in targets(file, known) if target != package}
        if room:
            edges.setdefault(room[0], set()).update(others - {room[0]})
    assert edges
    assert not circle(edges)


def test_the_top_of_the_trainer_holds_its_rooms_and_nothing_else() -> None:
    # A folder of an earlier version may be left with compiled files in it.
    files = (path for path in (ROOT / "train").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    found = {path.relative_to(ROOT / "train").parts[0] for path in files}
    assert found == TOP_OF_TRAIN | ROOMS


def test_root_package_needs_no_comfyui_to_be_imported() -> None:
    spec = importlib.util.spec_from_file_location("pack_root", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public == {"WEB_DIRECTORY", "comfy_entrypoint"}
    assert (ROOT / module.WEB_DIRECTORY / "docs").is_dir()
