"""A running ComfyUI with the pack: the workflow through the API, bad inputs, other settings, cancelling."""

import re
import shutil
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from magicdistill_core.media.video import read_video
from magicdistill_core.pocket import files
from magicdistill_core.pocket.render import portrait_clip

from .prompts import CHAIN, Prompt, changed

ROLES: dict[str, dict[str, Any]] = {
    "roles": {
        "class_type": "MagicDistillRealFakeLora",
        "inputs": {"model": ["load", 0], "lora_name": "tiny_fake.safetensors", "weight_real": 0.25, "weight_fake": 1.0},
    },
}


def chain(**changes: dict[str, Any]) -> Prompt:
    """Return the chain with some nodes' inputs changed."""
    return changed(CHAIN, **changes)


def roles(model: str = "tiny.safetensors", lora: str = "tiny_fake.safetensors") -> dict[str, Any]:
    """Return the chain that samples the fake model of the real/fake node."""
    prompt = chain(load={"unet_name": model}, sample={"model": ["roles", 1]}) | deepcopy(ROLES)
    prompt["roles"]["inputs"]["lora_name"] = lora
    return prompt


def saved_video(server: Any, outputs: dict, node: str) -> Path:
    """Return the file that a save node reports."""
    (entry,) = outputs[node]["images"]
    return server.directory / "output" / entry["subfolder"] / entry["filename"]


def test_every_loader_lists_only_what_it_can_load(server: Any) -> None:
    nodes = server.get("/object_info")

    def options(node: str, name: str) -> set[str]:
        kind = nodes[node]["input"]["required"][name]
        found = kind[0] if isinstance(kind[0], list) else kind[1]["options"]
        return {option for option in found if option.startswith("magicdistill_pocket")}

    models, vaes, loras = (
        {path.name for path in folder.glob("*.safetensors")}
        for folder in (files.DIFFUSION_MODELS, files.VAES, files.LORAS)
    )
    assert {files.TEACHER.name, files.GENERATOR.name} <= models
    assert options("UNETLoader", "unet_name") == models
    assert options("MagicDistillLoadModel", "unet_name") == models
    assert options("VAELoader", "vae_name") == vaes
    assert options("LoraLoaderModelOnly", "lora_name") == loras


def test_defaults_come_from_the_file(server: Any) -> None:
    outputs = server.run(chain())
    assert outputs["sample"]["text"] == ["4 steps, shift 5, euler.  \ntimesteps 1000, 937.5, 833.3, 625."]
    with av.open(str(saved_video(server, outputs, "save"))) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == (64, 48)


def test_settings_that_differ_from_the_recipe_are_reported(server: Any) -> None:
    outputs = server.run(chain(sample={"steps": 2, "shift": 7.0, "sampler": "renoise"}))
    (text,) = outputs["sample"]["text"]
    for part in ("steps is 2", "made for 4", "shift is 7.0", "sampler is renoise"):
        assert part in text


def test_files_without_recipe_report_the_assumed_settings(server: Any) -> None:
    changes = {"width": 64, "height": 48, "length": 5}
    prompt = chain(load={"unet_name": "no_recipe.safetensors"}, video=changes)
    # Any text conditioning works here: use the other file's null prompt.
    prompt |= {"load2": CHAIN["load"], "video2": deepcopy(CHAIN["video"])}
    prompt["video2"]["inputs"]["model"] = ["load2", 0]
    prompt["video"]["inputs"]["positive"] = ["video2", 0]
    (text,) = server.run(prompt)["sample"]["text"]
    assert "no recipe" in text
    assert "4 steps, shift 5 and euler" in text


def test_real_and_fake_report_what_they_matched(server: Any) -> None:
    (text,) = server.run(roles())["roles"]["text"]
    assert text.startswith("matched 8/8 modules; real 0.25, fake 1")
    assert "Note" not in text
    (text,) = server.run(roles(lora="other_base.safetensors"))["roles"]["text"]
    assert re.search(r"Note: other_base\.safetensors .*sha256.* tiny\.safetensors", text)


def frames(server: Any, prompt: dict[str, Any]) -> np.ndarray:
    """Return the decoded frames of a prompt's video, lossless except for the resolution of hues."""
    prompt["save"]["inputs"]["crf"] = 0.0
    video = read_video(saved_video(server, server.run(prompt), "save"))
    return np.stack([frame.numpy() for frame in video.frames]).astype(np.float32)


def test_colours_are_saved_as_they_are(server: Any) -> None:
    prompt = chain(save={"video": ["portrait", 0]}, portrait={"seed": 11, "size": 96})
    difference = frames(server, prompt) - portrait_clip(11, 1, 96).numpy()
    # Hues have half the resolution, so single pixels differ. A wrong matrix or rounding down would be a bias.
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.25
    assert np.abs(difference).mean() < 3


def test_other_key_names_and_quantised_weights_give_the_same_video(server: Any) -> None:
    expected = frames(server, chain())
    assert expected.std() > 1
    spelled = frames(server, chain(load={"unet_name": "diffusers_names.safetensors"}))
    np.testing.assert_allclose(spelled, expected, atol=1)
    rounded = np.abs(frames(server, chain(load={"unet_name": "quantised.safetensors"})) - expected).mean()
    assert 0 < rounded < 10
    cast = frames(server, chain(load={"weight_dtype": "fp8_e4m3fn"}))
    assert np.abs(cast - expected).mean() < 20


