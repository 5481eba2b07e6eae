"""A frozen few-step generator, which produces the target samples of one-step distillation.

It samples with the steps, shift and sampler of its own recipe, the settings that are stored in its model file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.flow import few_step_sigmas, sample_euler, sample_renoise
from magicdistill_core.recipe import Recipe

from ..networks.prompts import Conditioning
from ..networks.roles import BASE
from .engine import NetworkCalls


@dataclass(frozen=True)
class PairGenerator:
    """The few-step generator's network and its recipe."""

    network: NetworkCalls
    recipe: Recipe

    @torch.no_grad()
    def sample(self, condition: Conditioning, noise: Tensor, fresh: Callable[[int], Tensor]) -> Tensor:
        """Return the samples of the generator from `noise`, without gradients.

        Args:
            condition: the conditioning on the batch's start images, and on its prompts if there are any.
            noise: `[B, C, T, H, W]`.
            fresh: function `(step) -> noise [B, C, T, H, W]`, called for new noise by a re-noising sampler.

        Returns:
            The samples `[B, C, T, H, W]`.
        """
        velocity = self.network.velocity(condition, BASE)
        sigmas = few_step_sigmas(self.recipe.steps, self.recipe.shift)
        if self.recipe.sampler == "euler":
            return sample_euler(velocity, noise, sigmas)
        return sample_renoise(velocity, noise, sigmas, lambda step, _: fresh(step))


def load_pair_generator(path: Path, teacher: Checkpoint, device: str = "cpu") -> tuple[Checkpoint, Recipe]:
    """Load a few-step generator and check that it fits the teacher.

    Args:
        path: the generator's model file.
        teacher: the teacher of the run.
        device: device of the weights; `meta` loads only their shapes.

    Returns:
        The generator's weights and its recipe.

    Raises:
        CheckpointError: if the file is missing or damaged.
        ConfigError: if the file is not a few-step generator, or its architecture or size differs from the teacher's.
    """
    checkpoint = load_checkpoint(path, device)
    recipe = checkpoint.recipe
    if recipe is None or recipe.kind != "generator" or recipe.steps < 2:
        found = "no recipe" if recipe is None else f"the recipe of a {recipe.kind} of {recipe.steps} steps"
        raise ConfigError(
            f"method.few_step_generator names {path.name}, which carries {found}. Expected a generator of 2 or more "
            f"steps: the one-step generator learns from its samples. Export one from a run of w2s or dmd2."
        )
    if checkpoint.shape != teacher.shape:
        raise ConfigError(
            f"method.few_step_generator names {path.name} with {checkpoint.shape}, but the teacher {teacher.source} "
            f"has {teacher.shape}. Use a generator that was distilled from this teacher."
        )
    return checkpoint, recipe
