"""int8 files in a real ComfyUI: both loaders read them, with half the memory and velocities within the error."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, NetworkShape, concat_condition
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO, WanShape
from magicdistill_core.int8 import QUANTISATION_KEY
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.quantise import Quantised, quantise_file
from magicdistill_core.safetensors_file import read_metadata
from tests.makers import StockSide
from train.networks.network import load_network, network_velocity

pytestmark = pytest.mark.slow

HIDDEN = 256
# Enough blocks to be most of the network, as in the releases.
SHAPE = NetworkShape(33, HIDDEN, 6, 8, 2, 32, 768, False)
WAN_SHAPE = WanShape(in_channels=36, hidden=HIDDEN, mlp=1024, blocks=20, text_dim=4096, frequencies=256)


def _per_row(sizes: Tensor) -> Tensor:
    return sizes.amax(1, keepdim=True)


UNDESCRIBED = (
    ("lightx2v_fp8", torch.float8_e4m3fn, _per_row, ".weight_scale", 0),
    ("lightx2v_int8", torch.int8, _per_row, ".weight_scale", 0),
    ("flagless", torch.float8_e4m3fn, torch.amax, ".scale_weight", 0),
    ("e5m2", torch.float8_e5m2, torch.amax, ".scale_weight", 2),
    ("musubi", torch.float8_e4m3fn, lambda s: s.unflatten(1, (-1, 64)).amax(2, keepdim=True), ".scale_weight", 2),
    ("inverse", torch.float8_e4m3fn, torch.amax, ".weight_scale_inv", 0),
)


@dataclass(frozen=True)
class Exchange:
    """ComfyUI's answers by file, and the report of the quantisation."""

    answers: dict[str, dict[str, Tensor]]
    done: dict[str, Quantised]
    files: dict[str, Path]


@pytest.fixture(scope="module")
def exchange(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    folder = tmp_path_factory.mktemp("quantised")
    prompt = tiny.prompt()
    hunyuan, wan = tiny.network(SHAPE), tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO)
    for network in (hunyuan, wan):
        for parameter in network.parameters():
            # Weights of realistic size, so the test measures rounding and not chaotic growth.
            parameter.data = (parameter.data * (0.3 if parameter.ndim > 1 else 1.0)).bfloat16()
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "x": torch.randn(2, 16, 3, 6, 8, generator=generator),
        "sigma": torch.tensor([0.9375, 0.625]),
        "image": torch.randn(2, 16, 1, 6, 8, generator=generator),
        "mask": (torch.arange(3) > 0).float().reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 6, 8).contiguous(),
        "text": prompt.text_states.repeat(2, 1, 1),
        "pooled": prompt.pooled.repeat(2, 1),
    }
    wan_inputs = {key: inputs[key] for key in ("x", "sigma", "mask")} | {
        "image": torch.randn(2, 16, 3, 6, 8, generator=generator),
        "features": torch.randn(2, *FEATURE_SHAPE, generator=generator),
        "text": torch.randn(2, 512, 4096, generator=generator),
    }
    save_file(inputs, folder / "inputs.st")
    save_file(wan_inputs, folder / "wan_inputs.st")
    files = {name: folder / f"{name}.safetensors" for name in ("hunyuan", "hunyuan_int8", "wan", "wan_int8")}
    tiny.write_model(files["hunyuan"], hunyuan, tiny.recipe("generator"), prompt)
    save_checkpoint(
        files["wan"],
        diffusers_to_file(WAN, wan.state_dict()),
        tiny.recipe("generator", family="wan"),
        None,
    )
    lora = folder / "lora.safetensors"
    tiny.write_lora(lora, tiny.branches(hunyuan), HIDDEN, base=files["hunyuan"])
    done = {name: quantise_file(files[name], files[f"{name}_int8"]) for name in ("hunyuan", "wan")}
    jobs = []
    for name, file in files.items():
        wanted = {"inputs": str(folder / ("wan_inputs.st" if "wan" in name else "inputs.st"))}
        loras = {} if "wan" in name else {"lora": str(lora)}
        jobs.append({"run": "quantised", "model": str(file)} | wanted | loras)
    undescribed = _undescribed(folder, load_file(files["hunyuan"]))
    jobs += [{"run": "ours", "model": str(file), "inputs": str(folder / "inputs.st")} for file in undescribed.values()]
    return Exchange(dict(zip([*files, *undescribed], stock_side(jobs), strict=True)), done, files)


