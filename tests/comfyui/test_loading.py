"""Load models and LoRAs on a running ComfyUI: reports, assumptions and errors."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from magicdistill_core.families.wan import IMAGE_TO_VIDEO
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import lora_state, to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.lora_file import save_lora

from .batches import WAN_SHAPE

Prompt = dict[str, Any]
ROW = "double_blocks.0.img_attn_qkv"


def loader(name: str, mode: str = "from the file", dtype: str = "default") -> Prompt:
    """Return a prompt that only loads a model."""
    inputs = {"unet_name": name, "weight_dtype": dtype, "start_image_mode": mode}
    return {"load": {"class_type": "MagicDistillLoadModel", "inputs": inputs}}


def shown(prompt: Prompt, node: str) -> Prompt:
    """Return a prompt with an output node after the MODEL: a stock node that uses it and saves nothing."""
    sigmas = {"model": [node, 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}
    return prompt | {
        "sigmas": {"class_type": "BasicScheduler", "inputs": sigmas},
        "end": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}},
    }


def with_lora(lora: str, base: Prompt, strength: float = 1.0, kind: str = "MagicDistillLoadLora") -> Prompt:
    """Return a prompt with a LoRA applied to a base."""
    inputs = {"model": ["load", 0], "lora_name": lora, "strength": strength}
    return base | {"lora": {"class_type": kind, "inputs": inputs}}


def stock_loader(name: str) -> Prompt:
    """Return a prompt with ComfyUI's own loader."""
    return {"load": {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}}


