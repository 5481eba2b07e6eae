"""Classifier-free guidance, and its distillation into a network that takes the scale as an input.

Everywhere `scale` is the factor on the difference, `v = v(none) + scale * (v(c) - v(none))`: 1 means no guidance. The
papers' w of `(1 + w) v(c) - w v(none)` (M141 Eq. 7) is `scale - 1`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


class GuidanceLoss(NamedTuple):
    """The loss of CFG distillation, and its two parts."""

    loss: Tensor
    distillation: Tensor  # distance to the guided teacher, Eq. 6
    base: Tensor  # flow matching of the student without guidance, Eq. 9


def guided_velocity(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """`v(none) + scale * (v(c) - v(none))` (M141 Eq. 7 with w = scale - 1).

    Args:
        conditional, unconditional: velocities `[B, ...]`.
        scale: one number, or `[B]`.
    """
    factor = expand_sigma(scale, conditional) if isinstance(scale, Tensor) else scale
    return unconditional + factor * (conditional - unconditional)


def cfg_distillation_loss(
    student: Velocity,
    unguided_student: Velocity,
    conditional: Velocity,
    unconditional: Velocity,
    z: Tensor,
    eps: Tensor,
    sigma: Tensor,
    scale: Tensor,
    weight: float,
) -> GuidanceLoss:
    """`weight * mean (v_hat - v_s(x_t, t, scale))^2 + mean (eps - z - v_s(x_t, t, 1))^2` (M141 Eq. 6 to 9).

    Args:
        student: the network with `scale` as its guidance input.
        unguided_student: the same network with 1 as its guidance input.
        conditional, unconditional: the teacher with its conditioning, and without; called without gradient.
        z, eps: clean samples `[B, ...]` and noise like them.
        sigma: noise levels `[B]`.
        scale: guidance scales `[B]` of the samples.
        weight: lambda of Eq. 8.
    """
    x = add_noise(z, eps, sigma)
    with torch.no_grad():
        goal = guided_velocity(conditional(x, sigma).float(), unconditional(x, sigma).float(), scale)
    distillation = F.mse_loss(student(x, sigma).float(), goal)
    base = F.mse_loss(unguided_student(x, sigma).float(), (eps - z).float())
    return GuidanceLoss(weight * distillation + base, distillation.detach(), base.detach())