def _undescribed(folder: Path, state: dict[str, Tensor]) -> dict[str, Path]:
    """Write files as other tools quantise them: scales that nothing describes, or that ComfyUI misreads."""
    files = {}
    for title, dtype, scale_of, suffix, flag in UNDESCRIBED:
        out = dict(state)
        for key in [key for key in state if is_matrix(key)]:
            scale = scale_of(state[key].float().abs()) / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
            wide = scale[..., 0].repeat_interleave(64, 1) if scale.ndim == 3 else scale
            weight = state[key].float() / wide
            out[key] = weight.round().to(dtype) if dtype == torch.int8 else weight.to(dtype)
            out[key.removesuffix(".weight") + suffix] = scale
        if flag:
            out["scaled_fp8"] = torch.zeros(flag, dtype=dtype)
        files[title] = folder / f"{title}.safetensors"
        save_file({f"model.diffusion_model.{key}": value for key, value in out.items()}, files[title])
    return files


def apart(got: Tensor, expected: Tensor) -> float:
    """Return the relative distance of two velocities."""
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["hunyuan", "wan"])
def test_file_and_memory_are_half(name: str, exchange: Exchange) -> None:
    whole, half = exchange.files[name].stat().st_size, exchange.files[f"{name}_int8"].stat().st_size
    assert 0.5 < half / whole < 0.6
    exact, rounded = exchange.answers[name], exchange.answers[f"{name}_int8"]
    state = load_checkpoint(exchange.files[name]).state
    matrices = sum(state[f"{layer}.weight"].numel() for layer in exchange.done[name].errors)
    # ComfyUI's memory: two bytes per value of bf16 matrices; one byte and the scales of rows for int8.
    assert exact["int8"] == 0
    assert 0.5 <= int(rounded["int8"]) / (2 * matrices) < 0.51
    # On a CPU, ComfyUI converts weights that are not quantised to float32, so they are compared with themselves.
    assert int(rounded["bytes"] - rounded["int8"]) == int(exact["bytes"]) - 4 * matrices


@pytest.mark.parametrize("name", ["hunyuan", "wan"])
def test_stock_loader_computes_within_the_stated_error(name: str, exchange: Exchange) -> None:
    exact, rounded = exchange.answers[name]["stock"], exchange.answers[f"{name}_int8"]["stock"]
    assert exact.std() > 0.05
    weights = exchange.done[name].error
    assert 0.003 < weights < 0.009
    # Every layer adds an error; most of it averages out.
    assert 1e-4 < apart(rounded, exact) < 3 * weights


def test_our_loader_computes_the_same_and_loras_go_on_top(exchange: Exchange) -> None:
    exact, rounded = exchange.answers["hunyuan"], exchange.answers["hunyuan_int8"]
    assert torch.equal(rounded["ours"], rounded["stock"])
    assert apart(exact["lora"], exact["stock"]) > 0.03, "the LoRA changes next to nothing"
    assert apart(rounded["lora"], exact["lora"]) < 0.03


def test_the_trainer_computes_nearly_what_comfyui_computes(exchange: Exchange) -> None:
    """ComfyUI also rounds the inputs of int8 layers, so the difference is about as large as that of the weights."""
    file, answer = exchange.files["hunyuan_int8"], exchange.answers["hunyuan_int8"]["stock"]
    done, numbers = exchange.done["hunyuan"], load_file(file)
    products = {f"{name}.weight": numbers[f"{name}.weight"] * numbers[f"{name}.weight_scale"] for name in done.errors}
    inputs, checkpoint = load_file(file.parent / "inputs.st"), load_checkpoint(file)
    plain = trainers_velocity(replace(checkpoint, state=checkpoint.state | products), inputs)
    assert apart(plain, answer) < 2 * done.error
    # The trainer keeps the products in the file's bf16, which is the smaller difference.
    assert 1e-4 < apart(trainers_velocity(checkpoint, inputs), plain) < 0.5 * done.error


