"""The page in a browser: templates, dragging and linking nodes, watching and cancelling a run, help, a subgraph."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from train.comfyui.workflows.prompt import to_prompt
from train.comfyui.workflows.schemas import Schema, parse_schemas
from train.comfyui.workflows.write import DEFINITIONS, FOLDER

pytestmark = pytest.mark.slow

# The page position of a point of a node; `at` computes the canvas coordinates from the node.
SPOT = """([title, at]) => {
    const node = window.app.graph.nodes.find(n => n.title === title), canvas = window.app.canvas;
    const [x, y] = new Function('n', `return ${at}`)(node), box = canvas.canvas.getBoundingClientRect();
    const {scale, offset} = canvas.ds;
    return [(x + offset[0]) * scale + box.left, (y + offset[1]) * scale + box.top];
}"""
# Called repeatedly: whether the view has not moved since the last call.
STANDS_STILL = """() => {
    const {scale, offset} = window.app.canvas.ds, last = window.lastView;
    window.lastView = [scale, ...offset].join();
    return window.lastView === last;
}"""
PREVIEW = """async () => {
    const node = window.app.graph.nodes.find(n => n.type === 'MagicDistillSampler');
    const bytes = new Uint8Array(await (await fetch(node.imgs[0].src)).arrayBuffer());
    return String.fromCharCode(...bytes.slice(0, 400));
}"""
TRIES = 6
TYPES = "window.app.canvas.graph.nodes.map(n => n.type)"


@pytest.fixture(scope="module")
def schemas(server: Any) -> dict[str, Schema]:
    """Return the nodes of the running ComfyUI."""
    return parse_schemas(server.get("/object_info"))


def persist(act: Callable[[], None], seen: Callable[[], None]) -> None:
    """Repeat an action until a busy page has noticed it.

    Args:
        act: makes the action on the page.
        seen: waits for the effect; raises Playwright's TimeoutError if there is none.
    """
    for attempt in range(TRIES):
        try:
            act()
            return seen()
        except TimeoutError:
            if attempt == TRIES - 1:
                raise


def open_template(page: Any, name: str) -> None:
    """Open one of the pack's templates in a new tab of the canvas."""
    whole = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("([whole, name]) => window.app.loadGraphData(whole, true, true, name)", [whole, name])
    settle(page)


def open_by_dialog(page: Any, name: str) -> None:
    """Open a template in the dialog, as a user does. A template that is already open gets another tab."""

    def choose() -> None:
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Templates").first.click(timeout=10_000)
        page.get_by_text("magicdistillation").first.click(timeout=10_000)
        page.get_by_test_id(f"template-workflow-{name}").click(timeout=10_000)

    page.evaluate("window.app.graph.clear()")
    opened = "name => window.app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)"
    persist(choose, lambda: page.wait_for_function(opened, arg=name, timeout=15_000))
    page.wait_for_function("window.app.graph.nodes.length > 3")
    settle(page)


def settle(page: Any) -> None:
    """Wait until the view has moved to the graph, which takes long on a busy machine."""
    page.wait_for_timeout(1000)
    page.wait_for_function(STANDS_STILL, polling=300)


def spot(page: Any, title: str, at: str) -> tuple[float, float]:
    """Return the page position of a point of the node with this title."""
    x, y = page.evaluate(SPOT, [title, at])
    return x, y


def search_box(page: Any, x: float, y: float) -> Any:
    """Double-click an empty place of the canvas until the node search opens, and return its box.

    Use `fill`, not key presses: keys pressed before the box has the focus are shortcuts of the canvas.
    """
    box = page.get_by_placeholder("Add a node...")
    page.wait_for_timeout(800)
    persist(lambda: page.mouse.dblclick(x, y), lambda: box.wait_for(timeout=5000))
    return box


def set_widget(page: Any, node_type: str, name: str, value: object) -> None:
    """Set a value on the first node of a type on the canvas."""
    page.evaluate(
        "([type, name, value]) => window.app.graph.nodes.find(n => n.type === type)"
        ".widgets.find(w => w.name === name).value = value",
        [node_type, name, value],
    )


