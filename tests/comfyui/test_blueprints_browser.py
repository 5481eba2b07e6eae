"""The blueprints on the page: found in the search, inserted with the nodes' defaults, and run."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.comfyui.workflows.blueprints import BLUEPRINTS
from train.comfyui.workflows.write import BLUEPRINT_FOLDER

from .test_browser import persist, run_to_the_end, search_box, set_widget, settle

pytestmark = pytest.mark.slow

WIDGETS = """title => Object.fromEntries(
    window.app.graph.nodes.find(n => n.title === title).widgets.map(w => [w.name, w.value])
)"""


def insert(page: Any, name: str) -> None:
    """Insert a blueprint as a user does: by its name in the node search."""
    search_box(page, 800, 800).fill(name.partition(" (")[0])
    offered = page.get_by_role("option").filter(has_text=name).first
    persist(
        lambda: offered.click(timeout=5000),
        lambda: page.wait_for_function(
            "name => window.app.graph.nodes.some(n => n.title === name)", arg=name, timeout=5000
        ),
    )
    page.wait_for_timeout(500)
    page.mouse.move(900, 300, steps=4)
    page.wait_for_timeout(300)
    page.mouse.click(900, 300)
    page.wait_for_timeout(300)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_is_found_and_inserted_with_its_values(name: str, page: Any, tmp_path: Path) -> None:
    page.evaluate("window.app.graph.clear()")
    insert(page, name)
    page.screenshot(path=tmp_path / "inserted.png")
    (outer,) = json.loads((BLUEPRINT_FOLDER / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    shown = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    found = page.evaluate(WIDGETS, name)
    assert {widget: found[widget] for widget in shown} == dict(zip(shown, outer["widgets_values"], strict=True))
    assert page.get_by_test_id("missing-node-card").count() == 0


def test_inserted_blueprint_runs(page: Any, server: Any, tmp_path: Path) -> None:
    name = list(BLUEPRINTS)[-1]
    page.evaluate("window.app.graph.clear()")
    insert(page, name)
    page.evaluate(
        """name => {
            const graph = window.app.graph, node = LiteGraph.createNode('MagicDistillPocketPortrait');
            node.pos = [0, 0];
            graph.add(node);
            const outer = graph.nodes.find(n => n.title === name);
            const set = (widget, value) => { outer.widgets.find(w => w.name === widget).value = value; };
            outer.pos = [400, 0];
            node.connect(0, outer, 0);
            set('seconds', 0.7);
            set('filename_prefix', 'video/inserted');
        }""",
        name,
    )
    set_widget(page, "MagicDistillPocketPortrait", "seed", 31)
    settle(page)
    run_to_the_end(page, "execution_success")
    page.screenshot(path=tmp_path / "run.png")
    assert list((server.directory / "output" / "video").glob("inserted_*.mp4"))
