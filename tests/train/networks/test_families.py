"""Teachers other than concat: the inputs of their networks, the frames in their losses, and complete runs."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import TEXT_ONLY, TOKEN_REPLACE
from magicdistill_core.families.wan import FEATURE_SHAPE, IMAGE_TO_VIDEO
from magicdistill_core.flow import few_step_sigmas
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.layouts.wan import WAN
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt, seeded_network, wan_shape
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError, DatasetIndex
from train.data.dataset_writer import LatentWriter
from train.methods.draws import Draws
from train.networks.network import load_network
from train.networks.sampling import generate, sample_latents
from train.networks.weights import load_weights
from train.tools.export import export_run

SHAPE = hunyuan_shape(in_channels=16, guidance_embed=True)
FRAMES, SIDE = 9, 32
GUIDANCE = 4.5


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return file_state(SHAPE, TOKEN_REPLACE)


@pytest.fixture(scope="module")
def prompt() -> NullPrompt:
    return random_prompt()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    index = DatasetIndex(frames=FRAMES, height=SIDE, width=SIDE, fps=24, vae_sha256="0" * 64, dtype="float32")
    generator = torch.Generator().manual_seed(2)
    with LatentWriter(folder, index) as writer:
        for number in range(4):
            latent = torch.randn(16, 3, 4, 4, generator=generator)
            writer.append(f"{number}", latent, StartImage(torch.randn(1, 16, 1, 4, 4, generator=generator)))
    return folder


def recipe(mode: str, **changes: object) -> Recipe:
    fields = {"kind": "teacher", "i2v_mode": mode, "steps": 28, "shift": 5, "width": SIDE, "height": SIDE}
    return Recipe.model_validate(fields | {"frames": FRAMES, "fps": 24} | changes)


def by_diffusers(state: dict[str, Tensor]) -> HunyuanVideoTransformer3DModel:
    """A token-replace network built by diffusers alone, without the trainer's builder."""
    network = HunyuanVideoTransformer3DModel(
        num_attention_heads=1,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        image_condition_type="token_replace",
    )
    built = load_network(Checkpoint(state, SHAPE, None, None, "x", "token_replace"))
    network.load_state_dict(built.state_dict())
    return network


def velocity(
    network: HunyuanVideoTransformer3DModel, x: Tensor, sigma: Tensor, image: Tensor, prompt: NullPrompt
) -> Tensor:
    """Sampling as in diffusers' pipeline: frame 0 is replaced by the clean image, and its velocity is ignored."""
    assert prompt.pooled is not None
    out = network(
        hidden_states=torch.cat([image, x], dim=2),
        timestep=1000 * sigma,
        encoder_hidden_states=prompt.text_states.expand(len(x), -1, -1),
        encoder_attention_mask=torch.ones(len(x), 3),
        pooled_projections=prompt.pooled.expand(len(x), -1),
        guidance=torch.full((len(x),), 1000 * GUIDANCE),
        return_dict=False,
    )[0]
    return out[:, :, 1:]


def test_sixteen_channels_are_never_guessed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors .* 16 .*i2v_mode=token_replace or none"):
        load_weights(tmp_path / "plain.safetensors")
    assert load_weights(tmp_path / "plain.safetensors", i2v_mode="token_replace").family() is TOKEN_REPLACE
    with pytest.raises(CheckpointError, match=r"plain\.safetensors .*text-to-video.*widen"):
        load_weights(tmp_path / "plain.safetensors", i2v_mode="none")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors .* 16 .*i2v_mode 'concat'"):
        load_weights(tmp_path / "plain.safetensors", i2v_mode="concat")
    save_checkpoint(tmp_path / "stated.safetensors", state, recipe("none"), None)
    assert load_checkpoint(tmp_path / "stated.safetensors").family() is TEXT_ONLY
    with pytest.raises(CheckpointError, match=r"stated\.safetensors .*'none'.*i2v_mode .*'token_replace'"):
        load_weights(tmp_path / "stated.safetensors", i2v_mode="token_replace")


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_sampling_keeps_the_start_frame_and_equals_the_pipelines_steps(
    sampler: str, state: dict[str, Tensor], prompt: NullPrompt
) -> None:
    network = load_network(Checkpoint(state, SHAPE, recipe("token_replace"), None, "x"))
    image = torch.randn(2, 16, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    sigmas = few_step_sigmas(4, 5.0)
    found = generate(network, prompt, StartImage(image), 3, sigmas, sampler, seed=5, guidance=GUIDANCE)
    assert torch.equal(found[:, :, :1], image)

    reference = by_diffusers(state)
    x = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))[:, :, 1:]
    fresh = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            v = velocity(reference, x, sigma.expand(2), image, prompt)
            if sampler == "euler":
                x = x + (after - sigma) * v
            else:
                x0 = x - sigma * v
                noise = torch.randn(2, 16, 3, 4, 6, generator=fresh)[:, :, 1:] if after > 0 else x0
                x = (1 - after) * x0 + after * noise
    torch.testing.assert_close(found[:, :, 1:], x, atol=1e-5, rtol=1e-5)


