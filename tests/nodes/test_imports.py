"""Who may import whom: nodes -> core <- train, and the pack is importable where there is no ComfyUI."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# ComfyUI's own top-level modules that nodes may use.
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "node_helpers", "server"}
INSTALLED_WITH_COMFYUI = {"torch", "numpy", "einops", "safetensors", "pydantic", "PIL", "av", "typing_extensions"}
ABSOLUTE = {
    "nodes": COMFYUI | INSTALLED_WITH_COMFYUI,
    "magicdistill_core": INSTALLED_WITH_COMFYUI,
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
def test_relative_imports_stay_where_they_may(package: str) -> None:
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


def test_root_package_needs_no_comfyui_to_be_imported() -> None:
    spec = importlib.util.spec_from_file_location("pack_root", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public == {"WEB_DIRECTORY", "comfy_entrypoint"}
    assert (ROOT / module.WEB_DIRECTORY / "docs").is_dir()