def wait_for_video(page: Any, part: str) -> None:
    """Wait until the page plays a video of the pocket model's size whose file name contains this part."""
    page.wait_for_function(
        "part => [...document.querySelectorAll('video')]"
        ".some(v => v.videoWidth === 96 && (v.currentSrc || v.src).includes(part))",
        arg=part,
        timeout=240_000,
    )


def texts(page: Any) -> str:
    """Return all texts that the nodes on the canvas show."""
    return page.evaluate("window.app.graph.nodes.flatMap(n => (n.widgets ?? []).map(w => String(w.value))).join('\\n')")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_template_opens_completely(name: str, page: Any, schemas: dict[str, Schema], tmp_path: Path) -> None:
    open_by_dialog(page, name)
    page.screenshot(path=tmp_path / f"{name}.png")
    unknown = page.evaluate("window.app.graph.nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])")
    assert unknown == []
    assert page.get_by_test_id("missing-node-card").count() == 0
    # The page sends the values of the file: no value moved to another widget, and no link is lost.
    sent = page.evaluate("window.app.graphToPrompt().then(p => Object.values(p.output))")
    whole = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))

    def essence(nodes: list[dict]) -> Counter[str]:
        # Inside subgraphs the page assigns new ids, so only the slot of a link is compared. It writes 1.0 as 1.
        parts: Counter[str] = Counter()
        for node in nodes:
            inputs = {name: value[1:] if isinstance(value, list) else value for name, value in node["inputs"].items()}
            whole = {name: int(v) for name, v in inputs.items() if isinstance(v, float) and v.is_integer()}
            parts[json.dumps([node["class_type"], inputs | whole], sort_keys=True)] += 1
        return parts

    assert essence(sent) == essence(list(to_prompt(whole, schemas).values()))
    assert page.evaluate("window.app.graph.links.size") == len(whole["links"])


