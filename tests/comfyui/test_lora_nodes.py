"""The LoRA nodes: with all key names, bases and precisions the result equals the trainer's merged network."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, concat_condition
from magicdistill_core.families.wan import IMAGE_TO_VIDEO, normalised
from magicdistill_core.flow import few_step_sigmas, sample_euler
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import lora_state, to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file, file_to_diffusers
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.lora_file import save_lora
from tests.makers import StockSide, merged_network
from train.networks.network import network_velocity

from .batches import WAN_SHAPE, hunyuan_batch, wan_batch, wan_branches, wan_text

pytestmark = pytest.mark.slow

STRENGTHS = {
    "1, 1, 1, 1": [1.0, 1.0, 1.0, 1.0],
    "0 0 0 0": [0.0, 0.0, 0.0, 0.0],
    "1, 1, 0": [1.0, 1.0, 0.0, 0.0],
    "-0.5,.25,.25,2": [-0.5, 0.25, 0.25, 2.0],
}
SHIFT, OTHER_SHIFT = 5.0, 17.0
DIALECTS = ("ours", "diffusers", "musubi", "trainer", "halves")
# The prefixes of HunyuanVideo-I2V's and Wan-Fun's trainers.
TRAINER_PREFIXES = {"hunyuan": "Hunyuan_video_I2V_lora_", "wan": "lora_unet__"}


@dataclass(frozen=True)
class Exchange:
    """ComfyUI's answers by job, and the networks from which the files were written."""

    answers: dict[str, dict[str, Tensor]]
    hunyuan: torch.nn.Module
    wan: torch.nn.Module


def _inputs() -> dict[str, Tensor]:
    # A shift other than the model's, the end of a schedule, and a part of its middle.
    whole, other = few_step_sigmas(4, SHIFT), few_step_sigmas(4, OTHER_SHIFT)
    pieces = {"last sigmas": whole[2:].clone(), "middle sigmas": whole[1:4].clone()}
    return hunyuan_batch() | {"sigmas": whole, "other sigmas": other} | pieces