def test_the_generated_frames_get_their_part_of_the_noise_of_the_full_latent() -> None:
    sigmas = few_step_sigmas(2, 5.0)
    for sampler in ("euler", "renoise"):
        whole = sample_latents(lambda x, _: x, (1, 16, 3, 2, 2), sigmas, sampler, 7, "cpu")
        free = sample_latents(lambda x, _: x, (1, 16, 3, 2, 2), sigmas, sampler, 7, "cpu", kept_frames=1)
        assert torch.equal(free, whole[:, :, 1:])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_token_replace_run_trains_on_the_generated_frames_and_exports_a_full_network(
    mode: str,
    tmp_path: Path,
    state: dict[str, Tensor],
    prompt: NullPrompt,
    dataset: Path,
    tiny_config: Callable[..., dict],
    train_runs: Callable[..., None],
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    save_file(state | {"null_prompt.text_states": prompt.text_states, "null_prompt.pooled": prompt.pooled}, teacher)
    config = tiny_config(
        tmp_path / "run",
        updates=1,
        data={"dataset": str(dataset)},
        method={"fake_updates": 1},
        seed=3,
    )
    config["model"] |= {
        "teacher": str(teacher),
        "mode": mode,
        "i2v_mode": "token_replace",
        "embedded_guidance": GUIDANCE,
        "activation_checkpointing": True,
    }
    train_runs(1, [config])

    # The fake branch is still zero: its first loss follows from diffusers' network and the definitions alone.
    draws, data = Draws(3), LatentDataset(dataset)
    network, sigmas = by_diffusers(state), few_step_sigmas(4, 5.0)
    image = data.image_latents(draws.sample_indices(0, [0], 1, len(data)))
    x = draws.noise("rollout", 0, [0], (16, 2, 4, 4))
    exit_index = draws.exit_index(0, 4)
    with torch.no_grad():
        for sigma, after in pairwise(sigmas[: exit_index + 1]):
            x = x + (after - sigma) * velocity(network, x, sigma.expand(1), image, prompt)
        sigma = sigmas[exit_index]
        x = x - sigma * velocity(network, x, sigma.expand(1), image, prompt)
        eps, level = draws.noise("loss", 0, [0], (16, 2, 4, 4)), draws.sigma("level", 0, [0], 5.0)
        v = velocity(network, (1 - level) * x + level * eps, level, image, prompt)
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["fake/loss"] == pytest.approx(float((v - (eps - x)).square().mean()), rel=1e-4)

    export_run(tmp_path / "run", tmp_path / "generator.safetensors")
    made = load_weights(tmp_path / "generator.safetensors")
    assert made.recipe is not None
    assert (made.family(), made.recipe.embedded_guidance) == (TOKEN_REPLACE, GUIDANCE)
    assert made.state.keys() == state.keys()
    assert any(not torch.equal(made.state[key], state[key]) for key in state)
    export_run(tmp_path / "run", tmp_path / "folder", "diffusers")
    again = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "folder")
    assert again.config.image_condition_type == "token_replace"
    assert load_weights(tmp_path / "folder").family() is TOKEN_REPLACE


WAN_SHAPE = wan_shape()


