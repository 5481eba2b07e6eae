"""The nodes' schemas are a promise to saved workflows; what a person reads about them is complete."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

SNAPSHOT = Path(__file__).with_name("schemas.json")
HELP = Path(__file__).resolve().parents[2] / "nodes" / "web" / "docs"
RENEW = "MAGICDISTILL_RENEW"
# What a saved workflow depends on: an input's type, its range, and what it is where nothing is set.
KEPT = ("default", "min", "max", "step", "round", "options", "forceInput", "multiline", "control_after_generate")
# Inputs whose options are the files of a folder.
FILES = {"unet_name", "lora_name"}
# Encoders that not every build of PyAV has.
OPTIONAL_FORMATS = {"mp4 (hevc, 10-bit)"}
UNITS = re.compile(
    r"pixels|frames|seconds|no unit|whole number|model calls|videos in one run|steps of|frames a second|quality", re.I
)
WHEN = re.compile(
    r"\b(change|connect|raise|lower|set|choose|use|load|from|replaces?|steer|write|press|take|keep)\b", re.I
)


@pytest.fixture(scope="module")
def nodes(server: Any) -> dict[str, dict[str, Any]]:
    """The pack's nodes as the server describes them."""
    info = server.get("/object_info")
    return {name: info[name] for name in sorted(info) if name.startswith("MagicDistill")}


def schema(node: dict[str, Any]) -> dict[str, Any]:
    """What a saved workflow needs of a node: inputs and outputs in order."""
    inputs = []
    for group in ("required", "optional"):
        for name, (kind, options) in node["input"].get(group, {}).items():
            kept = {key: options[key] for key in KEPT if key in options and not (key == "options" and name in FILES)}
            if "options" in kept:
                kept["options"] = [option for option in kept["options"] if option not in OPTIONAL_FORMATS]
            inputs.append({"name": name, "type": kind, "required": group == "required"} | kept)
    outputs = [{"name": name, "type": kind} for name, kind in zip(node["output_name"], node["output"], strict=True)]
    return {"inputs": inputs, "outputs": outputs, "output_node": node["output_node"]}


def inputs(nodes: dict[str, dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every input as (node and name, type, options)."""
    return [
        (f"{node_id}.{name}", kind, options)
        for node_id, node in nodes.items()
        for group in ("required", "optional")
        for name, (kind, options) in node["input"].get(group, {}).items()
    ]


def test_saved_workflows_still_fit(nodes: dict[str, dict[str, Any]]) -> None:
    found = {name: schema(node) for name, node in nodes.items()}
    if os.environ.get(RENEW):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text()), (
        "A schema changed, and workflows that people saved were made for the old one. Inputs may be added at the end "
        "with a default; then renew the snapshot with `MAGICDISTILL_RENEW=1 uv run pytest -n 0 "
        "tests/comfyui/test_schemas.py`. A node id or an input that is renamed, removed or moved also needs an "
        "io.NodeReplace, as docs/nodes.md says, so that old workflows are led to the new one."
    )


def test_every_node_is_explained(nodes: dict[str, dict[str, Any]]) -> None:
    assert {page.stem for page in HELP.glob("*.md")} == set(nodes)
    names = [node["display_name"] for node in nodes.values()]
    assert len(set(names)) == len(names)
    for node_id, node in nodes.items():
        assert node["category"].startswith("MagicDistillation/"), node_id
        assert node["description"].endswith("."), node_id
        assert len(node["search_aliases"]) >= 4, node_id
        assert "magicdistill" in node["search_aliases"], node_id
        assert all(node["output_tooltips"] or []), node_id
        page = (HELP / f"{node_id}.md").read_text()
        assert page.startswith(f"# {node['display_name']}\n"), node_id
        assert "## Input" in page, node_id


def test_every_input_has_a_place_on_its_help_page(nodes: dict[str, dict[str, Any]]) -> None:
    missing = []
    for name, _, _ in inputs(nodes):
        node_id, _, own = name.partition(".")
        if f"**{own}**" not in (HELP / f"{node_id}.md").read_text():
            missing.append(name)
    assert not missing


def test_every_input_says_when_to_change_it(nodes: dict[str, dict[str, Any]]) -> None:
    silent = [f"{name}: {options.get('tooltip')}" for name, _, options in inputs(nodes) if not says_when(options)]
    assert not silent


def says_when(options: dict[str, Any]) -> bool:
    tooltip = options.get("tooltip", "")
    return bool(WHEN.search(tooltip)) and tooltip.endswith(".") and 30 <= len(tooltip) <= 330


def test_every_number_says_its_range_and_unit(nodes: dict[str, dict[str, Any]]) -> None:
    def written(value: float) -> str:
        return "2^64 - 1" if value == 2**64 - 1 else f"{value:g}"

    wrong = [
        f"{name} ({options['min']} to {options['max']}): {options['tooltip']}"
        for name, kind, options in inputs(nodes)
        if kind in ("INT", "FLOAT")
        and not (written(options["max"]) in options["tooltip"] and UNITS.search(options["tooltip"]))
    ]
    assert not wrong
