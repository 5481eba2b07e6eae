"""A real ComfyUI computes the same as the trainer, for teachers other than concat."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, TOKEN_REPLACE
from magicdistill_core.families.wan import IMAGE_TO_VIDEO, normalised
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.lora_file import save_lora
from tests.makers import StockSide, merged_network, write_half_taehv
from train.networks.network import load_network, network_velocity
from train.networks.sampling import generate

from .batches import WAN_SHAPE, hunyuan_batch, wan_batch, wan_branches, wan_text

pytestmark = pytest.mark.slow

GUIDANCE = 4.0
SEED = 1234
TOKEN_REPLACE_NETWORKS = {"plain": False, "embedded": True}
# Both take the sine of timestep * frequency in float32, of which ComfyUI rounds the frequency elsewhere: at a timestep
# of 937 that turns the phase by 1e-4.
WAN_ROUNDING = {"atol": 1e-4, "rtol": 1e-4}


@dataclass(frozen=True)
class Exchange:
    """ComfyUI's answers by job, and the networks from which the files were written."""

    answers: dict[str, dict[str, Tensor]]
    networks: dict[str, torch.nn.Module]
    wan: Path


@pytest.fixture(scope="module")
def exchange(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Write all files, run all jobs in one ComfyUI process, and read the answers."""
    folder = tmp_path_factory.mktemp("exchange")
    prompt = tiny.prompt()
    inputs = hunyuan_batch() | {
        "text": prompt.text_states.repeat(2, 1, 1),
        "pooled": prompt.pooled.repeat(2, 1),
    }
    save_file(inputs, folder / "inputs.safetensors")
    jobs: list[dict] = []
    networks = {}
    for name, guidance in TOKEN_REPLACE_NETWORKS.items():
        networks[name] = tiny.network(tiny.shape(128, guidance, in_channels=16), TOKEN_REPLACE)
        given = {"embedded_guidance": GUIDANCE} if guidance else {}
        file = folder / f"{name}.safetensors"
        tiny.write_model(file, networks[name], tiny.recipe("teacher", i2v_mode="token_replace", **given), prompt)
        job = {"run": "token_replace", "name": name, "model": str(file), "guidance": GUIDANCE}
        jobs.append(job | {"inputs": str(folder / "inputs.safetensors")})
    networks["wan"] = tiny.network(WAN_SHAPE, IMAGE_TO_VIDEO)
    state = diffusers_to_file(WAN, networks["wan"].state_dict())
    save_checkpoint(
        folder / "wan.safetensors", state, tiny.recipe("teacher", family="wan"), NullPrompt(wan_text(), None)
    )
    branches = wan_branches(networks["wan"])
    save_lora(
        folder / "wan_lora.safetensors", to_file_layout(WAN, branches, 128), tiny.recipe("fake_lora", family="wan")
    )
    save_file(wan_batch(), folder / "wan_inputs.safetensors")
    job = {"run": "wan", "model": str(folder / "wan.safetensors"), "inputs": str(folder / "wan_inputs.safetensors")}
    jobs += [job | {"name": "wan"}, job | {"name": "wan-lora", "lora": str(folder / "wan_lora.safetensors")}]
    write_half_taehv(folder / "vae.safetensors")
    save_file({"image": torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(2))}, folder / "image.st")
    jobs.append(
        {"run": "sample", "name": "sample", "model": str(folder / "embedded.safetensors"), "seed": SEED}
        | {"vae": str(folder / "vae.safetensors"), "inputs": str(folder / "image.st")}
    )
    answers = dict(zip((job["name"] for job in jobs), stock_side(jobs), strict=True))
    return Exchange(answers, networks, folder / "wan.safetensors")


def _token_replace(network: torch.nn.Module, tiny: SimpleNamespace) -> Tensor:
    inputs = hunyuan_batch()
    velocity = network_velocity(network, inputs["image"] * LATENT_SCALE, tiny.prompt(), GUIDANCE)
    with torch.no_grad():
        return velocity(inputs["x"][:, :, 1:], inputs["sigma"])


@pytest.mark.parametrize("name", list(TOKEN_REPLACE_NETWORKS))
def test_token_replace_velocities_are_the_trainers(name: str, exchange: Exchange, tiny: SimpleNamespace) -> None:
    expected = _token_replace(exchange.networks[name], tiny)
    assert expected.std() > 0.1
    for model in ("ours", "twin"):
        torch.testing.assert_close(exchange.answers[name][model][:, :, 1:], expected, atol=1e-5, rtol=1e-5)


def test_the_stock_loader_still_differs(exchange: Exchange, tiny: SimpleNamespace) -> None:
    """The reason for the patches in `nodes/token_replace.py`: if this test fails, they can be removed."""
    for name in TOKEN_REPLACE_NETWORKS:
        expected = _token_replace(exchange.networks[name], tiny)
        assert (exchange.answers[name]["stock"][:, :, 1:] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["recipe", "renoise"])
def test_token_replace_is_sampled_as_the_trainer_does(sampler: str, exchange: Exchange, tiny: SimpleNamespace) -> None:
    answer = exchange.answers["sample"]
    image = StartImage(answer["image_latent"].repeat(2, 1, 1, 1, 1) * LATENT_SCALE)
    kind = "euler" if sampler == "recipe" else sampler
    network = exchange.networks["embedded"]
    expected = generate(network, tiny.prompt(), image, 5, few_step_sigmas(4, 5), kind, SEED, guidance=GUIDANCE)
    torch.testing.assert_close(answer[sampler] * LATENT_SCALE, expected, atol=1e-4, rtol=1e-4)


def _wan_velocity(network: torch.nn.Module, text: Tensor) -> Tensor:
    inputs = wan_batch()
    image = StartImage(normalised(inputs["image"]), inputs["features"])
    velocity = network_velocity(network, IMAGE_TO_VIDEO.condition(image, 3), NullPrompt(text, None))
    with torch.no_grad():
        return velocity(inputs["x"], inputs["sigma"])


def test_wan_velocities_are_the_trainers(exchange: Exchange) -> None:
    answer = exchange.answers["wan"]
    expected = _wan_velocity(exchange.networks["wan"], wan_text())
    assert answer["class"].item(), "not recognised as Wan 2.1 image-to-video"
    assert expected.std() > 0.1
    torch.testing.assert_close(answer["velocity"], expected, **WAN_ROUNDING)
    back = load_checkpoint(exchange.wan)
    assert back.null_prompt is not None
    again = _wan_velocity(load_network(back), back.null_prompt.text_states)
    torch.testing.assert_close(again, expected)


def test_wan_loras_are_the_trainers(exchange: Exchange) -> None:
    network = exchange.networks["wan"]
    expected = _wan_velocity(merged_network(network, wan_branches(network), 1.0), wan_text())
    assert (expected - exchange.answers["wan"]["velocity"]).std() > 1e-2
    torch.testing.assert_close(exchange.answers["wan-lora"]["velocity"], expected, **WAN_ROUNDING)