def _underscores(state: dict[str, Tensor], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """Convert key names with the prefix `diffusion_model.` to those of kohya's and musubi's trainers."""
    out = {}
    for key, value in state.items():
        module, _, half = key.removeprefix("diffusion_model.").partition(".lora_")
        if half:
            out[f"{prefix}{module.replace('.', '_')}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = value
        else:
            out[f"{prefix}{module.removesuffix('.alpha').replace('.', '_')}.alpha"] = value
    return out


def _other_halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the pairs to `lora.down`/`lora.up` in half of the modules and to `lora_A`/`lora_B` in the other half."""
    modules = sorted(key.removesuffix(".alpha") for key in state if key.endswith(".alpha"))
    out = {}
    for number, module in enumerate(modules):
        down, up = ("lora.down.weight", "lora.up.weight") if number % 2 else ("lora_A", "lora_B")
        out |= {
            f"{module}.{down}": state[f"{module}.lora_A.weight"],
            f"{module}.{up}": state[f"{module}.lora_B.weight"],
        }
        out[f"{module}.alpha"] = state[f"{module}.alpha"]
    return out


def _write_loras(folder: Path, kind: str, split: dict[str, LowRank], fused: dict[str, LowRank], recipe: Any) -> None:
    save_lora(folder / f"{kind}_ours.safetensors", fused, recipe)
    save_file(_clones(lora_state(split, "transformer.")), folder / f"{kind}_diffusers.safetensors")
    save_file(_clones(_underscores(lora_state(fused))), folder / f"{kind}_musubi.safetensors")
    # A module that changes nothing: ComfyUI recognises Wan-Fun's trainer by this name.
    mark = {} if kind == "hunyuan" else {"blocks.0.cross_attn.k": LowRank(torch.ones(4, 128), torch.zeros(128, 4), 4.0)}
    trained = _underscores(lora_state(fused | mark), TRAINER_PREFIXES[kind])
    save_file(_clones(trained), folder / f"{kind}_trainer.safetensors")
    save_file(_clones(_other_halves(lora_state(fused))), folder / f"{kind}_halves.safetensors")


def _clones(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.items()}


def _quantised(state: dict[str, Tensor], kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Quantise the single blocks' `linear1` to ComfyUI's fp8 or int8 with a scale; return weights and metadata."""
    out, layers = dict(state), {}
    dtype, limit = (torch.float8_e4m3fn, 448.0) if kind == "fp8" else (torch.int8, 127.0)
    for name in [key.removesuffix(".weight") for key in state if ".linear1.weight" in key]:
        weight = state[f"{name}.weight"]
        scale = weight.abs().max() / limit
        scaled = weight / scale
        out[f"{name}.weight"] = scaled.to(dtype) if kind == "fp8" else scaled.round().to(dtype)
        out[f"{name}.weight_scale"] = scale.float()
        layers[name] = {"format": "float8_e4m3fn" if kind == "fp8" else "int8_tensorwise"}
    return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


@pytest.fixture(scope="module")
def exchange(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Write all files, run all jobs in one ComfyUI process, and read the answers."""
    folder = tmp_path_factory.mktemp("exchange")
    prompt = tiny.prompt()
    inputs = _inputs() | {"text": prompt.text_states.repeat(2, 1, 1), "pooled": prompt.pooled.repeat(2, 1)}
    save_file(inputs, folder / "inputs.st")
    save_file((wan_batch() | {"sigmas": few_step_sigmas(4, SHIFT)}), folder / "wan_inputs.st")
    network = tiny.network(tiny.shape())
    recipe = tiny.recipe("generator_lora", steps=3, shift=SHIFT)
    tiny.write_model(folder / "hunyuan.safetensors", network, tiny.recipe("teacher", steps=4, shift=SHIFT), prompt)
    state = load_file(folder / "hunyuan.safetensors")
    for kind in ("fp8", "int8"):
        tensors, metadata = _quantised(state, kind)
        save_file(tensors, folder / f"{kind}.safetensors", metadata)
    save_file(
        {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in state.items()}, folder / "cast.safetensors"
    )
    split = tiny.branches(network)
    _write_loras(folder, "hunyuan", split, to_file_layout(HUNYUAN_VIDEO, split, 128), recipe)
    wan = tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO)
    weights = diffusers_to_file(WAN, wan.state_dict())
    teacher = tiny.recipe("teacher", family="wan", shift=3.0)
    save_checkpoint(folder / "wan.safetensors", weights, teacher, NullPrompt(wan_text(), None))
    split = wan_branches(wan)
    fused = to_file_layout(WAN, split, 128)
    _write_loras(folder, "wan", split, fused, recipe.model_copy(update={"family": "wan"}))
    extra = lora_state(fused) | {
        "diffusion_model.blocks.0.diff_m": torch.full((1, 6, 128), 0.3),
        "diffusion_model.blocks.1.self_attn.q.diff_b": torch.full((128,), 0.2),
    }
    save_file(_clones(extra), folder / "wan_step.safetensors")
    # As ComfyUI's Extract and Save Lora writes it with lora_type full_diff.
    whole = {f"diffusion_model.{name}.diff": branch.delta(1.0) for name, branch in fused.items()}
    whole["diffusion_model.blocks.1.self_attn.q.diff_b"] = torch.full((128,), 0.2)
    save_file(_clones(whole), folder / "wan_whole.safetensors")

    def loras(kind: str, *more: str) -> list[tuple[str, float]]:
        return [(f"{kind}_{name}.safetensors", 0.5) for name in (*DIALECTS, *more)]

    job = {"run": "loras", "inputs": str(folder / "inputs.st"), "fake": "hunyuan_diffusers.safetensors"}
    jobs = [
        job | {"name": name, "model": str(folder / f"{name}.safetensors"), "loras": loras("hunyuan")}
        for name in ("hunyuan", "fp8", "int8", "cast")
    ]
    jobs.append(
        {
            "run": "loras",
            "name": "wan",
            "model": str(folder / "wan.safetensors"),
            "loras": loras("wan", "step", "whole"),
        }
        | {"inputs": str(folder / "wan_inputs.st"), "fake": "wan_musubi.safetensors"}
    )
    steps = {"run": "lora_steps", "inputs": str(folder / "inputs.st"), "strengths": list(STRENGTHS)}
    steps["lora"] = str(folder / "hunyuan_diffusers.safetensors")
    jobs += [
        steps | {"name": f"{name} steps", "model": str(folder / f"{name}.safetensors")}
        for name in ("hunyuan", "cast", "fp8", "int8")
    ]
    jobs.append(
        {"run": "packed", "name": "packed", "model": str(folder / "hunyuan.safetensors"), "lora": steps["lora"]}
        | {"inputs": steps["inputs"]}
    )
    answers = dict(zip((job["name"] for job in jobs), stock_side(jobs), strict=True))
    return Exchange(answers, network, wan)


def _hunyuan_velocity(network: torch.nn.Module, tiny: SimpleNamespace) -> Callable[[Tensor, Tensor], Tensor]:
    condition = concat_condition(_inputs()["image"] * LATENT_SCALE, 3)
    return network_velocity(network, condition, tiny.prompt())


def _wan_velocity(network: torch.nn.Module) -> Tensor:
    inputs = wan_batch() | {"sigmas": few_step_sigmas(4, SHIFT)}
    condition = IMAGE_TO_VIDEO.condition(StartImage(normalised(inputs["image"]), inputs["features"]), 3)
    with torch.no_grad():
        return network_velocity(network, condition, NullPrompt(wan_text(), None))(inputs["x"], inputs["sigma"])


def _expected(kind: str, exchange: Exchange, tiny: SimpleNamespace, weight: float) -> Tensor:
    if kind == "wan":
        return _wan_velocity(merged_network(exchange.wan, wan_branches(exchange.wan), weight))
    network = merged_network(exchange.hunyuan, tiny.branches(exchange.hunyuan), weight)
    with torch.no_grad():
        return _hunyuan_velocity(network, tiny)(_inputs()["x"], _inputs()["sigma"])


@pytest.mark.parametrize("base", ["ours", "stock"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["hunyuan", "wan"])
def test_loras_with_all_key_names_equal_the_merged_network(
    kind: str, dialect: str, base: str, exchange: Exchange, tiny: SimpleNamespace
) -> None:
    answer = exchange.answers[kind]
    expected = _expected(kind, exchange, tiny, 0.5)
    assert (expected - answer["base stock"]).std() > 1e-2, "the LoRA changes next to nothing"
    got = answer[f"{kind}_{dialect}.safetensors on {base}"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hunyuan", "wan"])
def test_the_stock_loader_agrees_or_leaves_modules_out(kind: str, exchange: Exchange) -> None:
    """The reason for the node: if the stock loader leaves out no module any more, the node is not needed."""
    answer = exchange.answers[kind]
    effect = (answer[f"{kind}_ours.safetensors on stock"] - answer["base stock"]).std()
    for dialect in DIALECTS:
        name = f"{kind}_{dialect}.safetensors"
        apart = (answer[f"{name} by the stock loader"] - answer[f"{name} on stock"]).std()
        if dialect in ("ours", "halves") or (kind == "wan" and dialect in ("musubi", "trainer")):
            assert apart < 1e-5
        else:
            assert apart > 0.1 * effect
    assert torch.equal(answer[f"{kind}_diffusers.safetensors by the stock loader"], answer["base stock"])


@pytest.mark.parametrize("base", ["ours", "stock"])
def test_the_recipe_of_a_lora_takes_over(base: str, exchange: Exchange) -> None:
    for kind, shift in (("hunyuan", 7.0), ("wan", 8.0)):
        answer = exchange.answers[kind]
        name = f"{kind}_ours.safetensors on {base}"
        assert (float(answer[f"{name}: shift"]), int(answer[f"{name}: steps"])) == (SHIFT, 3)
        name = f"{kind}_musubi.safetensors on {base}"
        own = {"hunyuan": SHIFT, "wan": 3.0}[kind] if base == "ours" else shift
        assert (float(answer[f"{name}: shift"]), int(answer[f"{name}: steps"])) == (own, 4 if base == "ours" else 0)


@pytest.mark.parametrize("precision", ["fp8", "int8", "cast"])
def test_loras_on_quantised_weights_are_the_stock_loaders(precision: str, exchange: Exchange) -> None:
    answer, whole = exchange.answers[precision], exchange.answers["hunyuan"]
    torch.testing.assert_close(answer["base ours"], answer["base stock"])
    error = (answer["base ours"] - whole["base ours"]).std()
    assert 0 < error < 0.1 * whole["base ours"].std()
    name = "hunyuan_ours.safetensors"
    torch.testing.assert_close(answer[f"{name} on ours"], answer[f"{name} by the stock loader"])
    split = answer["hunyuan_diffusers.safetensors on ours"]
    effect = whole[f"{name} on ours"] - whole["base ours"]
    assert (split - answer["base ours"] - effect).std() < 0.5 * effect.std()


@pytest.mark.parametrize("base", ["ours", "stock"])
def test_full_differences_are_applied(base: str, exchange: Exchange) -> None:
    answer = exchange.answers["wan"]
    network = merged_network(exchange.wan, wan_branches(exchange.wan), 0.5)
    with torch.no_grad():
        network.blocks[0].scale_shift_table += 0.5 * 0.3
        network.blocks[1].attn1.to_q.bias += 0.5 * 0.2
    expected = _wan_velocity(network)
    torch.testing.assert_close(answer[f"wan_step.safetensors on {base}"], expected, atol=1e-4, rtol=1e-4)
    # The stock loader leaves the modulation out.
    assert (answer["wan_step.safetensors by the stock loader"] - expected).std() > 1e-2
    assert torch.equal(answer["base afterwards"], answer["base ours"])


@pytest.mark.parametrize("base", ["ours", "stock"])
def test_files_of_full_differences_only_are_applied(base: str, exchange: Exchange) -> None:
    answer = exchange.answers["wan"]
    network = merged_network(exchange.wan, wan_branches(exchange.wan), 0.5)
    with torch.no_grad():
        network.blocks[1].attn1.to_q.bias += 0.5 * 0.2
    expected = _wan_velocity(network)
    torch.testing.assert_close(answer[f"wan_whole.safetensors on {base}"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer["wan_whole.safetensors by the stock loader"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hunyuan", "wan"])
@pytest.mark.parametrize(("role", "weight"), [("real", 0.25), ("fake", 1.0)])
def test_real_and_fake_of_every_family_and_all_key_names(
    kind: str, role: str, weight: float, exchange: Exchange, tiny: SimpleNamespace
) -> None:
    expected = _expected(kind, exchange, tiny, weight)
    torch.testing.assert_close(exchange.answers[kind][role], expected, atol=1e-4, rtol=1e-4)


def _sampled_by_steps(
    network: torch.nn.Module, strengths: list[float], tiny: SimpleNamespace, schedule: str = "sigmas"
) -> Tensor:
    """Sample with the core's Euler sampler; at each step the LoRA is merged at that step's strength."""
    nodes = _inputs()[schedule]
    strengths = strengths[{"last sigmas": 2, "middle sigmas": 1}.get(schedule, 0) :]
    branches = tiny.branches(network)
    stages = {
        float(sigma): _hunyuan_velocity(merged_network(network, branches, strength), tiny)
        for sigma, strength in zip(nodes, strengths, strict=False)
    }

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return stages[float(sigma.reshape(-1)[0])](x, sigma)

    with torch.no_grad():
        # ComfyUI scales a latent that is still noisy back, so sampling can continue from it.
        return sample_euler(velocity, nodes[0] * _inputs()["x"], nodes) / (1 - nodes[-1]) / LATENT_SCALE


@pytest.mark.parametrize("strengths", list(STRENGTHS))
def test_strengths_per_step_are_merged_weights_per_step(
    strengths: str, exchange: Exchange, tiny: SimpleNamespace
) -> None:
    answer = exchange.answers["hunyuan steps"]
    expected = _sampled_by_steps(exchange.hunyuan, STRENGTHS[strengths], tiny)
    torch.testing.assert_close(answer[strengths], expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(answer[f"{strengths} again"], answer[strengths])


@pytest.mark.parametrize("schedule", ["other sigmas", "last sigmas", "middle sigmas"])
def test_a_step_keeps_its_strength_whatever_the_schedule(
    schedule: str, exchange: Exchange, tiny: SimpleNamespace
) -> None:
    strengths = "-0.5,.25,.25,2"
    expected = _sampled_by_steps(exchange.hunyuan, STRENGTHS[strengths], tiny, schedule)
    answer = exchange.answers["hunyuan steps"][f"{strengths} {schedule}"]
    torch.testing.assert_close(answer, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("strengths", list(STRENGTHS))
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_strengths_per_step_on_quantised_weights(
    precision: str, strengths: str, exchange: Exchange, tiny: SimpleNamespace
) -> None:
    """Compare with the trainer's network: the same rounded weights, with the LoRA merged without rounding."""
    answer = exchange.answers[f"{precision} steps"]
    state, _ = _quantised(diffusers_to_file(HUNYUAN_VIDEO, exchange.hunyuan.state_dict()), precision)
    for key in [key for key in state if key.endswith(".weight_scale")]:
        weight = key.removesuffix("_scale")
        state[weight] = state[weight].float() * state.pop(key)
    network = copy.deepcopy(exchange.hunyuan)
    network.load_state_dict(file_to_diffusers(HUNYUAN_VIDEO, state, 128))
    expected = _sampled_by_steps(network, STRENGTHS[strengths], tiny)
    effect = (_sampled_by_steps(network, [1.0] * 4, tiny) - _sampled_by_steps(network, [0.0] * 4, tiny)).std()
    assert (answer[strengths] - expected).std() < 0.02 * effect
    assert torch.equal(answer[f"{strengths} again"], answer[strengths])


@pytest.mark.parametrize("precision", ["hunyuan", "cast", "fp8", "int8"])
def test_constant_strengths_are_the_plain_lora_or_none(precision: str, exchange: Exchange) -> None:
    answer = exchange.answers[f"{precision} steps"]
    effect = (answer["with"] - answer["without"]).std()
    assert effect > 1e-2
    # ComfyUI rounds an fp8 weight again after each change, so the results are only close.
    close = 1e-5 if precision == "hunyuan" else 0.3 * effect
    assert (answer["1, 1, 1, 1"] - answer["with"]).std() < close
    assert (answer["0 0 0 0"] - answer["without"]).std() < close
    assert torch.equal(answer["without, afterwards"], answer["without"])


def test_every_lora_node_works_on_the_packed_weights_of_gguf_packs(exchange: Exchange) -> None:
    answer = exchange.answers["packed"]
    assert answer["strange names"] == 1, "no layer lists a tensor that it does not have"
    assert answer["matched"].tolist() == [12, 0]
    assert answer["fixed"].tolist() == [False, True]
    effect = answer["plain with"] - answer["plain without"]
    packed = answer["packed with"] - answer["packed without"]
    assert 0 < (packed - effect).std() < 0.02 * effect.std()
    assert torch.equal(answer["packed fake"], answer["packed with"])
    real = answer["packed real"] - answer["packed without"]
    assert 0.1 * packed.std() < real.std() < 0.4 * packed.std()
    apart, change = answer["steps with"] - answer["steps merged"], answer["steps merged"] - answer["steps without"]
    assert apart.std() < 1e-3 * change.std()
