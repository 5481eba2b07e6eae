"""Measures of the pocket trainings on held-out portraits: distances of samples and errors of velocities.

A *measure* is a function `(held, checkpoint, steps) -> value`, lower is better. It compares one model with the held-out
portraits or with the teacher. A *recipe* is the sampling settings (shift, sampler) that a model file stores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import Velocity, add_noise, shift_sigma
from magicdistill_core.metrics.clips import latent_statistics
from magicdistill_core.metrics.distances import frechet_distance
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.objectives.flow_matching import flow_matching_loss
from magicdistill_core.objectives.guidance import guided_velocity
from magicdistill_core.recipe import Recipe

from ..networks.network import load_network, network_velocity
from ..networks.weights import null_prompt_of
from .evaluate import sample_set

NEGATIVE_PROMPT = Path(__file__).parents[1] / "presets" / "pocket_negative_prompt.safetensors"
_TEACHER_STEPS = 28
_LEVELS = 8
_SCALES = (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class HeldOut:
    """Held-out portraits, the teacher with its samples of them, and the noise seeds for sampling.

    Attributes:
        teacher: the teacher's weights.
        images: latents of the start images.
        clips: latents of the clips of these images.
        data: latents of clips of other people, the reference of distances.
        seeds: the noise seeds.
    """

    teacher: Checkpoint
    images: Tensor  # [N, 16, 1, H, W]
    clips: Tensor  # [N, 16, T, H, W], of these images
    data: Tensor  # [N, 16, T, H, W], of other people
    seeds: tuple[int, ...]

    @cached_property
    def by_many_steps(self) -> dict[int, Tensor]:
        """The teacher's samples with 28 steps, by seed."""
        return {seed: self.sample(self.teacher, _TEACHER_STEPS, seed) for seed in self.seeds}

    def sample(self, checkpoint: Checkpoint, steps: int, seed: int) -> Tensor:
        """Sample `[N, 16, T, H, W]` from a model, with the shift and sampler of its recipe.

        Args:
            checkpoint: the model.
            steps: number of sampling steps.
            seed: seed of the noise.
        """
        return sample_set(checkpoint, recipe_of(checkpoint), steps, self.images, self.clips.shape[2], seed)


Measure = Callable[[HeldOut, Checkpoint, int], float]


def distance_from_data(held: HeldOut, checkpoint: Checkpoint, steps: int) -> float:
    """Return the Frechet distance between latent statistics of samples and of data, as in `pocket evaluate`.

    The data are clips of other people. The distance is averaged over the seeds.

    Args:
        held: the held-out portraits.
        checkpoint: the model.
        steps: number of sampling steps.
    """
    data = latent_statistics(held.data)
    return mean(frechet_distance(latent_statistics(held.sample(checkpoint, steps, seed)), data) for seed in held.seeds)


def distance_from_many_steps(held: HeldOut, checkpoint: Checkpoint, steps: int) -> float:
    """Return the mean squared distance between the samples and the teacher's 28-step samples of the same noise.

    Args:
        held: the held-out portraits.
        checkpoint: the model.
        steps: number of sampling steps.
    """
    return mean(
        float((held.sample(checkpoint, steps, seed) - held.by_many_steps[seed]).square().mean()) for seed in held.seeds
    )


@torch.no_grad()
def held_out_loss(held: HeldOut, checkpoint: Checkpoint, steps: int) -> float:
    """Return the flow-matching loss on the held-out clips, with fixed noise levels and fixed noise.

    Args:
        held: the held-out portraits.
        checkpoint: the model.
        steps: ignored, because the loss needs no sampling.
    """
    velocity = _velocity(held, checkpoint, null_prompt_of(checkpoint))
    return mean(float(flow_matching_loss(velocity, held.clips, *draw)) for draw in _draws(held))


@torch.no_grad()
def unexplained_guidance(held: HeldOut, checkpoint: Checkpoint, steps: int) -> float:
    """Return the share of the guidance effect that the network does not reproduce when it is called with the scale.

    It is `|student - guided|^2 / |unguided - guided|^2` of the velocities: 0 is perfect, 1 is the unguided teacher. It
    is taken over several guidance scales.

    Args:
        held: the held-out portraits, with the teacher that guidance is applied to.
        checkpoint: the student, a network with a guidance embedding.
        steps: ignored, because velocities need no sampling.
    """
    prompt = null_prompt_of(held.teacher)
    plain = _velocity(held, held.teacher, prompt)
    negative = _velocity(held, held.teacher, load_null_prompt(NEGATIVE_PROMPT))
    left = total = 0.0
    for scale in _SCALES:
        student = _velocity(held, checkpoint, prompt, scale)
        for eps, sigma in _draws(held):
            x = add_noise(held.clips, eps, sigma)
            unguided = plain(x, sigma)
            target = guided_velocity(unguided, negative(x, sigma), scale)
            left += float((student(x, sigma) - target).square().mean())
            total += float((unguided - target).square().mean())
    return left / total


def _velocity(held: HeldOut, checkpoint: Checkpoint, prompt: NullPrompt, guidance: float = 1.0) -> Velocity:
    condition = concat_condition(held.images, held.clips.shape[2])
    return network_velocity(load_network(checkpoint), condition, prompt, guidance)


def _draws(held: HeldOut) -> list[tuple[Tensor, Tensor]]:
    """Return fixed noise and noise levels. The levels are evenly spaced before the shift."""
    count = len(held.clips)
    shift = recipe_of(held.teacher).shift
    draws = []
    for number in range(_LEVELS):
        noise = torch.randn(held.clips.shape, generator=torch.Generator().manual_seed(number))
        level = torch.full((count,), (number + 0.5) / _LEVELS)
        draws.append((noise, shift_sigma(level, shift)))
    return draws


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """Return the recipe of a checkpoint, which every pocket file has."""
    assert checkpoint.recipe is not None
    return checkpoint.recipe