def trainers_velocity(checkpoint: Checkpoint, inputs: dict[str, Tensor]) -> Tensor:
    """Return the velocity of the trainer's network in fp32."""
    assert checkpoint.null_prompt is not None
    network = load_network(checkpoint)
    condition = concat_condition(inputs["image"] * LATENT_SCALE, inputs["x"].shape[2])
    with torch.no_grad():
        return network_velocity(network, condition, checkpoint.null_prompt)(inputs["x"], inputs["sigma"])


@pytest.mark.parametrize("title", [row[0] for row in UNDESCRIBED])
def test_scales_of_other_tools_are_applied(title: str, exchange: Exchange) -> None:
    answer = exchange.answers[title]
    said = bytes(answer["said"].tolist()).decode()
    assert apart(answer["velocity"], exchange.answers["hunyuan"]["stock"]) < (0.08 if title == "e5m2" else 0.04), said
    assert ("layers rounded from fp8 to int8" in said) == (title in ("lightx2v_fp8", "musubi"))


def test_node_writes_the_copy_that_the_loaders_list_and_run(server: Any) -> None:
    source = server.directory / "models" / "diffusion_models" / "tiny.safetensors"
    quantise = {"q": {"class_type": "MagicDistillQuantise", "inputs": {"unet_name": "tiny.safetensors"}}}
    (text,) = server.run(quantise)["q"]["text"]
    written = server.directory / "output" / "diffusion_models" / "tiny_int8.safetensors"
    layers = json.loads(read_metadata(written)[QUANTISATION_KEY])["layers"]
    assert text.startswith(f"tiny_int8.safetensors: {len(layers)} layers ")
    assert len(layers) == len([key for key in load_checkpoint(source).state if is_matrix(key)])
    nodes = server.get("/object_info")
    for loader in ("UNETLoader", "MagicDistillLoadModel"):
        kind = nodes[loader]["input"]["required"]["unet_name"]
        assert "tiny_int8.safetensors" in (kind[0] if isinstance(kind[0], list) else kind[1]["options"])
    again = {"q": {"class_type": "MagicDistillQuantise", "inputs": {"unet_name": "tiny_int8.safetensors"}}}
    error = server.error_of(again)
    assert re.search(r"tiny_int8\.safetensors .*quantised.*int8", error["exception_message"])
    assert not (written.parent / "tiny_int8_int8.safetensors").exists()


def is_matrix(key: str) -> bool:
    """Return whether a name is that of a block's matrix."""
    ends = (
        "qkv.weight",
        "proj.weight",
        "fc1.weight",
        "fc2.weight",
        "linear.weight",
        "linear1.weight",
        "linear2.weight",
    )
    return key.startswith(("double_blocks.", "single_blocks.")) and key.endswith(ends)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("truncated.safetensors", "truncated or damaged"),
        ("lora_as_model.safetensors", "is a LoRA"),
        ("other_family.safetensors", r"HunyuanVideo, Wan 2\.1"),
        ("incomplete.safetensors", r"missing .*double_blocks\.1\.img_attn_qkv"),
        ("renamed_pickle.safetensors", "is a pickle"),
    ],
)
def test_bad_files_are_explained_and_nothing_is_written(file: str, part: str, server: Any) -> None:
    prompt = {"q": {"class_type": "MagicDistillQuantise", "inputs": {"unet_name": file}}}
    assert re.search(f"{re.escape(file)}.*{part}", server.error_of(prompt)["exception_message"])
    folder = server.directory / "output" / "diffusion_models"
    assert not list(folder.glob(f"*{Path(file).stem}*"))


def test_a_subfolder_is_kept(server: Any) -> None:
    folder = server.directory / "models" / "diffusion_models"
    (folder / "deep").mkdir(exist_ok=True)
    shutil.copy(folder / "tiny.safetensors", folder / "deep" / "tiny.safetensors")
    prompt = {"q": {"class_type": "MagicDistillQuantise", "inputs": {"unet_name": "deep/tiny.safetensors"}}}
    server.run(prompt)
    assert (server.directory / "output" / "diffusion_models" / "deep" / "tiny_int8.safetensors").is_file()
    shutil.rmtree(folder / "deep")