@pytest.fixture(scope="module")
def files(server: Any, tiny: SimpleNamespace) -> Any:
    """Return the server, with the files of these tests in its folders."""
    models, loras = server.directory / "models" / "diffusion_models", server.directory / "models" / "loras"
    prompt = tiny.prompt()
    network = tiny.network(tiny.shape(in_channels=16), TOKEN_REPLACE)
    tiny.write_model(
        models / "replace.safetensors", network, tiny.recipe("generator", i2v_mode="token_replace"), prompt
    )
    save_file(diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), models / "open.safetensors")
    state = load_file(models / "no_recipe.safetensors")
    trained = {f"model.{key}": value for key, value in state.items()}
    torch.save({"module": trained}, models / "mp_rank_00_model_states.pt")
    prefix = "hydit_unimodel.guidance_model.feedforward_model."
    distilled = {f"{prefix}{key}": value.bfloat16() for key, value in state.items()}
    torch.save({"state_dict": distilled, "step": 100}, models / "dmd_4_step_i2v.pth")
    wan = diffusers_to_file(WAN, tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO).state_dict())
    text = NullPrompt(torch.zeros(1, 4, 4096), None)
    save_checkpoint(models / "wan.safetensors", wan, tiny.recipe("teacher", family="wan", steps=28), text)
    cast = {key: value.to(torch.float8_e4m3fn) if value.ndim > 1 else value for key, value in wan.items()}
    save_file(cast, models / "wan_fp8.safetensors")
    branches = to_file_layout(HUNYUAN_VIDEO, tiny.branches(tiny.network(tiny.shape())), 128)
    digest = hashlib.sha256((models / "tiny.safetensors").read_bytes()).hexdigest()
    for name, changes in {
        "generator": {"base_hash": digest, "steps": 2, "shift": 3.0},
        "elsewhere": {"base_hash": "0" * 64},
        "of_folder": {"base_hash": "0" * 64, "base_kind": "folder"},
        "replaced": {"i2v_mode": "token_replace"},
    }.items():
        save_lora(loras / f"{name}.safetensors", branches, tiny.recipe("generator_lora", **changes))
    save_lora(loras / "prompted.safetensors", branches, tiny.recipe("generator_lora"), prompt)
    partly = lora_state(branches, "transformer.") | {
        "lora_te1_mlp_fc1.lora_down.weight": torch.ones(2, 8),
        "lora_te1_mlp_fc1.lora_up.weight": torch.ones(8, 2),
        "transformer.img_in.proj.lora_A.weight": torch.ones(2, 64),
        "transformer.img_in.proj.lora_B.weight": torch.ones(128, 2),
    }
    partly = {key: value.clone() for key, value in partly.items() if not key.endswith(".alpha")}
    save_file(partly, loras / "partly.safetensors")
    torch.save({"a.lora_A.weight": torch.ones(2, 8), "code": Path("x")}, loras / "code.pt")
    save_file({f"{ROW}.lokr_w1": torch.ones(2, 8)}, loras / "lokr.safetensors")
    return server


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            loader("tiny.safetensors"),
            "HunyuanVideo image-to-video (concat), 2.4 M parameters, float32; generator: 4 steps, shift 5, euler, "
            "64 x 48, 17 frames, 8 fps",
        ),
        (loader("replace.safetensors"), "HunyuanVideo image-to-video (token_replace)"),
        (loader("wan.safetensors"), "Wan 2.1 image-to-video (concat)"),
        (loader("wan_fp8.safetensors"), "float8_e4m3fn; no recipe.  \nNote: wan_fp8.safetensors "),
        (loader("mp_rank_00_model_states.pt"), "HunyuanVideo image-to-video (concat), 2.4 M parameters, float32; no"),
        (loader("dmd_4_step_i2v.pth"), "HunyuanVideo image-to-video (concat), 2.4 M parameters, bfloat16; no recipe"),
        (loader("open.safetensors", "token_replace"), "HunyuanVideo image-to-video (token_replace)"),
        (loader("quantised.safetensors"), "float32 + float8_e4m3fn; generator: 4 steps"),
        (
            loader("newer_recipe.safetensors"),
            "Note: the recipe in newer_recipe.safetensors has fields that this version does not know and does not use: "
            "solver_order. Update",
        ),
        (loader("tiny.safetensors", dtype="fp8_e5m2"), "float32 held as fp8_e5m2; generator"),
    ],
)
def test_one_line_describes_the_loaded_file(prompt: Prompt, said: str, files: Any) -> None:
    (text,) = files.run(shown(prompt, "load"))["load"]["text"]
    assert said in text


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        (loader("open.safetensors"), r"open\.safetensors .*i2v_mode=token_replace or none.*start_image_mode"),
        (loader("open.safetensors", "concat"), r"open\.safetensors .* 16 .*i2v_mode 'concat'.*start_image_mode"),
        (loader("tiny.safetensors", "token_replace"), r"tiny\.safetensors .*'concat'.*i2v_mode .*'token_replace'"),
        (loader("wan_fp8.safetensors", "token_replace"), r"wan_fp8\.safetensors .* 36 .*i2v_mode 'token_replace'"),
        (with_lora("tiny_fake.safetensors", loader("tiny.safetensors")), "fake branch .*Real/fake LoRA weights"),
        (with_lora("stranger.safetensors", loader("tiny.safetensors")), r"stranger\.safetensors .*0/1 "),
        (with_lora("generator.safetensors", loader("wan.safetensors")), "0/8 .*Wan 2.1 .*LoRA for HunyuanVideo"),
        (with_lora("wide.safetensors", loader("tiny.safetensors")), r"wide\.safetensors .*0/8 "),
        (with_lora("replaced.safetensors", loader("tiny.safetensors")), "start image token_replace, .*concat"),
        (with_lora("generator.safetensors", stock_loader("open.safetensors")), "start image concat, .* not known"),
        (with_lora("code.pt", loader("tiny.safetensors")), r"code\.pt .*pickle.*\.safetensors"),
        (with_lora("lokr.safetensors", loader("tiny.safetensors")), "is a LoKr adapter"),
    ],
)
def test_refusals_are_one_paragraph(prompt: Prompt, part: str, files: Any) -> None:
    last = "lora" if "lora" in prompt else "load"
    error = files.error_of(shown(prompt, last))
    assert re.search(part, error["exception_message"])
    assert error["node_type"].startswith("MagicDistill")
    assert "\n\n" not in error["exception_message"].strip()


