"""Convert a saved workflow to the prompt format of ComfyUI's API, as the page does."""

from collections.abc import Iterator, Mapping
from typing import Any

from .schemas import Schema, find_schema

NOTES = frozenset({"MarkdownNote", "Note"})
_INPUT_NODE = -10

# The source of a link: the API's node id and the index of the output.
Source = list[Any]


def to_prompt(workflow: Mapping[str, Any], schemas: Mapping[str, Schema]) -> dict[str, dict[str, Any]]:
    """Convert a saved workflow to an API prompt. Nodes of subgraphs become nodes of the prompt.

    Args:
        workflow: the saved workflow.
        schemas: schemas of the running ComfyUI by node type.

    Returns:
        Nodes by id with their inputs: widget values, and links as `[id, slot]`. A node inside a subgraph has the id
            `outer:inner`, as on the page.

    Raises:
        ConfigError: if this ComfyUI does not have a node.
    """
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot"), link[:5], strict=True))
        for link in workflow["links"]
    ]
    subgraphs = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    return dict(_unfolded(workflow["nodes"], links, "", [], subgraphs, schemas))


def _unfolded(
    nodes: list[dict[str, Any]],
    links: list[dict[str, Any]],
    prefix: str,
    given: list[Any],
    subgraphs: Mapping[str, Any],
    schemas: Mapping[str, Schema],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the API's nodes of a graph; `given` is the source or value of each input of a subgraph."""
    by_id = {node["id"]: node for node in nodes}
    by_link = {link["id"]: link for link in links}

    def source(link_id: int | None) -> Any:
        if link_id is None:
            return None
        link = by_link[link_id]
        if link["origin_id"] == _INPUT_NODE:
            return given[link["origin_slot"]]
        return _resolve(by_id[link["origin_id"]], link["origin_slot"], prefix, subgraphs)

    for node in nodes:
        if node["type"] in NOTES:
            continue
        sources = {slot["name"]: source(slot["link"]) for slot in node["inputs"]}
        if node["type"] in subgraphs:
            inner = subgraphs[node["type"]]
            shown = [slot["name"] for slot in node["inputs"] if "widget" in slot]
            values = dict(zip(shown, node["widgets_values"], strict=True))
            outside = [
                values.get(slot["name"]) if sources[slot["name"]] is None else sources[slot["name"]]
                for slot in inner["inputs"]
            ]
            yield from _unfolded(inner["nodes"], inner["links"], f"{prefix}{node['id']}:", outside, subgraphs, schemas)
            continue
        values = find_schema(schemas, node["type"]).values_of(node["widgets_values"])
        linked = {name: one for name, one in sources.items() if one is not None}
        yield f"{prefix}{node['id']}", {"class_type": node["type"], "inputs": values | linked}


def _resolve(node: Mapping[str, Any], slot: int, prefix: str, subgraphs: Mapping[str, Any]) -> Source:
    """Return the API's node and output for a node's output, searched inside subgraphs."""
    if node["type"] not in subgraphs:
        return [f"{prefix}{node['id']}", slot]
    inner = subgraphs[node["type"]]
    link = next(link for link in inner["links"] if link["id"] == inner["outputs"][slot]["linkIds"][0])
    origin = next(one for one in inner["nodes"] if one["id"] == link["origin_id"])
    return _resolve(origin, link["origin_slot"], f"{prefix}{node['id']}:", subgraphs)
