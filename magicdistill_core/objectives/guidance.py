"""Classifier-free guidance, and its distillation into a network that takes the scale as an input.

Everywhere `scale` is the factor on the difference, `v = v(none) + scale * (v(c) - v(none))`: 1 means no guidance. The
papers' w of `(1 + w) v(c) - w v(none)` (M141 Eq. 7) is `scale - 1`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


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
    conditional: Velocity,
    unconditional: Velocity,
    z: Tensor,
    eps: Tensor,
    sigma: Tensor,
    scale: Tensor,
) -> Tensor:
    """`mean (v_hat - v_s(x_t, t, scale))^2`: the student's distance to the guided teacher (M141 Eq. 6 and 7).

    The other term of M141's loss (Eq. 8) is `flow_matching_loss` of the student with 1 as its guidance input (Eq. 9).

    Args:
        student: the network with `scale` as its guidance input.
        conditional, unconditional: the teacher with its conditioning, and without; called without gradient.
        z, eps: clean samples `[B, ...]` and noise like them.
        sigma: noise levels `[B]`.
        scale: guidance scales `[B]` of the samples.
    """
    x = add_noise(z, eps, sigma)
    with torch.no_grad():
        goal = guided_velocity(conditional(x, sigma).float(), unconditional(x, sigma).float(), scale)
    return F.mse_loss(student(x, sigma).float(), goal)