def test_a_generator_lora_passes_on_its_recipe(files: Any) -> None:
    prompt = shown(with_lora("generator.safetensors", loader("tiny.safetensors")), "lora")
    outputs = files.run(prompt)
    (text,) = outputs["lora"]["text"]
    assert text.startswith("matched 8/8 modules; strength 1.  \ngenerator_lora: 2 steps, shift 3, euler")
    assert "Note" not in text
    # Two steps of ComfyUI's schedule at shift 3.
    assert "0.75" in outputs["end"]["text"][0]


@pytest.mark.parametrize("lora", ["generator.safetensors", "wide.safetensors"])
def test_a_lora_at_strength_0_is_off(lora: str, files: Any) -> None:
    """The MODEL keeps its own recipe and shift, even if the LoRA belongs to another model."""
    plain = files.run(shown(loader("tiny.safetensors"), "load"))["end"]["text"]
    outputs = files.run(shown(with_lora(lora, loader("tiny.safetensors"), 0.0), "lora"))
    assert outputs["end"]["text"] == plain
    assert "0.75" not in plain[0]
    assert outputs["lora"]["text"][0].startswith(f"strength 0: {lora} is off")


def test_another_base_and_partial_matches_are_reported(files: Any) -> None:
    (text,) = files.run(shown(with_lora("elsewhere.safetensors", loader("tiny.safetensors")), "lora"))["lora"]["text"]
    assert re.search(r"Note: elsewhere\.safetensors .*sha256 0{12}\.\.\..* tiny\.safetensors", text)
    # A folder's hash cannot be compared with a file's.
    (text,) = files.run(shown(with_lora("of_folder.safetensors", loader("tiny.safetensors")), "lora"))["lora"]["text"]
    assert "sha256" not in text
    for base in (loader("no_recipe.safetensors"), stock_loader("no_recipe.safetensors")):
        (text,) = files.run(shown(with_lora("partly.safetensors", base), "lora"))["lora"]["text"]
        assert re.match(r"matched 8/10 modules, no alpha .*; strength 1", text)
        assert re.search(r"2 modules of partly\.safetensors .*: img_in\.proj.*lora_te1_mlp_fc1", text)
        assert re.search(r"neither partly\.safetensors .*recipe", text)


@pytest.mark.parametrize("load", [loader, stock_loader])
def test_a_lora_provides_the_null_prompt_that_its_base_does_not_have(load: Any, files: Any) -> None:
    prompt = _steps(files, "1") | with_lora("prompted.safetensors", load("no_recipe.safetensors"))
    for node in ("video", "sample"):
        prompt[node]["inputs"]["model"] = ["lora", 0]
    prompt["sample"]["inputs"]["conditioning"] = ["video", 0]
    del prompt["steps"]
    outputs = files.run(prompt)
    assert outputs["lora"]["text"][0].startswith("matched 8/8 modules; strength 1.  \ngenerator_lora: 4 steps")
    assert ", null prompt" in outputs["video"]["text"][0]
    prompt["lora"]["inputs"]["lora_name"] = "generator.safetensors"
    assert re.search("no null prompt.*positive", files.error_of(prompt)["exception_message"])


def test_a_lora_decides_the_image_mode_of_a_stock_model(files: Any) -> None:
    prompt = shown(with_lora("replaced.safetensors", stock_loader("open.safetensors")), "lora")
    assert "matched 8/8 modules" in files.run(prompt)["lora"]["text"][0]


def test_strengths_are_checked_before_anything_runs(files: Any) -> None:
    prompt = _steps(files, "1, x")
    (error,) = files.refusal_of(prompt)["node_errors"]["steps"]["errors"]
    assert re.search("'1, x'.* -10 to 10", error["details"])


def test_strengths_per_step_are_reported(files: Any) -> None:
    (text,) = files.run(_steps(files, "1, 0.5"))["steps"]["text"]
    assert text == "matched 8/8 modules; 4 steps: 1, 0.5, 0.5, 0.5."
    (text,) = files.run(_steps(files, "1, 0.5", "quantised.safetensors"))["steps"]["text"]
    assert text.startswith("matched 8/8 modules; 4 steps: 1, 0.5, 0.5, 0.5.  \nNote: generator.safetensors ")
    assert "sha256" in text
    (text,) = files.run(_steps(files, "1, 1, 1, 0, 0"))["steps"]["text"]
    assert "5 strengths for 4 steps: " in text


