"""A frozen few-step generator that makes samples by its own recipe: the pairs of one-step distillation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import Condition
from magicdistill_core.flow import few_step_sigmas, sample_euler, sample_renoise
from magicdistill_core.recipe import Recipe

from ..networks.roles import BASE
from .engine import NetworkCalls


@dataclass(frozen=True)
class PairGenerator:
    """The generator and how it is sampled."""

    network: NetworkCalls
    recipe: Recipe

    @torch.no_grad()
    def sample(self, condition: Condition, noise: Tensor, fresh: Callable[[int], Tensor]) -> Tensor:
        """What it makes of `noise` `[B, C, T, H, W]`; `fresh(step)` is the noise of a re-noising sampler."""
        velocity = self.network.velocity(condition, BASE)
        sigmas = few_step_sigmas(self.recipe.steps, self.recipe.shift)
        if self.recipe.sampler == "euler":
            return sample_euler(velocity, noise, sigmas)
        return sample_renoise(velocity, noise, sigmas, lambda step, _: fresh(step))


def load_pair_generator(path: Path, teacher: Checkpoint, device: str = "cpu") -> tuple[Checkpoint, Recipe]:
    """A few-step generator's file, fit for a run on `teacher`.

    Args:
        device: as for `load_checkpoint`.

    Raises:
        CheckpointError: if the file is absent or damaged.
        ConfigError: if it is no few-step generator, or not of the teacher's kind and size.
    """
    checkpoint = load_checkpoint(path, device)
    recipe = checkpoint.recipe
    if recipe is None or recipe.kind != "generator" or recipe.steps < 2:
        found = "no recipe" if recipe is None else f"the recipe of a {recipe.kind} of {recipe.steps} steps"
        raise ConfigError(
            f"method.few_step_generator is {path.name}, which carries {found}; expected a generator of several steps, "
            f"which makes the samples that the one-step generator learns from. Export one from a run of w2s or dmd2."
        )
    if checkpoint.shape != teacher.shape:
        raise ConfigError(
            f"method.few_step_generator is {path.name} of {checkpoint.shape}, but the teacher is {teacher.source} of "
            f"{teacher.shape}. Use a generator that was distilled from this teacher."
        )
    return checkpoint, recipe
