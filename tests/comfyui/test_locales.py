"""The locale files are complete and served to the page, and the English file equals the nodes' own texts."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
WORKFLOWS = LOCALES.parent / "workflows"
RENEW = "MAGICDISTILL_RENEW"
LANGUAGES = ("en", "zh")


@pytest.fixture(scope="module")
def english(server: Any) -> dict[str, Any]:
    """Return the nodes' own texts in the form of a locale file."""
    info = server.get("/object_info")
    return {name: texts(info[name]) for name in sorted(info) if name.startswith("MagicDistill")}


def texts(node: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of a node that can be translated."""
    inputs = {
        name: {"name": name, "tooltip": options["tooltip"]}
        for group in ("required", "optional")
        for name, (_, options) in node["input"].get(group, {}).items()
    }
    outputs = {
        str(number): {"name": name, "tooltip": tooltip}
        for number, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"] or [], strict=True))
    }
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": inputs,
    } | ({"outputs": outputs} if outputs else {})


def read(language: str) -> dict[str, Any]:
    """Read a locale file."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Return every text, indexed by the path of its keys."""
    if isinstance(value, str):
        return {path: value}
    return {key: text for name, inner in value.items() for key, text in leaves(inner, f"{path}/{name}").items()}


def test_english_equals_the_nodes_texts(english: dict[str, Any]) -> None:
    file = LOCALES / "en" / "nodeDefs.json"
    if os.environ.get(RENEW):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(english, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read("en") == english, (
        "The nodes' texts changed. Renew the English file with `MAGICDISTILL_RENEW=1 uv run pytest -n 0 "
        "tests/comfyui/test_locales.py`, and translate what changed in the others."
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_locale_file_has_every_text_and_nothing_else(language: str, english: dict[str, Any]) -> None:
    assert leaves(read(language)).keys() == leaves(english).keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_can_show_every_text(language: str) -> None:
    # The page's translator reads these characters as commands: link, placeholder, plural.
    wrong = {
        key: text for key, text in leaves(read(language)).items() if not text.strip() or re.search(r"[@{}|]", text)
    }
    assert not wrong


def test_chinese_is_chinese(english: dict[str, Any]) -> None:
    kept = leaves(english)
    chinese = re.compile("[\u4e00-\u9fff]")
    untranslated = [
        key
        for key, text in leaves(read("zh")).items()
        if key.endswith(("tooltip", "description", "display_name")) and not chinese.search(text)
    ]
    assert not untranslated
    # Every number, folder and file name of the English text must be in the translation too.
    numbers = re.compile(r"\d+(?:\.\d+)?|models/\w+|\.\w*safetensors")
    lost = {
        key: missing
        for key, text in leaves(read("zh")).items()
        if (missing := set(numbers.findall(kept[key])) - set(numbers.findall(text)))
    }
    assert not lost


def test_server_hands_them_to_the_page(server: Any) -> None:
    served = server.get("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"].items() >= read(language).items()


def test_page_speaks_chinese(page: Any, server: Any) -> None:
    chinese = read("zh")
    server.post("/settings", {"Comfy.Locale": "zh"})
    try:
        page.reload()
        page.wait_for_function(
            "window.LiteGraph?.registered_node_types['MagicDistillSampler']?.title === "
            + json.dumps(chinese["MagicDistillSampler"]["display_name"]),
            timeout=90_000,
        )
        shown = page.evaluate(
            """() => {
                const node = LiteGraph.createNode('MagicDistillSampler');
                const types = LiteGraph.registered_node_types;
                const labels = [...node.inputs, ...node.widgets].map(part => part.label ?? part.localized_name);
                const ours = Object.entries(types).filter(([name]) => name.startsWith('MagicDistill'));
                return {titles: Object.fromEntries(ours.map(([name, type]) => [name, type.title])), labels};
            }"""
        )
        # Wait until the page has restored the last graph, which would otherwise replace this one.
        page.wait_for_function("window.app?.graph?.nodes.length > 0", timeout=90_000)
        template = json.loads((WORKFLOWS / "portrait_pocket.json").read_text(encoding="utf-8"))
        page.evaluate("graph => window.app.loadGraphData(graph)", template)
        titles = page.evaluate("window.app.graph.nodes.map(n => [n.type, n.title])")
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})
        page.reload()
        page.get_by_role("button", name="Templates").first.wait_for(timeout=90_000)
        # Wait until the page has restored the last graph, which would otherwise overwrite the next test's graph.
        page.wait_for_function("window.app?.graph?.nodes.length > 0", timeout=90_000)
    assert shown["titles"] == {name: node["display_name"] for name, node in chinese.items()}
    ours = {name: title for name, title in titles if name in chinese}
    assert ours
    assert ours == {name: chinese[name]["display_name"] for name in ours}
    expected = {part["name"] for part in chinese["MagicDistillSampler"]["inputs"].values()}
    assert expected <= set(shown["labels"])