def test_loras_tied_to_the_conditioning_are_in_the_record(files: Any) -> None:
    prompt = _steps(files, "1, 0.5")
    second = prompt["steps"]["inputs"] | {"conditioning": ["steps", 0], "strengths": "0, 0.25"}
    prompt["second"] = prompt["steps"] | {"inputs": second}
    prompt["sample"]["inputs"]["conditioning"] = ["second", 0]
    prompt["end"]["inputs"]["source"] = ["sample", 1]
    (record,) = files.run(prompt)["end"]["text"]
    assert json.loads(record)["loras"] == [
        {"name": "generator.safetensors", "strength_per_step": [1, 0.5, 0.5, 0.5]},
        {"name": "generator.safetensors", "strength_per_step": [0, 0.25, 0.25, 0.25]},
    ]


def _steps(files: Any, strengths: str, model: str = "tiny.safetensors") -> Prompt:
    video = {"model": ["load", 0], "vae": ["vae", 0], "start_image": ["portrait", 0]}
    video |= _defaults(files, "MagicDistillPortraitToVideo")
    steps = {"model": ["load", 0], "conditioning": ["video", 0], "lora_name": "generator.safetensors"}
    sample = {"model": ["load", 0], "conditioning": ["steps", 0], "latent": ["video", 1]}
    return loader(model) | {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae.safetensors"}},
        "portrait": {"class_type": "MagicDistillPocketPortrait", "inputs": {"seed": 1, "size": 64}},
        "video": {"class_type": "MagicDistillPortraitToVideo", "inputs": video},
        "steps": {"class_type": "MagicDistillLoraSteps", "inputs": steps | {"strengths": strengths, "steps": 0}},
        "sample": {
            "class_type": "MagicDistillSampler",
            "inputs": sample | _defaults(files, "MagicDistillSampler"),
        },
        "end": {"class_type": "PreviewAny", "inputs": {"source": ["sample", 0]}},
    }


def _defaults(files: Any, node: str) -> dict[str, Any]:
    """Return the defaults of a node's required widgets, as the page fills them in."""
    specs = files.get("/object_info")[node]["input"]["required"]
    return {name: spec[1]["default"] for name, spec in specs.items() if "default" in spec[1]}


def test_a_lora_exported_again_is_loaded_again(files: Any) -> None:
    folder = files.directory / "models" / "loras"
    shutil.copy(folder / "generator.safetensors", folder / "changing.safetensors")
    prompt = shown(with_lora("changing.safetensors", loader("tiny.safetensors")), "lora")
    assert "generator_lora: 2 steps" in files.run(prompt)["lora"]["text"][0]
    time.sleep(0.01)
    shutil.copy(folder / "elsewhere.safetensors", folder / "changing.safetensors")
    assert "generator_lora: 4 steps" in files.run(prompt)["lora"]["text"][0]


def test_a_name_from_another_node_loads_its_file_once(files: Any) -> None:
    prompt = shown(with_lora("generator.safetensors", loader("tiny.safetensors")), "lora")
    for node, name in (("load", "unet_name"), ("lora", "lora_name")):
        text = {"class_type": "PrimitiveString", "inputs": {"value": prompt[node]["inputs"][name]}}
        # Its output type fits every input, also a list of files.
        choice = {"switch": True, "on_true": [f"{name} text", 0], "on_false": [f"{name} text", 0]}
        prompt |= {f"{name} text": text, name: {"class_type": "ComfySwitchNode", "inputs": choice}}
        prompt[node]["inputs"][name] = [name, 0]
    files.run(prompt)
    messages = dict(files.wait(files.queue(prompt))["status"]["messages"])
    assert {"load", "lora"} <= set(messages["execution_cached"]["nodes"])