@pytest.fixture(scope="module")
def wan_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    index = DatasetIndex(
        family="wan", frames=FRAMES, height=SIDE, width=SIDE, fps=16, vae_sha256="0" * 64, dtype="float32"
    )
    generator = torch.Generator().manual_seed(4)
    with LatentWriter(folder, index) as writer:
        for number in range(3):
            latent, image = torch.randn(2, 16, 3, 4, 4, generator=generator)
            features = torch.randn(1, *FEATURE_SHAPE, generator=generator)
            writer.append(f"{number}", latent, StartImage(image[None], features))
    return folder


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_wan_run_uses_mask_image_and_features_and_exports_a_full_network(
    mode: str,
    tmp_path: Path,
    prompt: NullPrompt,
    wan_dataset: Path,
    dataset: Path,
    tiny_config: Callable[..., dict],
    train_runs: Callable[..., None],
) -> None:
    network = seeded_network(WAN_SHAPE, IMAGE_TO_VIDEO)
    state = diffusers_to_file(WAN, network.state_dict())
    teacher = tmp_path / "teacher.safetensors"
    save_file(state | {"null_prompt.text_states": prompt.text_states}, teacher)
    config = tiny_config(
        tmp_path / "run", updates=1, data={"dataset": str(wan_dataset)}, method={"fake_updates": 1}, seed=3
    )
    config["model"] |= {"teacher": str(teacher), "mode": mode, "activation_checkpointing": True}
    train_runs(1, [config])

    draws, data = Draws(3), LatentDataset(wan_dataset)
    sigmas, index = few_step_sigmas(4, 5.0), draws.sample_indices(0, [0], 1, 3)
    image, features = data.image_latents(index), data.start_image(index).features
    reference = WanTransformer3DModel(
        num_attention_heads=1,
        in_channels=36,
        out_channels=16,
        text_dim=16,
        ffn_dim=192,
        num_layers=2,
        image_dim=1280,
        added_kv_proj_dim=128,
    )
    reference.load_state_dict(network.state_dict())
    mask = torch.zeros(1, 4, 3, 4, 4)
    mask[:, :, 0] = 1
    text = torch.cat([prompt.text_states, torch.zeros(1, 509, 16)], dim=1)

    def v(x: Tensor, sigma: Tensor) -> Tensor:
        seen = torch.cat([x, mask, image], dim=1)
        return reference(seen, 1000 * sigma.reshape(1), text, features, return_dict=False)[0]

    x = draws.noise("rollout", 0, [0], (16, 3, 4, 4))
    exit_index = draws.exit_index(0, 4)
    with torch.no_grad():
        for sigma, after in pairwise(sigmas[: exit_index + 1]):
            x = x + (after - sigma) * v(x, sigma)
        x = x - sigmas[exit_index] * v(x, sigmas[exit_index])
        eps, level = draws.noise("loss", 0, [0], (16, 3, 4, 4)), draws.sigma("level", 0, [0], 5.0)
        expected = (v((1 - level) * x + level * eps, level) - (eps - x)).square().mean()
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["fake/loss"] == pytest.approx(float(expected), rel=1e-4)

    export_run(tmp_path / "run", tmp_path / "generator.safetensors")
    made = load_weights(tmp_path / "generator.safetensors")
    assert made.family() is IMAGE_TO_VIDEO
    assert made.recipe is not None
    assert made.recipe.family == "wan"
    assert made.state.keys() == state.keys()
    assert any(not torch.equal(made.state[key], state[key]) for key in state)
    export_run(tmp_path / "run", tmp_path / "folder", "diffusers")
    again = WanTransformer3DModel.from_pretrained(tmp_path / "folder").state_dict()
    assert all(torch.equal(diffusers_to_file(WAN, again)[key], made.state[key]) for key in state)
    with pytest.raises(DatasetError, match=r"hunyuan_video.*teacher .* wan .*Wan 2"):
        LatentDataset(dataset).check_family(made.family())


def test_clips_with_one_generated_frame_are_refused(dataset_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r" 5 frames.* 1 .* 9 frames"):
        LatentDataset(dataset_folder).check_family(TOKEN_REPLACE)
