"""A real ComfyUI computes the same as the trainer from the trainer's files: weights, LoRAs and sampling."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicdistill_core.families.base import Family, StartImage
from magicdistill_core.families.hunyuan_video import CONCAT, LATENT_SCALE, TOKEN_REPLACE, concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler, sample_renoise, seeded_noise
from magicdistill_core.taehv import load_taehv
from tests.makers import StockSide, merged_network, write_half_taehv
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import network_velocity
from train.networks.sampling import generate

from .batches import hunyuan_batch

pytestmark = pytest.mark.slow

NETWORKS = {"hidden128": (128, False), "hidden256": (256, False), "guidance": (128, True)}
GUIDANCE = 6.0  # ComfyUI's default for a network with a guidance embedding
WEIGHTS = (1.0, 0.25)
SEED = 1234


@dataclass(frozen=True)
class Exchange:
    """ComfyUI's answers by job, and the networks from which the files were written."""

    answers: dict[str, dict[str, Tensor]]
    networks: dict[str, torch.nn.Module]
    photo: Tensor
    vae: Path


@pytest.fixture(scope="module")
def exchange(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Write all files, run all jobs in one ComfyUI process, and read the answers."""
    folder = tmp_path_factory.mktemp("exchange")
    prompt = tiny.prompt()
    inputs = hunyuan_batch() | {"text": prompt.text_states.repeat(2, 1, 1), "pooled": prompt.pooled.repeat(2, 1)}
    save_file(inputs, folder / "inputs.safetensors")
    given = {"inputs": str(folder / "inputs.safetensors")}
    jobs: list[dict] = []
    networks = {}
    for name, (hidden, guidance) in NETWORKS.items():
        networks[name] = tiny.network(tiny.shape(hidden, guidance))
        file = folder / f"{name}.safetensors"
        tiny.write_model(file, networks[name], tiny.recipe("teacher"), prompt)
        lora = folder / f"{name}_lora.safetensors"
        tiny.write_lora(lora, tiny.branches(networks[name]), hidden, base=file)
        base = given | {"model": str(file)}
        jobs.append(base | {"run": "velocity", "name": name})
        jobs += [
            base | {"run": "velocity", "name": f"{name}-lora-{weight}", "lora": str(lora), "weight": weight}
            for weight in WEIGHTS
        ]
    file, lora = str(folder / "hidden128.safetensors"), str(folder / "hidden128_lora.safetensors")
    jobs.append(given | {"run": "real_fake", "name": "real_fake", "model": file, "lora": lora})
    vae = folder / "vae.safetensors"
    write_half_taehv(vae)
    save_file({"image": torch.rand(1, 148, 64, 3, generator=torch.Generator().manual_seed(2))}, folder / "image.st")
    jobs.append(
        {"run": "sample", "name": "sample", "model": file, "vae": str(vae), "inputs": str(folder / "image.st")}
        | {"seed": SEED}
    )
    for family, channels in ((CONCAT, 33), (TOKEN_REPLACE, 16)):
        name = f"image in noise {family.i2v_mode}"
        networks[name] = tiny.network(tiny.shape(in_channels=channels), family)
        recipe = tiny.recipe("generator", i2v_mode=family.i2v_mode, image_in_noise=0.25)
        tiny.write_model(folder / f"{family.i2v_mode}.safetensors", networks[name], recipe, prompt)
        changes = {"name": name, "model": str(folder / f"{family.i2v_mode}.safetensors")}
        jobs.append(jobs[-1] | changes)
    answers = dict(zip((job["name"] for job in jobs), stock_side(jobs), strict=True))
    return Exchange(answers, networks, load_file(folder / "image.st")["image"], vae)


def _velocity(network: torch.nn.Module, inputs: dict[str, Tensor], prompt: object) -> Tensor:
    condition = concat_condition(inputs["image"] * LATENT_SCALE, inputs["x"].shape[2])
    call = network_inputs(inputs["x"], inputs["sigma"], condition, prompt)
    if network.config.guidance_embeds:
        call["guidance"] = torch.full((2,), 1000 * GUIDANCE)
    with torch.no_grad():
        return network(**call, return_dict=False)[0]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return the batch for the comparison of velocities."""
    return hunyuan_batch()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_stock_loader_gives_the_trainers_velocities(
    name: str, exchange: Exchange, batch: dict[str, Tensor], tiny: SimpleNamespace
) -> None:
    answer = exchange.answers[name]
    expected = _velocity(exchange.networks[name], batch, tiny.prompt())
    assert answer["class"].item(), "not recognised as HunyuanVideoI2V"
    assert expected.std() > 0.1
    torch.testing.assert_close(answer["velocity"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("weight", WEIGHTS)
def test_stock_lora_loader_equals_the_merged_network(
    name: str, weight: float, exchange: Exchange, batch: dict[str, Tensor], tiny: SimpleNamespace
) -> None:
    answer = exchange.answers[f"{name}-lora-{weight}"]["velocity"]
    network = exchange.networks[name]
    expected = _velocity(merged_network(network, tiny.branches(network), weight), batch, tiny.prompt())
    assert (expected - exchange.answers[name]["velocity"]).std() > 1e-2, "the LoRA changes next to nothing"
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("role", "weight"), [("real", 0.25), ("fake", 1.0), ("base", 0.0)])
def test_real_fake_node_equals_the_trainers_roles(
    role: str, weight: float, exchange: Exchange, batch: dict[str, Tensor], tiny: SimpleNamespace
) -> None:
    network = exchange.networks["hidden128"]
    expected = _velocity(merged_network(network, tiny.branches(network), weight), batch, tiny.prompt())
    torch.testing.assert_close(exchange.answers["real_fake"][role], expected, atol=1e-5, rtol=1e-5)


def test_start_image_is_cropped_and_encoded_as_the_core_does_it(exchange: Exchange) -> None:
    # A quarter of a tall picture's 100 excess rows is cropped at the top.
    kept = exchange.photo[:, 25:73].movedim(-1, 1)
    with torch.no_grad():
        expected = load_taehv(exchange.vae).encode_image(kept)
    found = exchange.answers["sample"]["image_latent"] * LATENT_SCALE
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["recipe", "renoise"])
def test_sampler_node_equals_the_core(sampler: str, exchange: Exchange, tiny: SimpleNamespace) -> None:
    answer = exchange.answers["sample"]
    condition = concat_condition(answer["image_latent"] * LATENT_SCALE, 5).repeat(2, 1, 1, 1, 1)
    velocity = network_velocity(exchange.networks["hidden128"], condition, tiny.prompt())
    noise = torch.randn(2, 16, 5, 6, 8, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        if sampler == "renoise":
            expected = sample_renoise(velocity, noise, few_step_sigmas(4, 5), seeded_noise(SEED))
        else:
            expected = sample_euler(velocity, noise, few_step_sigmas(4, 5))
    torch.testing.assert_close(answer[sampler] * LATENT_SCALE, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [CONCAT, TOKEN_REPLACE], ids=lambda family: family.i2v_mode)
def test_the_image_in_the_noise_is_the_trainers(family: Family, exchange: Exchange, tiny: SimpleNamespace) -> None:
    name = f"image in noise {family.i2v_mode}"
    start = StartImage(exchange.answers[name]["image_latent"].repeat(2, 1, 1, 1, 1) * LATENT_SCALE)

    def expected(share: float) -> Tensor:
        network, sigmas = exchange.networks[name], few_step_sigmas(4, 5)
        return generate(network, tiny.prompt(), start, 5, sigmas, "euler", SEED, image_in_noise=share)

    found = exchange.answers[name]["recipe"] * LATENT_SCALE
    torch.testing.assert_close(found, expected(0.25), atol=1e-4, rtol=1e-4)
    assert (found - expected(0.0)).abs().max() > 1e-2
    # The schedule alone cannot add it, and says so; other models need no such note.
    said = {job: bytes(exchange.answers[job]["sigmas said"].tolist()).decode() for job in (name, "sample")}
    assert "a share of 0.25 of the start image" in said[name]
    assert "start image" not in said["sample"]


def test_stock_schedule_follows_the_recipes_shift(exchange: Exchange) -> None:
    torch.testing.assert_close(exchange.answers["sample"]["stock_sigmas"], few_step_sigmas(4, 5), atol=1e-3, rtol=0)
