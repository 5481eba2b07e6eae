"""The nodes' schemas fit saved workflows, and every node and input has its explanation."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

SNAPSHOT = Path(__file__).with_name("schemas.json")
HELP = Path(__file__).resolve().parents[2] / "nodes" / "web" / "docs"
RENEW = "MAGICDISTILL_RENEW"
# The properties of an input that a saved workflow depends on. Texts are not among them.
KEPT = ("default", "min", "max", "step", "round", "options", "forceInput", "multiline", "control_after_generate")
# Inputs whose options are the files of a folder.
FILES = {"unet_name": "models/diffusion_models", "lora_name": "models/loras"}
# Not every build of PyAV has these encoders.
OPTIONAL_FORMATS = {"mp4 (hevc, 10-bit)"}
UNITS = re.compile(
    r"pixels|frames|frames per second|seconds|model calls|steps|number of videos|whole number|quality scale|no unit",
    re.I,
)
TOOLTIP_LENGTHS = range(40, 321)


@pytest.fixture(scope="module")
def nodes(server: Any) -> dict[str, dict[str, Any]]:
    """Return the descriptions of the pack's nodes, from the server."""
    info = server.get("/object_info")
    return {name: info[name] for name in sorted(info) if name.startswith("MagicDistill")}


def schema(node: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a node that a saved workflow depends on: inputs and outputs in order."""
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
    """Return every input as (node and name, type, options)."""
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
        "A schema changed, but saved workflows use the old one. You may add an input at the end, with a default: then "
        "renew the snapshot with `MAGICDISTILL_RENEW=1 uv run pytest -n 0 tests/comfyui/test_schemas.py`. If you "
        "rename, remove or move a node id or an input, also register an io.NodeReplace (see docs/nodes.md)."
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
        # The page's list of essential nodes is fixed. The field would only take the node out of the filter Extensions.
        assert not node.get("essentials_category"), node_id
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


def test_every_input_has_a_tooltip_of_a_readable_length(nodes: dict[str, dict[str, Any]]) -> None:
    wrong = [
        f"{name}: {tooltip!r}"
        for name, _, options in inputs(nodes)
        for tooltip in [options.get("tooltip", "")]
        if len(tooltip) not in TOOLTIP_LENGTHS or not tooltip[0].isupper() or not tooltip.endswith(".")
    ]
    assert not wrong


def mentions(text: str, value: object) -> bool:
    """Return whether a text contains a value as a word or number of its own, not as a part of another one."""
    shown = f"{value:g}" if isinstance(value, float) else str(value).replace(str(2**64 - 1), "2^64 - 1")
    return bool(re.search(rf"(?<![\w.-]){re.escape(shown)}(?!\.?\w)", text))


def test_every_number_tells_its_unit_its_range_and_its_default(nodes: dict[str, dict[str, Any]]) -> None:
    wrong = {}
    for name, kind, options in inputs(nodes):
        if kind in ("INT", "FLOAT"):
            bounds = {options["max"], options["default"]} | ({options["min"]} - {0, 1})
            missing = [bound for bound in bounds if not mentions(options["tooltip"], bound)]
            if missing or not UNITS.search(options["tooltip"]):
                wrong[name] = (missing, options["tooltip"])
    assert not wrong


def test_every_choice_tells_its_default_or_its_folder(nodes: dict[str, dict[str, Any]]) -> None:
    wrong = {}
    for name, kind, options in inputs(nodes):
        if kind == "COMBO":
            expected = FILES.get(name.partition(".")[2]) or options["default"]
            if expected not in options["tooltip"]:
                wrong[name] = (expected, options["tooltip"])
    assert not wrong