def test_file_exported_again_is_loaded_again(server: Any) -> None:
    folder = server.directory / "models" / "diffusion_models"

    def cached(prompt: dict[str, Any]) -> list[str]:
        return dict(server.wait(server.queue(prompt))["status"]["messages"])["execution_cached"]["nodes"]

    shutil.copy(folder / "tiny.safetensors", folder / "exported.safetensors")
    prompt = chain(load={"unet_name": "exported.safetensors"})
    server.run(prompt)
    assert {"load", "sample"} <= set(cached(prompt))
    shutil.copy(folder / "quantised.safetensors", folder / "exported.safetensors")
    assert not {"load", "sample"} & set(cached(prompt))


def test_cropping_a_photograph_is_reported(server: Any, shared_data: Path) -> None:
    shutil.copy(shared_data / "stills" / "liveportrait_s0.jpg", server.directory / "input" / "still.jpg")
    prompt = chain(video={"start_image": ["photo", 0], "width": 96, "height": 48})
    prompt["photo"] = {"class_type": "LoadImage", "inputs": {"image": "still.jpg"}}
    outputs = server.run(prompt)
    assert re.search(r"\d+% .*cropped .*96 x 48", outputs["video"]["text"][0])
    with av.open(str(saved_video(server, outputs, "save"))) as video:
        assert [(frame.width, frame.height) for frame in video.decode(video=0)] == [(96, 48)] * 17


BAD = {
    "wrong family": (
        chain(load={"unet_name": "other_family.safetensors"}),
        r"other_family\.safetensors.*HunyuanVideo, Wan 2\.1",
    ),
    "16 channels": (chain(load={"unet_name": "channels16.safetensors"}), "16 input channels"),
    "incomplete": (
        chain(load={"unet_name": "incomplete.safetensors"}),
        r"incomplete\.safetensors .*missing .*double_blocks\.1\.img_attn_qkv",
    ),
    "truncated": (chain(load={"unet_name": "truncated.safetensors"}), r"truncated\.safetensors .*truncated or damaged"),
    "pickle with code": (chain(load={"unet_name": "pickle.pt"}), r"pickle\.pt .*pickle.*\.safetensors"),
    "renamed pickle": (
        chain(load={"unet_name": "renamed_pickle.safetensors"}),
        r"renamed_pickle\.safetensors is a pickle",
    ),
    "LoRA as model": (
        chain(load={"unet_name": "lora_as_model.safetensors"}),
        r"lora_as_model\.safetensors is a LoRA.*transformer",
    ),
    "strange recipe": (
        chain(load={"unet_name": "strange_recipe.safetensors"}),
        r"strange_recipe\.safetensors .*kind.*steps.*MagicDistillation",
    ),
    "LoRA of another family": (roles(lora="stranger.safetensors"), r"stranger\.safetensors .*0/1 "),
    "LoRA of another width": (roles(lora="wide.safetensors"), r"wide\.safetensors .*0/8 "),
    "odd width": (chain(video={"width": 50}), r"width of 50 .* 48\."),
    "no recipe, no size": (chain(load={"unet_name": "no_recipe.safetensors"}), "no recipe.* 960, 544 and 129"),
    "no null prompt": (
        chain(load={"unet_name": "no_recipe.safetensors"}, video={"width": 64, "height": 48, "length": 5}),
        "no null prompt.*positive",
    ),
    "wrong VAE": (chain(vae={"vae_name": "channels48.safetensors"}), "48 latent channels"),
    "odd frames": (chain(save={"video": ["portrait", 0]}, portrait={"size": 65}), "65 x 65.*even sides"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_inputs_are_explained_in_a_paragraph(case: str, server: Any) -> None:
    prompt, part = BAD[case]
    error = server.error_of(prompt)
    assert re.search(part, error["exception_message"])
    assert error["node_type"].startswith("MagicDistill")
    assert error["exception_type"].endswith("Error")
    assert "\n\n" not in error["exception_message"].strip()
    assert server.get("/system_stats"), "the server is gone"


@pytest.mark.parametrize("prefix", ["../outside", "a/../../outside", "/tmp/outside", "C:\\outside", "..\\outside", " "])
def test_no_prefix_leaves_the_output_folder(prefix: str, server: Any) -> None:
    refusal = server.refusal_of(chain(save={"filename_prefix": prefix}))
    (error,) = refusal["node_errors"]["save"]["errors"]
    assert f"filename prefix {prefix!r}" in error["details"]
    assert "output folder" in error["details"]


def test_prefix_from_another_node_is_checked_too(server: Any) -> None:
    prompt = chain(save={"filename_prefix": ["name", 0]})
    prompt["name"] = {"class_type": "PrimitiveString", "inputs": {"value": "../outside"}}
    assert re.search("filename prefix '../outside' .*output folder", server.error_of(prompt)["exception_message"])


def test_latent_of_another_size_is_refused(server: Any) -> None:
    prompt = chain()
    prompt["video2"] = deepcopy(CHAIN["video"])
    prompt["video2"]["inputs"] |= {"width": 32}
    prompt["sample"]["inputs"]["latent"] = ["video2", 1]
    assert re.search(r"\[6, 8\] .*\[6, 4\]\..*Portrait to video", server.error_of(prompt)["exception_message"])


def test_sampling_can_be_cancelled_and_the_server_goes_on(server: Any) -> None:
    prompt_id = server.queue(chain(sample={"steps": 1000}))
    end = time.monotonic() + 60
    while "1/1000" not in server.log.read_text(errors="replace") and time.monotonic() < end:
        time.sleep(0.2)
    server.post("/interrupt", {})
    messages = dict(server.wait(prompt_id, 60)["status"]["messages"])
    assert "execution_interrupted" in messages
    assert server.run(chain(sample={"seed": 99}))["save"]
