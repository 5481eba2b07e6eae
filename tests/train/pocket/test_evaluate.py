"""The comparison of samples with data: inputs, noise and errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler
from train.networks.network import load_network, network_velocity
from train.networks.weights import null_prompt_of
from train.pocket.evaluate import Contender, evaluate, load_contender, sample_set


def test_a_file_without_recipe_is_refused_before_anything_is_sampled(tmp_path: Path, teacher_file: Path) -> None:
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.json"
    save_file(load_checkpoint(teacher_file).state, plain)
    contenders = [Contender("teacher", teacher_file, 4), Contender("other", plain, 4)]
    with pytest.raises(CheckpointError, match=r"plain\.safetensors \(other\) .*recipe.*magicdistill export"):
        evaluate(contenders, 8, [0], out)
    assert not out.exists()


def test_samples_follow_the_recipe_and_do_not_depend_on_the_batch(teacher_file: Path) -> None:
    checkpoint, recipe = load_contender(Contender("teacher", teacher_file, 2))
    generator = torch.Generator().manual_seed(3)
    image_latents = torch.randn(18, 16, 1, 4, 4, generator=generator)  # more than one batch
    recipe = recipe.model_copy(update={"shift": 3.0})
    samples = sample_set(checkpoint, recipe, 2, image_latents, 2, seed=5)
    noise = torch.randn(18, 16, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    velocity = network_velocity(
        load_network(checkpoint), concat_condition(image_latents, 2), null_prompt_of(checkpoint)
    )
    with torch.no_grad():
        torch.testing.assert_close(samples, sample_euler(velocity, noise, few_step_sigmas(2, 3.0)))
        renoised = sample_set(checkpoint, recipe.model_copy(update={"sampler": "renoise"}), 2, image_latents, 2, seed=5)
    assert (renoised - samples).abs().mean() > 0.1
