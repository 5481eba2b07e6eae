"""Every included workflow on a running ComfyUI: it is well-formed, neat and explained, and it runs."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.long_video.making import SEGMENTS_TAG
from magicdistill_core.lora_file import save_lora
from magicdistill_core.media.video import read_tags
from magicdistill_core.pocket.files import CAPTIONED_4STEP_LORA, FOUR_STEP_LORA, ONE_STEP_LORA, TEACHER, WEIGHTS
from magicdistill_core.pocket.render import portrait_clip
from train.comfyui.workflows import models
from train.comfyui.workflows.models import ModelFile
from train.comfyui.workflows.prompt import NOTES, to_prompt
from train.comfyui.workflows.schemas import Schema, parse_schemas
from train.comfyui.workflows.write import DEFINITIONS, FOLDER, workflow_json

from .batches import WAN_SHAPE
from .saved_graphs import TITLE, check_layout, check_values_and_links, check_video, graphs, of_type, saved
from .small_models import averaging_rife, repeating_esrgan

pytestmark = pytest.mark.slow

FILES = {file.name: file for file in vars(models).values() if isinstance(file, ModelFile)}
# The LoRA on the teacher, and the steps, of each workflow that makes one portrait.
PORTRAITS = {
    "portrait_pocket": (FOUR_STEP_LORA, 4),
    "portrait_pocket_one_step": (ONE_STEP_LORA, 1),
    "portrait_pocket_ti2v": (CAPTIONED_4STEP_LORA, 4),
    "portrait_in_one_node": (FOUR_STEP_LORA, 4),
}
PORTRAITS = {name: needed for name, needed in PORTRAITS.items() if name in DEFINITIONS}
# Needs public files beside those of the pack.
FINISHED = "portrait_pocket_finished"
POCKET = (*PORTRAITS, "real_fake_sweep_pocket", "long_portrait_pocket", FINISHED)
LARGE = sorted(set(DEFINITIONS) - set(POCKET))
# Loaders of files whose sizes are fixed in ComfyUI: text encoders, vision towers, full checkpoints.
HEAVY = {"DualCLIPLoader", "CLIPLoader", "CLIPVisionLoader", "CheckpointLoaderSimple"}


def workflow(name: str) -> dict[str, Any]:
    """Return an included workflow."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schemas(server: Any) -> dict[str, Schema]:
    """Return the nodes of the running ComfyUI."""
    return parse_schemas(server.get("/object_info"))


def test_every_workflow_is_defined_has_a_picture_and_is_offered(server: Any) -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DEFINITIONS)
    assert {path.stem for path in FOLDER.glob("*.jpg")} == set(DEFINITIONS)
    assert {path.suffix for path in FOLDER.iterdir()} == {".json", ".jpg"}
    for name in DEFINITIONS:
        with Image.open(FOLDER / f"{name}.jpg") as picture:
            assert picture.size == (384, 384)
            assert np.asarray(picture).std() > 20
    assert set(server.get("/workflow_templates")["magicdistillation"]) == set(DEFINITIONS)
    assert server.get("/api/workflow_templates/magicdistillation/portrait_pocket.json") == workflow("portrait_pocket")


@pytest.mark.parametrize("name", POCKET)
def test_the_model_files_of_a_pocket_workflow_are_in_the_pack(name: str) -> None:
    named = set(re.findall(r"magicdistill_pocket_\w+\.safetensors", (FOLDER / f"{name}.json").read_text()))
    assert named
    assert named <= {path.name for path in WEIGHTS.rglob("*.safetensors")}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_files_equal_the_outputs_of_the_current_nodes(name: str, schemas: dict[str, Schema]) -> None:
    path = FOLDER / f"{name}.json"
    assert path.read_text(encoding="utf-8") == workflow_json(name, schemas), "run `magicdistill workflows`"


