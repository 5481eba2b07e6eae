"""Workflows built from schemas: default values, layout, refused values, and the API's prompt format."""

from typing import Any

import pytest

from magicdistill_core.errors import ConfigError
from train.comfyui.workflows.graph import GAP, WIDTH, Graph, Wire
from train.comfyui.workflows.models import ModelFile
from train.comfyui.workflows.prompt import to_prompt
from train.comfyui.workflows.schemas import parse_schemas, types_fit

SCHEMAS = parse_schemas(
    {
        "Load": {
            "display_name": "Load it",
            "input": {
                "required": {
                    "file": [["a.safetensors"], {}],
                    "scale": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0}],
                }
            },
            "output": ["MODEL"],
            "output_name": ["MODEL"],
        },
        "Sample": {
            "input": {
                "required": {
                    "seed": ["INT", {"default": 3, "control_after_generate": "fixed"}],
                    "model": ["MODEL", {}],
                    "mode": ["COMBO", {"options": ["x", "y"], "advanced": True}],
                },
                "optional": {"record": ["STRING", {"forceInput": True}]},
            },
            "output": ["IMAGE", "STRING"],
            "output_name": ["IMAGE", "record"],
        },
        "Save": {"input": {"required": {"video": ["IMAGE,VIDEO", {}]}}, "output": [], "output_name": []},
        "LoadImage": {
            "input": {"required": {"image": [[], {"image_upload": True}]}},
            "output": ["IMAGE"],
            "output_name": ["IMAGE"],
        },
    }
)


def chain() -> Graph:
    """A loader, a sampler and a saver, each in a separate column."""
    graph = Graph("chain", SCHEMAS)
    with graph.column("Models"):
        model = graph.node("Load", file="a.safetensors")
    with graph.column("Sampling", width=200):
        sample = graph.node("Sample", model=model, mode="y")
    with graph.column():
        graph.node("Save", video=sample)
        graph.note("## Read me\n\n" + "word " * 200)
    return graph


def test_values_are_in_the_schemas_order_with_defaults_and_the_seeds_control() -> None:
    load, sample, save, note = chain().to_json()["nodes"]
    assert load["widgets_values"] == ["a.safetensors", 1.0]
    assert sample["widgets_values"] == [3, "fixed", "y"]
    # Sockets come first, as on the page. A STRING input with forceInput is a socket.
    assert [one["name"] for one in sample["inputs"]] == ["model", "record", "seed", "mode"]
    assert [one.get("shape") for one in sample["inputs"]] == [None, 7, None, None]
    assert save["widgets_values"] == []
    # A title in the file would replace the display name in the page's language.
    assert "title" not in load
    assert note["title"] == "Read me"
    assert note["size"][1] > 300


def test_links_are_known_at_both_ends() -> None:
    whole = chain().to_json()
    assert whole["links"] == [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "IMAGE"]]
    load, sample, save, _ = whole["nodes"]
    assert load["outputs"][0]["links"] == [1]
    assert [sample["inputs"][0]["link"], sample["outputs"][0]["links"], sample["outputs"][1]["links"]] == [1, [2], []]
    assert save["inputs"][0]["link"] == 2


def test_columns_are_next_to_each_other_and_sections_below() -> None:
    graph = Graph("layout", SCHEMAS)
    with graph.column("First", width=200):
        one = graph.node("Load", file="a.safetensors", room=50)
        graph.section("Second")
        other = graph.node("Load", file="a.safetensors")
    with graph.column():
        third = graph.node("Load", file="a.safetensors")
    assert one.size[1] == other.size[1] + 50
    assert (third.pos, third.size[0]) == ((200 + GAP, 0), WIDTH)
    first, second = (group["bounding"] for group in graph.groups)
    assert first[1] + first[3] < second[1] < other.pos[1] - 30
    assert second[1] + second[3] > other.pos[1] + other.size[1]


def test_subgraph_is_one_node_and_unfolds_for_the_api() -> None:
    graph = Graph("outer", SCHEMAS)
    inner = graph.subgraph("Two in one")
    model = inner.add_input("model", "MODEL")
    with inner.column():
        sample = inner.node("Sample", model=model)
    inner.show_widget(sample, "seed")
    inner.add_output("frames", sample.out)
    with graph.column():
        load = graph.node("Load", file="a.safetensors")
        pair = [graph.place(inner, f"Number {number}", model=load) for number in (1, 2)]
        for placed in pair:
            graph.node("Save", video=placed)
    whole = graph.to_json()
    (definition,) = whole["definitions"]["subgraphs"]
    assert [node["type"] for node in whole["nodes"][1:3]] == [definition["id"]] * 2
    pair[1].values[0] = 8  # a value set on the second node must not change the first
    assert to_prompt(graph.to_json(), SCHEMAS) == {
        "1": {"class_type": "Load", "inputs": {"file": "a.safetensors", "scale": 1.0}},
        "2:1": {"class_type": "Sample", "inputs": {"seed": 3, "mode": "x", "model": ["1", 0]}},
        "3:1": {"class_type": "Sample", "inputs": {"seed": 8, "mode": "x", "model": ["1", 0]}},
        "4": {"class_type": "Save", "inputs": {"video": ["2:1", 0]}},
        "5": {"class_type": "Save", "inputs": {"video": ["3:1", 0]}},
    }


def test_only_public_files_are_offered_for_download() -> None:
    graph = Graph("files", SCHEMAS)
    public = ModelFile("b.safetensors", "loras", "https://example.com/b.safetensors")
    with graph.column():
        offered = graph.node("Load", models=(public,), file=public.name)
        made = graph.node("Load", models=(ModelFile("c.safetensors", "loras"),), file="c.safetensors")
        picture = graph.node("LoadImage", image="mine.png")
    assert offered.properties["models"] == [public.to_json()]
    assert "models" not in made.properties
    assert picture.values == ["mine.png", "image"]


@pytest.mark.parametrize(
    ("node_type", "given", "said"),
    [
        ("Lode", {}, "no node Lode"),
        ("Load", {"fyle": "a.safetensors"}, r"Load .*\['fyle'\].*'file'"),
        ("Load", {"file": "b.safetensors"}, r"'b\.safetensors' .*\['a\.safetensors'"),
        ("Load", {"file": "a.safetensors", "scale": 3.0}, r"3\.0 .* 0\.0 and 2\.0"),
        ("Load", {"file": "a.safetensors", "scale": "1"}, "'1' .*FLOAT"),
        ("Sample", {}, "model of Sample "),
        ("Save", {"video": Wire(1, 0, "MODEL")}, "video of .*MODEL"),
    ],
)
def test_invalid_nodes_inputs_and_links_are_refused(node_type: str, given: dict[str, Any], said: str) -> None:
    graph = Graph("bad", SCHEMAS)
    with graph.column(), pytest.raises(ConfigError, match=said):
        graph.node(node_type, **given)


@pytest.mark.parametrize("values", [["a.safetensors"], ["a.safetensors", 1.0, 2.0]])
def test_values_of_another_schema_are_refused(values: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"Load .*value"):
        SCHEMAS["Load"].values_of(values)


@pytest.mark.parametrize(
    ("given", "taken", "fits"), [("IMAGE", "IMAGE,VIDEO", True), ("*", "A", True), ("A", "B", False)]
)
def test_types_fit_as_on_the_page(given: str, taken: str, fits: bool) -> None:
    assert types_fit(given, taken) == fits
