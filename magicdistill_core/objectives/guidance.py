"""Classifier-free guidance, and its distillation into a network with the scale as an input.

Everywhere `scale` multiplies the difference: `v = v(none) + scale * (v(c) - v(none))`, so 1 means no guidance. v(c) is
the velocity with its conditioning, v(none) the one without. The w in the papers' `(1 + w) v(c) - w v(none)` (M141 Eq.
7) is `scale - 1`. M141: Magic 1-For-1 (arXiv 2502.07701).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


def guided_velocity(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Return the guided velocity `v(none) + scale * (v(c) - v(none))`, `[B, ...]` (M141 Eq. 7 with w = scale - 1).

    Args:
        conditional: the velocity v(c), `[B, ...]`.
        unconditional: the velocity v(none), `[B, ...]`.
        scale: one number, or one per sample `[B]`; 1 returns v(c).
    """
    factor = expand_sigma(scale, conditional) if isinstance(scale, Tensor) else scale
    return unconditional + factor * (conditional - unconditional)


def cfg_distillation_loss(
    student: Velocity,
    conditional: Velocity,
    unconditional: Velocity,
    z: Tensor,
    eps: Tensor,
    sigma: Tensor,
    scale: Tensor,
) -> Tensor:
    """Return the student's mean squared error to the guided teacher, a scalar (M141 Eq. 6 and 7).

    With s = `sigma`, the noised sample is `x_s = (1 - s) z + s eps`. The goal is the teacher's `guided_velocity` at
    `x_s`. The other term of M141's loss (Eq. 8) is the `flow_matching_loss` of the student with guidance input 1 (Eq.
    9).

    Args:
        student: the student, a callable `(x, sigma) -> velocity` that already has `scale` as its guidance input.
        conditional: the teacher's velocity v(c), with conditioning; called without gradient.
        unconditional: the teacher's velocity v(none), without conditioning; called without gradient.
        z: clean samples `[B, ...]`.
        eps: standard normal noise shaped as `z`.
        sigma: noise levels `[B]`.
        scale: guidance scales `[B]`, one per sample; 1 means no guidance.
    """
    x = add_noise(z, eps, sigma)
    with torch.no_grad():
        goal = guided_velocity(conditional(x, sigma).float(), unconditional(x, sigma).float(), scale)
    return F.mse_loss(student(x, sigma).float(), goal)