@pytest.mark.parametrize("name", DEFINITIONS)
def test_values_and_links_fit_the_current_nodes(name: str, schemas: dict[str, Schema]) -> None:
    check_values_and_links(workflow(name), schemas, FILES)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_layout_is_neat(name: str) -> None:
    whole = workflow(name)
    check_layout(whole)
    for node in whole["nodes"]:
        x, y, width, height = *node["pos"], *node["size"]
        around = [
            group["title"]
            for group in whole["groups"]
            for left, top, wide, high in [group["bounding"]]
            if left <= x and top <= y - TITLE and x + width <= left + wide and y + height <= top + high
        ]
        assert len(around) == (node["type"] not in NOTES), f"{node['title']}: {around}"


@pytest.mark.parametrize("name", DEFINITIONS)
def test_files_are_linked_or_explained(name: str, schemas: dict[str, Schema], server: Any) -> None:
    folders = set(server.get("/models"))
    (note,) = (node for node in workflow(name)["nodes"] if node["type"] in NOTES)
    (text,) = note["widgets_values"]
    assert text.startswith("## ")
    assert "**" in text
    # Code is unreadable on a coloured note of the new page.
    assert "`" not in text
    for nodes, _, subgraphs in graphs(workflow(name)):
        for node in nodes:
            if node["type"] in NOTES | subgraphs:
                continue
            files = [FILES[value] for value in node["widgets_values"] if value in FILES]
            links = node["properties"].get("models", [])
            assert [link["name"] for link in links] == [file.name for file in files if file.url is not None]
            for link in links:
                assert link["directory"] in folders
                assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+", link["url"])
                assert link["url"].endswith(f"/{link['name']}")
            for file in files:
                if file.url is None and "pocket" not in file.name:
                    assert f"**{file.name}**" in text
                    assert f"models/{file.directory}" in text


@pytest.mark.parametrize("name", PORTRAITS)
def test_pocket_portraits_run_as_they_are(name: str, schemas: dict[str, Schema], server: Any) -> None:
    lora, steps = PORTRAITS[name]
    whole = workflow(name)
    prompt = to_prompt(whole, schemas)
    # A new name: for a prompt that it has already run, ComfyUI returns the old file.
    of_type(prompt, "MagicDistillSaveVideo")[0]["filename_prefix"] = f"video/api_{name}"
    (video,) = saved(server, server.run(prompt, whole))
    check_video(video, (96, 96), 17, 24.0)
    tags = read_tags(video)
    assert json.loads(tags["workflow"]) == whole
    stored = json.loads(tags["prompt"])
    # ComfyUI stores a file's fingerprint next to its node's inputs.
    assert {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in stored.items()} == prompt
    record = json.loads(tags["magicdistill"])
    assert (record["checkpoint"], record["steps"], record["seed"]) == (TEACHER.name, steps, 0)
    assert [one["name"] for one in record["loras"]] == [lora.name]
    assert len(record["sha256"]) == 64
    with av.open(str(video)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.float32)
    seed = of_type(prompt, "MagicDistillPocketPortrait")[0]["seed"]
    assert np.abs(first - portrait_clip(seed, 1)[0].numpy()).mean() < 12, "the video does not begin with its portrait"


def test_the_long_pocket_portrait_runs_as_it_is(schemas: dict[str, Schema], server: Any) -> None:
    prompt = to_prompt(workflow("long_portrait_pocket"), schemas)
    outputs = server.run(prompt)
    (video,) = saved(server, outputs)
    check_video(video, (96, 96), 96, 24.0)
    segments = json.loads(read_tags(video)[SEGMENTS_TAG])["segments"]
    assert [entry["first_frame"] for entry in segments] == [0, 16, 32, 48, 64, 80]