def test_template_runs_and_comes_back_from_its_video(page: Any, server: Any, tmp_path: Path) -> None:
    open_template(page, "portrait_pocket")
    # Another seed, so no result comes from the cache of an earlier test.
    set_widget(page, "MagicDistillSampler", "seed", 4242)
    set_widget(page, "MagicDistillSaveVideo", "filename_prefix", "video/browser")
    page.get_by_test_id("queue-button").click()
    wait_for_video(page, "browser")
    page.screenshot(path=tmp_path / "portrait_pocket.png")
    assert "timesteps 1000, 937.5, 833.3, 625" in texts(page)
    assert not page.get_by_test_id("error-overlay").is_visible()

    video = max((server.directory / "output" / "video").glob("browser_*.mp4"), key=lambda file: file.stat().st_mtime)
    page.evaluate("window.app.graph.clear()")
    handle = page.evaluate_handle(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'portrait.mp4', {type: 'video/mp4'}));
            return data;
        }""",
        list(video.read_bytes()),
    )
    page.dispatch_event("canvas#graph-canvas", "drop", {"dataTransfer": handle})
    page.wait_for_function("window.app.graph.nodes.filter(n => n.type.startsWith('MagicDistill')).length === 5")
    assert "4242" in texts(page)


def test_a_long_video_is_shown_when_it_is_done(page: Any, tmp_path: Path) -> None:
    """The page would show the last preview of the sampling instead of the video."""
    open_template(page, "long_portrait_pocket")
    set_widget(page, "MagicDistillLongVideo", "seconds", 1.0)
    set_widget(page, "MagicDistillLongVideo", "seed", 40)
    set_widget(page, "MagicDistillLongVideo", "filename_prefix", "video/long_shown")
    page.get_by_test_id("queue-button").click()
    wait_for_video(page, "long_shown")
    page.screenshot(path=tmp_path / "long_portrait_pocket.png")
    assert "24 frames in 2 segments, of which 2 are new" in texts(page)


def test_nodes_are_dragged_found_linked_and_run(page: Any, tmp_path: Path) -> None:
    page.evaluate("window.app.graph.clear()")
    # The class of older pages, and the name of newer ones.
    page.locator(".node-library-tab-button, [data-testid=node-library-tab-button]").first.click()
    page.locator("input[placeholder*=Search]").first.fill("pocket portrait")
    found = page.get_by_text("Pocket portrait", exact=True).first
    found.wait_for()
    page.wait_for_timeout(1000)  # the tree expands
    page.screenshot(path=tmp_path / "library.png")
    canvas = page.locator("canvas#graph-canvas")
    persist(
        lambda: found.drag_to(canvas, target_position={"x": 700, "y": 300}),
        lambda: page.wait_for_function(f"{TYPES}.includes('MagicDistillPocketPortrait')", timeout=5000),
    )
    # The class of older pages, and the name of newer ones.
    page.locator(".node-library-tab-button, [data-testid=node-library-tab-button]").first.click()

    search_box(page, 800, 800).fill("save portrait")
    offered = page.get_by_role("option").filter(has_text="Save portrait video").first
    offered.wait_for()
    page.screenshot(path=tmp_path / "search.png")
    offered.click()
    # The new node follows the pointer until a click places it.
    page.wait_for_function(f"{TYPES}.includes('MagicDistillSaveVideo')")
    page.wait_for_timeout(500)
    page.mouse.move(1150, 350, steps=4)
    page.wait_for_timeout(300)
    page.mouse.click(1150, 350)
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "placed.png")

    def link() -> None:
        page.mouse.move(*spot(page, "Pocket portrait", "n.getOutputPos(0)"))
        page.mouse.down()
        page.mouse.move(*spot(page, "Save portrait video", "n.getInputPos(0)"), steps=10)
        page.mouse.up()

    persist(link, lambda: page.wait_for_function("window.app.graph.links.size === 1", timeout=5000))
    set_widget(page, "MagicDistillPocketPortrait", "seed", 99)
    set_widget(page, "MagicDistillSaveVideo", "filename_prefix", "video/dragged")
    page.get_by_test_id("queue-button").click()
    wait_for_video(page, "dragged")
    page.screenshot(path=tmp_path / "dragged.png")


def test_preview_moves_and_a_run_can_be_cancelled(page: Any, server: Any, tmp_path: Path) -> None:
    open_template(page, "portrait_pocket")
    set_widget(page, "MagicDistillSampler", "steps", 1000)
    set_widget(page, "MagicDistillSampler", "seed", 77)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "window.app.graph.nodes.find(n => n.type === 'MagicDistillSampler').imgs?.[0]?.naturalWidth === 96",
        timeout=120_000,
    )
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "preview.png")
    head = page.evaluate(PREVIEW)
    assert (head[:4], head[8:12]) == ("RIFF", "WEBP")
    assert "ANIM" in head
    overlap = page.evaluate(
        "(() => { const of = t => window.app.graph.nodes.find(n => n.type === t), s = of('MagicDistillSampler');"
        " return s.pos[1] + s.size[1] - (of('VAEDecode').pos[1] - 30); })()"
    )
    assert overlap <= 0, "the preview pushes the node over its neighbour"
    (running,) = [prompt_id for _, prompt_id, *_ in server.get("/queue")["queue_running"]]
    page.get_by_role("button", name="Cancel current run").click()
    assert "execution_interrupted" in dict(server.wait(running)["status"]["messages"])
    set_widget(page, "MagicDistillSampler", "steps", 2)
    set_widget(page, "MagicDistillSaveVideo", "filename_prefix", "video/afterwards")
    page.get_by_test_id("queue-button").click()
    wait_for_video(page, "afterwards")
    assert re.search(r"steps is 2.* 4\b", texts(page))
    page.screenshot(path=tmp_path / "afterwards.png")


def notes(page: Any) -> dict[str, str]:
    """Return the notes under the pack's nodes by their types."""
    return page.evaluate(
        "Object.fromEntries(window.app.graph.nodes"
        ".map(n => [n.type, n.widgets?.find(w => w.name === '$$node-text-preview')])"
        ".filter(([, w]) => w).map(([type, w]) => [type, w.value]))"
    )


