"""Saved files on the real page: they play under the node, and dropped on the canvas they restore the graph."""

import json
from pathlib import Path
from typing import Any

import pytest

from magicdistill_core.media.video_writing import FORMATS, VideoFormat

pytestmark = pytest.mark.slow

TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".webp": "image/webp"}


def graph(format: VideoFormat) -> dict[str, Any]:
    """Return the page's graph of a saved pocket portrait, with a note that contains unbalanced braces."""
    return {
        "last_node_id": 3,
        "last_link_id": 1,
        "version": 0.4,
        "nodes": [
            {
                "id": 1,
                "type": "MagicDistillPocketPortrait",
                "pos": [0, 0],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
                "widgets_values": [7, "fixed", 96],
            },
            {
                "id": 2,
                "type": "MagicDistillSaveVideo",
                "pos": [400, 0],
                "size": [340, 490],
                "inputs": [{"name": "video", "type": "IMAGE,VIDEO", "link": 1}],
                "widgets_values": [24, f"drop/{format.codec}", format.title, 18],
            },
            {"id": 3, "type": "Note", "pos": [0, 300], "widgets_values": ['{ unmatched {{ "}']},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.title)
def test_a_saved_file_is_shown_and_restores_its_graph(
    format: VideoFormat, page: Any, server: Any, tmp_path: Path
) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", graph(format))
    page.wait_for_function("window.app.graph.nodes.length === 3")
    page.get_by_test_id("queue-button").click()
    # Every format plays under the node.
    shown = (
        f"[...document.querySelectorAll('img')].some(i => i.src.includes('{format.codec}') && i.naturalWidth === 96)"
        if format.suffix == ".webp"
        else f"[...document.querySelectorAll('video')].some(v => v.videoWidth === 96 && "
        f"(v.currentSrc || v.src).includes('{format.codec}'))"
    )
    canvas = f"window.app.graph.nodes.some(n => (n.imgs ?? []).some(i => i.src.includes('{format.codec}')))"
    page.wait_for_function(f"{shown} || ({json.dumps(format.suffix)} === '.webp' && {canvas})", timeout=120_000)
    page.screenshot(path=tmp_path / "shown.png")

    (file,) = (server.directory / "output" / "drop").glob(f"{format.codec}_*{format.suffix}")
    page.evaluate("window.app.graph.clear()")
    handle = page.evaluate_handle(
        """async ([bytes, name, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type}));
            return data;
        }""",
        [list(file.read_bytes()), file.name, TYPES[format.suffix]],
    )
    page.dispatch_event("canvas#graph-canvas", "drop", {"dataTransfer": handle})
    page.wait_for_function("window.app.graph.nodes.length === 3", timeout=30_000)
    kept = page.evaluate(
        "Object.fromEntries(window.app.graph.nodes.map(n => [n.type, (n.widgets ?? []).map(w => w.value)]))"
    )
    assert format.title in kept["MagicDistillSaveVideo"]
    assert kept["Note"] == ['{ unmatched {{ "}']
    assert 7 in kept["MagicDistillPocketPortrait"]
    page.screenshot(path=tmp_path / "dropped.png")
    file.unlink()
