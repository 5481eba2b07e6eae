"""Checks of saved workflows and blueprints, and of what they save."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import ColorRange, Colorspace

from train.comfyui.workflows.prompt import NOTES
from train.comfyui.workflows.schemas import Schema, types_fit

TITLE = 30


def graphs(whole: Mapping[str, Any]) -> Iterator[tuple[list[dict], list[dict], set[str]]]:
    """Return nodes and links of a workflow and of its subgraphs, links in one common form, and the subgraphs' ids."""
    inner = whole.get("definitions", {}).get("subgraphs", [])
    ids = {one["id"] for one in inner}
    fields = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    yield whole["nodes"], [dict(zip(fields, link, strict=True)) for link in whole["links"]], ids
    for one in inner:
        yield one["nodes"], one["links"], ids


def check_values_and_links(whole: Mapping[str, Any], schemas: Mapping[str, Schema], files: Container[Any]) -> None:
    """Check every node, value and link against the nodes of a running ComfyUI.

    Args:
        whole: the workflow or blueprint.
        schemas: the nodes.
        files: names of files that ComfyUI need not have.
    """
    for nodes, links, subgraphs in graphs(whole):
        by_id = {node["id"]: node for node in nodes}
        assert len(by_id) == len(nodes)
        for node in nodes:
            if node["type"] in NOTES | subgraphs:
                continue
            schema = schemas[node["type"]]
            assert [one["name"] for one in node["inputs"]] == [one.name for one in (*schema.sockets, *schema.widgets)]
            assert [one["type"] for one in node["outputs"]] == [one.type for one in schema.outputs]
            values = schema.values_of(node["widgets_values"])
            for one in schema.widgets:
                if values[one.name] not in files and not one.uploads:
                    assert one.fault_of(values[one.name]) is None, f"{node['type']}: {one.name}"
            for one in schema.sockets:
                slot = next(slot for slot in node["inputs"] if slot["name"] == one.name)
                assert slot["link"] is not None or not one.required, f"{node['type']}: {one.name} is not linked"
        for link in links:
            origin, target = by_id.get(link["origin_id"]), by_id.get(link["target_id"])
            if origin is not None:
                slot = origin["outputs"][link["origin_slot"]]
                assert link["id"] in slot["links"]
                assert types_fit(slot["type"], link["type"])
            if target is not None:
                slot = target["inputs"][link["target_slot"]]
                assert slot["link"] == link["id"]
                assert types_fit(link["type"], slot["type"])


def check_layout(whole: Mapping[str, Any]) -> None:
    """Check that nodes do not overlap, and that links run from left to right."""
    for nodes, links, _ in graphs(whole):
        boxes = {node["id"]: (*node["pos"], *node["size"]) for node in nodes}
        for one, (x, y, width, height) in boxes.items():
            for other, (left, top, wide, high) in boxes.items():
                apart = x + width <= left or left + wide <= x or y + height <= top - TITLE or top + high <= y - TITLE
                assert one == other or apart, f"nodes {one} and {other} overlap"
        for link in links:
            if {link["origin_id"], link["target_id"]} <= set(boxes):
                assert boxes[link["origin_id"]][0] <= boxes[link["target_id"]][0], "a link runs from right to left"


def saved(server: Any, outputs: Mapping[str, Any]) -> list[Path]:
    """Return the files that a run reports."""
    entries = [entry for output in outputs.values() for entry in output.get("images", [])]
    return [
        server.directory / "output" / one["subfolder"] / one["filename"] for one in entries if one["type"] == "output"
    ]


def of_type(prompt: Mapping[str, Any], node_type: str) -> list[dict[str, Any]]:
    """Return the inputs of every node of a type."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == node_type]


def check_video(path: Path, size: tuple[int, int], frames: int, fps: float) -> None:
    """Check that every player can play a video."""
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (*size, fps)
        assert (stream.codec.canonical_name, stream.pix_fmt) == ("h264", "yuv420p")
        context = stream.codec_context
        assert (context.colorspace, context.color_range) == (Colorspace.ITU709, ColorRange.MPEG)
        assert sum(1 for _ in video.decode(stream)) == frames
