"""The blueprints: ComfyUI offers them, they fit the current nodes, and they make what the plain workflows make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from magicdistill_core.long_video.making import SEGMENTS_TAG
from magicdistill_core.media.video import read_tags
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.pocket.render import portrait_clip
from train.comfyui.workflows.blueprints import BLUEPRINTS, blueprint_json
from train.comfyui.workflows.prompt import to_prompt
from train.comfyui.workflows.schemas import Schema, parse_schemas
from train.comfyui.workflows.write import BLUEPRINT_FOLDER, FOLDER

from .saved_graphs import check_layout, check_values_and_links, of_type, saved

pytestmark = pytest.mark.slow

CLIP, EXTEND, LONG, LOOK = BLUEPRINTS


@pytest.fixture(scope="module")
def schemas(server: Any) -> dict[str, Schema]:
    """Return the nodes of the running ComfyUI."""
    return parse_schemas(server.get("/object_info"))


def blueprint(name: str) -> dict[str, Any]:
    """Return a blueprint as it is in its file."""
    return json.loads((BLUEPRINT_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def prompt_of(schemas: dict[str, Schema]) -> Callable[..., dict[str, Any]]:
    """Return a function that connects a node to the first input of a blueprint, and changes its widgets."""

    def make(name: str, source: str, values: list[Any], **widgets: Any) -> dict[str, Any]:
        whole = blueprint(name)
        (node,) = whole["nodes"]
        shown = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        for widget, value in widgets.items():
            node["widgets_values"][shown.index(widget)] = value
        node["inputs"][0]["link"] = 1
        slots = [{"name": one.name, "link": None} for one in schemas[source].inputs]
        whole["nodes"].append({"id": 2, "type": source, "inputs": slots, "widgets_values": values})
        whole["links"] = [[1, 2, 0, 1, 0, node["inputs"][0]["type"]]]
        return to_prompt(whole, schemas)

    return make


def frames(path: Path) -> np.ndarray:
    """Return the frames of a video in levels of 0 to 255."""
    with av.open(str(path)) as container:
        return np.stack([one.to_ndarray(format="rgb24") for one in container.decode(video=0)]).astype(np.float32)


def test_comfyui_offers_every_blueprint(server: Any) -> None:
    assert {path.name for path in BLUEPRINT_FOLDER.iterdir()} == {f"{name}.json" for name in BLUEPRINTS}
    offered = server.get("/global_subgraphs")
    ours = {one["name"]: key for key, one in offered.items() if one["info"]["node_pack"].endswith("magicdistillation")}
    assert set(ours) == set(BLUEPRINTS)
    others = [one["name"] for key, one in offered.items() if key not in ours.values()]
    assert not set(others) & set(ours)
    for name, key in ours.items():
        entry = server.get(f"/global_subgraphs/{key}")
        assert json.loads(entry["data"]) == blueprint(name)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_files_equal_the_outputs_of_the_current_nodes(name: str, schemas: dict[str, Schema]) -> None:
    text = (BLUEPRINT_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text == blueprint_json(name, schemas), "run `magicdistill workflows`"


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_one_node_with_the_nodes_defaults(name: str, schemas: dict[str, Schema]) -> None:
    whole = blueprint(name)
    check_values_and_links(whole, schemas, ())
    check_layout(whole)
    (outer,), (inner,) = whole["nodes"], whole["definitions"]["subgraphs"]
    assert (outer["type"], outer["title"], inner["name"]) == (inner["id"], name, name)
    assert inner["id"] != whole["id"]
    assert inner["category"] == "MagicDistillation"
    assert inner["description"].endswith(".")
    assert "magicdistill" in whole["extra"]["BlueprintSearchAliases"]
    shown = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    assert len(set(shown)) == len(shown)
    own = {"unet_name", "lora_name", "vae_name"} | ({"seconds", "filename_prefix"} if name == LOOK else set())
    for (node_id, widget), value in zip(outer["properties"]["proxyWidgets"], outer["widgets_values"], strict=True):
        (node,) = (one for one in inner["nodes"] if one["id"] == int(node_id))
        (schema,) = (one for one in schemas[node["type"]].widgets if one.name == widget)
        assert widget in own or value == schema.default


def test_portrait_clip_is_the_clip_of_the_workflow(
    prompt_of: Callable[..., dict[str, Any]], schemas: dict[str, Schema], server: Any
) -> None:
    portrait = [7, "fixed", 96]
    prompt = prompt_of(CLIP, "MagicDistillPocketPortrait", portrait, seed=5, filename_prefix="blueprint/clip")
    (path,) = saved(server, server.run(prompt))
    plain = to_prompt(json.loads((FOLDER / "portrait_pocket.json").read_text(encoding="utf-8")), schemas)
    of_type(plain, "MagicDistillSampler")[0]["seed"] = 5
    (expected,) = saved(server, server.run(plain))
    assert np.array_equal(frames(path), frames(expected))
    assert read_tags(path)["magicdistill"] == read_tags(expected)["magicdistill"]


def test_long_blueprints_make_the_video_of_the_workflow(
    prompt_of: Callable[..., dict[str, Any]], schemas: dict[str, Schema], server: Any
) -> None:
    plain = to_prompt(json.loads((FOLDER / "long_portrait_pocket.json").read_text(encoding="utf-8")), schemas)
    of_type(plain, "MagicDistillLongVideo")[0].update(seconds=1.0, filename_prefix="blueprint/plain")
    (expected,) = saved(server, server.run(plain))
    portrait = [7, "fixed", 96]
    for name, prefix in ((LONG, "blueprint/long"), (LOOK, "blueprint/look")):
        widgets = {"seconds": 1.0, "filename_prefix": prefix}
        prompt = prompt_of(name, "MagicDistillPocketPortrait", portrait, **widgets)
        outputs = server.run(prompt)
        (path,) = saved(server, outputs)
        assert np.array_equal(frames(path), frames(expected))
        assert json.loads(read_tags(path)[SEGMENTS_TAG]) == json.loads(read_tags(expected)[SEGMENTS_TAG])
    # The first look also shows the report and both ends of the video.
    record = json.loads(read_tags(path)[SEGMENTS_TAG])
    texts = [text for output in outputs.values() for text in output.get("text", ())]
    assert record["report"] in texts
    (shown,) = (one for output in outputs.values() for one in output.get("images", ()) if one["type"] == "temp")
    with Image.open(server.directory / "temp" / shown["filename"]) as picture:
        pair = np.asarray(picture.convert("RGB")).astype(np.float32)
    assert pair.shape == (96, 2 * 96 + 4, 3)
    made = frames(path)
    assert np.abs(pair[:, :96] - made[0]).mean() < 2
    assert np.abs(pair[:, -96:] - made[-1]).mean() < 2


def test_extended_video_begins_with_the_video_and_goes_on(
    prompt_of: Callable[..., dict[str, Any]], schemas: dict[str, Schema], server: Any
) -> None:
    folder = server.directory / "input"
    write_video(folder / "blueprint.mp4", portrait_clip(9, 30, 96), 24.0)
    given = frames(folder / "blueprint.mp4")
    Image.fromarray(given[0].astype(np.uint8)).save(folder / "blueprint.png")
    widgets = {"seconds": 1.0, "filename_prefix": "blueprint/extended"}
    (path,) = saved(server, server.run(prompt_of(EXTEND, "LoadVideo", ["blueprint.mp4"], **widgets)))
    made = frames(path)
    # The last frame of the video is cross-faded into the first segment.
    assert len(made) == len(given) - 1 + 24
    assert np.abs(made[: len(given)] - given).mean() < 2
    # The plain nodes, with the first frame as a picture.
    plain = to_prompt(json.loads((FOLDER / "long_portrait_pocket.json").read_text(encoding="utf-8")), schemas)
    plain["picture"] = {"class_type": "LoadImage", "inputs": {"image": "blueprint.png"}}
    plain["video"] = {"class_type": "LoadVideo", "inputs": {"file": "blueprint.mp4"}}
    of_type(plain, "MagicDistillPortraitToVideo")[0]["start_image"] = ["picture", 0]
    of_type(plain, "MagicDistillLongVideo")[0].update(
        continue_video=["video", 0], seconds=1.0, filename_prefix="blueprint/plain_extended"
    )
    (expected,) = saved(server, server.run(plain))
    assert np.abs(made - frames(expected)).mean() < 2
