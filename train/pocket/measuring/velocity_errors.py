"""Measures of the methods that make no few-step generator: errors of velocities on held-out portraits.

A *measure* is a function `(held, checkpoint) -> values [N]`, one for each held-out clip; lower is better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import concat_condition
from magicdistill_core.flow import Velocity, add_noise, shift_sigma
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.objectives.guidance import guided_velocity
from magicdistill_core.recipe import Recipe

from ...networks.network import load_network, network_velocity
from ...networks.weights import null_prompt_of

NEGATIVE_PROMPT = Path(__file__).parents[2] / "presets" / "pocket_negative_prompt.safetensors"
_LEVELS = 8
_SCALES = (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class HeldOutClips:
    """Held-out clips, and the teacher.

    Attributes:
        teacher: the teacher's weights.
        clips: latents of the clips, `[N, 16, T, H, W]`.
    """

    teacher: Checkpoint
    clips: Tensor

    @property
    def images(self) -> Tensor:
        """Latents of the start images, `[N, 16, 1, H, W]`. The encoder is causal: latent 0 is the first frame alone."""
        return self.clips[:, :, :1]


Measure = Callable[[HeldOutClips, Checkpoint], Tensor]


@torch.no_grad()
def held_out_loss(held: HeldOutClips, checkpoint: Checkpoint) -> Tensor:
    """Return the flow-matching loss of each held-out clip, `[N]`, with fixed noise levels and fixed noise.

    Args:
        held: the held-out clips.
        checkpoint: the model.
    """
    velocity = _velocity(held, checkpoint, null_prompt_of(checkpoint))
    losses = []
    for eps, sigma in _draws(held):
        error = velocity(add_noise(held.clips, eps, sigma), sigma) - (eps - held.clips)
        losses.append(_square(error))
    return torch.stack(losses).mean(0)


@torch.no_grad()
def unexplained_guidance(held: HeldOutClips, checkpoint: Checkpoint) -> Tensor:
    """Return the share of the guidance effect that the network does not reproduce when it is called with the scale.

    It is `|student - guided|^2 / |unguided - guided|^2` of the velocities: 0 is perfect, 1 is the unguided teacher.
    Both squares are means over several guidance scales and noise levels.

    Args:
        held: the held-out clips, with the teacher that guidance is applied to.
        checkpoint: the student, a network with a guidance embedding.

    Returns:
        One value for each clip, `[N]`.
    """
    prompt = null_prompt_of(held.teacher)
    plain = _velocity(held, held.teacher, prompt)
    negative = _velocity(held, held.teacher, load_null_prompt(NEGATIVE_PROMPT))
    left = total = torch.zeros(len(held.clips), dtype=torch.float64)
    for scale in _SCALES:
        student = _velocity(held, checkpoint, prompt, scale)
        for eps, sigma in _draws(held):
            x = add_noise(held.clips, eps, sigma)
            unguided = plain(x, sigma)
            target = guided_velocity(unguided, negative(x, sigma), scale)
            left = left + _square(student(x, sigma) - target)
            total = total + _square(unguided - target)
    return left / total


def _square(values: Tensor) -> Tensor:
    """Return the mean square of each clip, `[N]` in float64."""
    return values.double().square().flatten(1).mean(1)


def _velocity(held: HeldOutClips, checkpoint: Checkpoint, prompt: NullPrompt, guidance: float = 1.0) -> Velocity:
    condition = concat_condition(held.images, held.clips.shape[2])
    return network_velocity(load_network(checkpoint), condition, prompt, guidance)


def _draws(held: HeldOutClips) -> list[tuple[Tensor, Tensor]]:
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