def test_real_fake_sweep_shows_five_weights_of_one_noise(schemas: dict[str, Schema], server: Any) -> None:
    prompt = to_prompt(workflow("real_fake_sweep_pocket"), schemas)
    sources = [one["weight_real"][0] for one in of_type(prompt, "MagicDistillRealFakeLora")]
    assert [prompt[source]["inputs"]["value"] for source in sources] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for sampler in of_type(prompt, "MagicDistillSampler"):
        sampler["steps"] = 4  # the teacher needs 28 steps; these are enough to test the chain
    outputs = server.run(prompt)
    files = {path.suffix: path for path in saved(server, outputs)}
    check_video(files[".mp4"], (96, 496), 17, 12.0)
    with Image.open(files[".png"]) as picture:
        assert picture.size == (17 * 100 - 4, 496)
        pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    rows = [pixels[100 * row : 100 * row + 96] for row in range(5)]
    starts, ends = [row[:, :96] for row in rows], [row[:, -96:] for row in rows]
    from_teacher = [float(np.abs(end - ends[0]).mean()) for end in ends]
    # All start with the same image; a larger weight ends further from the teacher.
    assert max(float(np.abs(start - starts[0]).mean()) for start in starts) < 4
    assert from_teacher == sorted(from_teacher)
    assert from_teacher[-1] > 1


@pytest.fixture(scope="module")
def small_files(server: Any, tiny: SimpleNamespace) -> None:
    """Write a tiny file for every name in the workflows; files of `HEAVY` loaders contain one dummy tensor."""
    folders = {name: server.directory / "models" / name for name in {file.directory for file in FILES.values()}}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    for file in FILES.values():
        if file.directory in ("text_encoders", "clip_vision", "checkpoints"):
            save_file({"nothing": torch.zeros(1)}, folders[file.directory] / file.name)
    network, prompt, weights = tiny.network(tiny.shape()), tiny.prompt(), folders["diffusion_models"]
    for file, steps in ((models.HUNYUAN_W2S, 4), (models.MAGIC141_W2S, 4), (models.HUNYUAN_ONE_STEP, 1)):
        tiny.write_model(weights / file.name, network, tiny.recipe("generator", steps=steps), prompt)
    state = load_file(weights / models.HUNYUAN_W2S.name)
    # Like the stock file, without a null prompt: the LoRA contains one.
    bare = {key: tensor for key, tensor in state.items() if not key.startswith("null_prompt.")}
    save_file(bare, weights / models.HUNYUAN_I2V.name)
    branches = to_file_layout(HUNYUAN_VIDEO, tiny.branches(network), 128)
    save_lora(folders["loras"] / models.HUNYUAN_W2S_LORA.name, branches, tiny.recipe("generator_lora"), prompt)
    wan = diffusers_to_file(WAN, tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO).state_dict())
    text = torch.randn(1, 7, 4096, generator=torch.Generator().manual_seed(5))
    # The stock file contains no null prompt; this file does, so no text encoder is needed.
    path = weights / models.WAN_I2V.name
    save_checkpoint(path, wan, tiny.recipe("teacher", family="wan"), NullPrompt(text, None))
    save_file(load_file(path), path)
    lora = {
        f"diffusion_model.blocks.{block}.self_attn.{part}.lora_{side}.weight": torch.full(shape, 0.01)
        for block in range(2)
        for part in "qkvo"
        for side, shape in (("down", (4, 128)), ("up", (128, 4)))
    }
    save_file(lora, folders["loras"] / models.WAN_LORA.name)
    vae = load_file(folders["vae"] / "tiny_vae.safetensors")
    save_file(vae, folders["vae"] / models.HUNYUAN_VAE.name)
    # ComfyUI distinguishes Wan's VAE from HunyuanVideo's by the number type.
    save_file({key: value.float() for key, value in vae.items()}, folders["vae"] / models.WAN_VAE.name)
    # ComfyUI distinguishes RIFE from FILM, whose size is fixed, by the names of the tensors.
    save_file(averaging_rife(), folders["frame_interpolation"] / models.FILM.name)
    save_file(repeating_esrgan(), folders["upscale_models"] / models.REAL_ESRGAN.name)
    Image.fromarray(portrait_clip(3, 1, 128)[0].numpy()).save(server.directory / "input" / "example.png")


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("small_files")
def test_large_ones_are_accepted_with_their_files_in_place(name: str, schemas: dict[str, Schema], server: Any) -> None:
    prompt = to_prompt(workflow(name), schemas)
    entry = server.wait(server.queue(prompt))  # a refusal is an HTTP error
    heavy = any(node["class_type"] in HEAVY for node in prompt.values())
    assert (entry["status"]["status_str"] == "error") == heavy


