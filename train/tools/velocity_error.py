"""How far the velocities of a network are from those of another one, as a share of what a training changed."""

from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.flow import add_noise, few_step_sigmas
from magicdistill_core.recipe import Recipe

from ..config.precision import bf16_is_fast
from ..data.dataset import LatentDataset
from ..distributed import available_device
from ..networks.network import load_network, network_velocity
from ..networks.weights import null_prompt_of

# Levels of the schedule that are compared at most. They are evenly spread.
_LEVELS = 8


@torch.no_grad()
def velocity_error(
    approximation: Checkpoint, tuned: Checkpoint, base: Checkpoint, recipe: Recipe, dataset: Path, samples: int = 4
) -> float:
    """Return `|a - t| / |t - b|` of the velocities of an approximation, a tuned model, and its base.

    The norms are over samples of a dataset, noised to the levels of the recipe's schedule with fixed noise. 0 is an
    exact approximation, 1 is as far off as the base. One network at a time is on the device.

    Args:
        approximation: the weights to judge.
        tuned: the weights that they stand for; its null prompt is used for all three.
        base: the weights before the training.
        recipe: the recipe of the tuned model, for its schedule.
        dataset: a prepared dataset for the family of the models.
        samples: number of samples, or all if the dataset has fewer.

    Raises:
        MagicDistillError: if the dataset cannot be used, or is for another family; or there is no null prompt.
    """
    data, device = LatentDataset(dataset), available_device()
    family = tuned.family()
    data.check_family(family)
    chosen = range(min(samples, len(data)))
    clean, image = data.latents(chosen).float(), data.start_image(chosen)
    prompt = null_prompt_of(tuned)
    levels = few_step_sigmas(recipe.steps, recipe.shift)[:-1]
    levels = levels[torch.linspace(0, len(levels) - 1, min(_LEVELS, len(levels))).round().long()]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    dtype = torch.bfloat16 if bf16_is_fast(device) else torch.float32

    def velocities(checkpoint: Checkpoint) -> Tensor:
        network = load_network(checkpoint, dtype, device)
        found = []
        for number in chosen:
            one = slice(number, number + 1)
            velocity = network_velocity(network, family.condition(image[one].to(device), clean.shape[2]), prompt)
            for level in levels:
                x = add_noise(family.free(clean[one]), family.free(noise[one]), level[None])
                found.append(velocity(x.to(device, dtype), level[None].to(device)).float().cpu())
        return torch.cat(found)

    right = velocities(tuned)
    changed = _norm(right - velocities(base))
    return _norm(velocities(approximation) - right) / changed


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
