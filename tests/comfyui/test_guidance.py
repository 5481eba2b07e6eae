"""A network with distilled guidance: the nodes use its recipe's scale, unless the conditioning sets another."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.families.hunyuan_video import LATENT_SCALE, concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file, file_to_diffusers
from magicdistill_core.widening import add_guidance_embedding
from tests.makers import StockSide, write_half_taehv
from train.networks.network import load_network, network_velocity

pytestmark = pytest.mark.slow

SCALE, OTHER, SEED = 2.5, 4.0, 77


@pytest.fixture(scope="module")
def exchange(
    tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    """Build a network with an added guidance embedding (random here) and run the pack's chain on it."""
    folder = tmp_path_factory.mktemp("guided")
    file, vae = folder / "guided.safetensors", folder / "vae.safetensors"
    state = add_guidance_embedding(diffusers_to_file(HUNYUAN_VIDEO, tiny.network(tiny.shape()).state_dict()), "tiny")
    network = tiny.network(tiny.shape(128, True))
    network.load_state_dict(file_to_diffusers(HUNYUAN_VIDEO, state, 128))
    with torch.no_grad():
        torch.nn.init.normal_(
            network.time_text_embed.guidance_embedder.linear_2.weight, generator=torch.Generator().manual_seed(6)
        )
    recipe = tiny.recipe("teacher").model_copy(update={"embedded_guidance": SCALE})
    tiny.write_model(file, network, recipe, tiny.prompt())
    write_half_taehv(vae)
    save_file({"image": torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(2))}, folder / "image.st")
    job = {"run": "sample", "model": str(file), "vae": str(vae), "inputs": str(folder / "image.st"), "seed": SEED}
    recipe_scale, other_scale = stock_side([job, job | {"guidance": OTHER}])
    return file, {"recipe": recipe_scale, "other": other_scale}


@pytest.mark.parametrize(("name", "scale"), [("recipe", SCALE), ("other", OTHER)])
def test_samples_are_the_trainers_at_the_same_scale(
    name: str, scale: float, exchange: tuple[Path, dict[str, dict[str, Tensor]]]
) -> None:
    file, answers = exchange
    checkpoint = load_checkpoint(file)
    condition = concat_condition(answers[name]["image_latent"] * LATENT_SCALE, 5).repeat(2, 1, 1, 1, 1)
    noise = torch.randn(2, 16, 5, 6, 8, generator=torch.Generator().manual_seed(SEED))
    network = load_network(checkpoint)

    def sample(guidance: float) -> Tensor:
        velocity = network_velocity(network, condition, checkpoint.null_prompt, guidance)
        with torch.no_grad():
            return sample_euler(velocity, noise, few_step_sigmas(4, 5))

    expected = sample(scale)
    assert (sample(6.0) - expected).std() > 1e-2 * expected.std(), "the scale changes next to nothing"
    torch.testing.assert_close(answers[name]["recipe"] * LATENT_SCALE, expected, atol=1e-4, rtol=1e-4)