def without_heavy(prompt: dict[str, Any], schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """Return a prompt without the nodes whose files cannot be small, and without those that depend on them."""
    rest = deepcopy(prompt)
    for key, node in rest.items():
        # The two nodes that make a start image.
        if node["class_type"] in ("VAEDecode", "MagicDistillSimilarPicture"):
            rest[key] = {"class_type": "MagicDistillPocketPortrait", "inputs": {"seed": 1, "size": 128}}
    gone: set[str] = set()

    def stands_on_gone(key: str, one: Any) -> bool:
        value = rest[key]["inputs"].get(one.name)
        return isinstance(value, list) and value[0] in gone

    while True:
        more = {
            key
            for key, node in rest.items()
            if node["class_type"] in HEAVY
            or any(one.required and stands_on_gone(key, one) for one in schemas[node["class_type"]].inputs)
        } - gone
        if not more:
            break
        gone |= more
    return {
        key: node | {"inputs": {n: v for n, v in node["inputs"].items() if not (isinstance(v, list) and v[0] in gone)}}
        for key, node in rest.items()
        if key not in gone
    }


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("small_files")
def test_large_ones_run_on_tiny_files_of_the_same_make(name: str, schemas: dict[str, Schema], server: Any) -> None:
    prompt = without_heavy(to_prompt(workflow(name), schemas), schemas)
    (video,) = of_type(prompt, "MagicDistillPortraitToVideo")
    if name.startswith("wan"):
        video |= {"width": 64, "height": 48, "length": 17}  # without a recipe the size is Wan's usual size
    outputs = server.run(prompt)
    (path,) = saved(server, outputs)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        area, frames = stream.width * stream.height, sum(1 for _ in container.decode(stream))
        fps = float(stream.average_rate)
    assert 0.6 < area / (64 * 48) <= 1
    if long := of_type(prompt, "MagicDistillLongVideo"):
        # The recipe of the tiny file has 8 frames per second.
        assert (frames, fps) == (8 * long[0]["seconds"], 8.0)
    else:
        assert (frames, fps) == (17, of_type(prompt, "MagicDistillSaveVideo")[0]["fps"])
    record = json.loads(read_tags(path)["magicdistill"])
    assert record["steps"] == (1 if "one_step" in name else 4)
    assert (record["shift"], record["sampler"]) == (5.0, "euler")
    assert len(record["loras"]) == name.endswith("lora")
    said = [text for output in outputs.values() for text in output.get("text", [])]
    for text in said:
        assert "steps is" not in text, text
        assert "cropped" not in text or "fit the image" not in text, text
    if name.endswith("lora"):
        assert any(re.search(r"matched (\d+)/\1 ", text) for text in said), said


@pytest.mark.usefixtures("small_files")
def test_finished_portrait_is_smooth_and_large(schemas: dict[str, Schema], server: Any) -> None:
    prompt = to_prompt(workflow(FINISHED), schemas)
    (colours,) = of_type(prompt, "ColorTransfer")
    colours["strength"] = 0.0  # so that the frames between are those of the portrait
    (video,) = saved(server, server.run(prompt))
    check_video(video, (384, 384), 33, 48.0)
    (plain,) = saved(server, server.run(to_prompt(workflow("portrait_pocket"), schemas)))
    before, after = pictures(plain), pictures(video)
    # The small networks repeat pixels, and make the mean of two frames. The small video has a coarser colour plane.
    assert np.abs(after[::2, 1::4, 1::4] - before).mean() < 4
    assert np.abs(after[1::2] - (after[2::2] + after[:-1:2]) / 2).mean() < 1.5
    colours["strength"] = 1.0
    (video,) = saved(server, server.run(prompt))
    start = portrait_clip(7, 1)[0].numpy().astype(np.float32)
    drift = [np.abs(one.mean((1, 2)) - start.mean((0, 1))).max() for one in (pictures(plain), pictures(video))]
    assert drift[1] < min(drift[0], 3)


def pictures(path: Path) -> np.ndarray:
    """Return the frames of a video, `[T, H, W, 3]` in levels of 0 to 255."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float32)