def run_to_the_end(page: Any, event: str) -> None:
    """Press Run and wait for the last message of the run."""
    page.evaluate(
        "event => { window.ended = false;"
        " window.comfyAPI.api.api.addEventListener(event, () => { window.ended = true }, {once: true}) }",
        event,
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.ended", timeout=240_000)
    page.wait_for_timeout(500)


def test_notes_are_those_of_the_last_run(page: Any, tmp_path: Path) -> None:
    open_template(page, "portrait_pocket")
    set_widget(page, "MagicDistillSaveVideo", "filename_prefix", "video/notes")
    run_to_the_end(page, "execution_success")
    first = notes(page)
    assert all(first[f"MagicDistill{kind}"] for kind in ("LoadModel", "PortraitToVideo", "Sampler", "SaveVideo"))
    # Every line ends: the modern design shows the lines of a note as one paragraph.
    assert all(line.endswith((".", ".  ")) for note in first.values() for line in note.split("\n"))
    set_widget(page, "MagicDistillPortraitToVideo", "width", 50)
    run_to_the_end(page, "execution_error")
    assert {kind: note for kind, note in notes(page).items() if note} == {
        "MagicDistillLoadModel": first["MagicDistillLoadModel"]
    }
    page.screenshot(path=tmp_path / "failed.png")
    page.keyboard.press("Escape")
    set_widget(page, "MagicDistillPortraitToVideo", "width", 0)
    # A graph that was opened again knows no notes; the results come from ComfyUI's cache.
    page.evaluate("window.app.loadGraphData(window.app.graph.serialize())")
    page.wait_for_timeout(1000)
    assert not notes(page)
    run_to_the_end(page, "execution_success")
    again = notes(page)
    assert {kind: again[kind] for kind in first if kind != "MagicDistillSaveVideo"} == {
        kind: note for kind, note in first.items() if kind != "MagicDistillSaveVideo"
    }


def test_codes_in_the_name_are_those_of_comfyuis_own_nodes(page: Any) -> None:
    prefix = "%date:yyyy-MM-dd%/%MagicDistillPocketPortrait.seed%_%Pocket portrait.size%_%year%"
    sent = page.evaluate(
        """async prefix => {
            const graph = window.app.graph;
            graph.clear();
            const add = type => { const node = LiteGraph.createNode(type); graph.add(node); return node; };
            const image = add('MagicDistillPocketPortrait'), saved = {};
            image.widgets.find(w => w.name === 'seed').value = 7;
            for (const type of ['SaveAnimatedWEBP', 'MagicDistillSaveVideo']) {
                const node = add(type);
                image.connect(0, node, 0);
                node.widgets.find(w => w.name === 'filename_prefix').value = prefix;
                saved[type] = node.serialize().widgets_values.includes(prefix);
            }
            const output = Object.values((await window.app.graphToPrompt()).output);
            const sent = output.filter(n => n.inputs.filename_prefix).map(n => n.inputs.filename_prefix);
            return {saved, sent};
        }""",
        prefix,
    )
    stock, ours = sent["sent"]
    assert ours == stock
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/7_96_%year%", ours)
    assert all(sent["saved"].values()), "the workflow keeps the codes"


def test_help_opens_next_to_the_canvas(page: Any, tmp_path: Path) -> None:
    open_template(page, "portrait_pocket")
    info = page.get_by_test_id("info-button")
    persist(
        lambda: page.mouse.click(*spot(page, "Few-step flow sampler", "[n.pos[0] + 80, n.pos[1] - 15]")),
        lambda: info.wait_for(timeout=5000),
    )
    info.click()
    page.get_by_role("heading", name="Few-step flow sampler").first.wait_for()
    page.get_by_role("heading", name="Inputs").first.wait_for()
    page.screenshot(path=tmp_path / "help.png")
    page.get_by_role("button", name="Toggle properties panel").click()


def test_subgraph_opens_closes_and_runs(page: Any, tmp_path: Path) -> None:
    open_template(page, "portrait_in_one_node")
    persist(
        lambda: page.mouse.click(*spot(page, "Portrait in one node", "[n.pos[0] + n.size[0] - 15, n.pos[1] - 15]")),
        lambda: page.wait_for_function(f"{TYPES}.includes('MagicDistillSampler')", timeout=5000),
    )
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "subgraph.png")
    page.get_by_test_id("subgraph-breadcrumb-back").click()
    page.wait_for_function(f"!{TYPES}.includes('MagicDistillSampler')")
    set_widget(page, "MagicDistillPocketPortrait", "seed", 12)
    set_widget(page, "MagicDistillSaveVideo", "filename_prefix", "video/one_node")
    page.get_by_test_id("queue-button").click()
    wait_for_video(page, "one_node")
    page.screenshot(path=tmp_path / "one_node.png")
