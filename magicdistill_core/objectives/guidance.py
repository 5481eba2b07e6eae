"""Classifier-free guidance, and its distillation into a network with the scale as an input.

Everywhere `scale` multiplies the difference: `v = v(none) + scale * (v(c) - v(none))`, so 1 means no guidance. The w in
the papers' `(1 + w) v(c) - w v(none)` (M141 Eq. 7) is `scale - 1`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


def guided_velocity(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Return `v(none) + scale * (v(c) - v(none))` (M141 Eq. 7 with w = scale - 1).

    Args:
        conditional, unconditional: the velocities v(c) and v(none), `[B, ...]`.
        scale: one number, or one per sample `[B]`.
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
    """Return `mean (v_hat - v_s(x_t, t, scale))^2`, the squared error to the guided teacher v_hat (M141 Eq. 6 and 7).

    The other term of M141's loss (Eq. 8) is the `flow_matching_loss` of the student with guidance input 1 (Eq. 9).

    Args:
        student: the student v_s, already bound to `scale` as its guidance input.
        conditional, unconditional: the teacher with and without its conditioning; called without gradient.
        z: clean samples `[B, ...]`.
        eps: noise shaped as `z`.
        sigma: noise levels `[B]`.
        scale: guidance scales `[B]`, one per sample.
    """
    x = add_noise(z, eps, sigma)
    with torch.no_grad():
        goal = guided_velocity(conditional(x, sigma).float(), unconditional(x, sigma).float(), scale)
    return F.mse_loss(student(x, sigma).float(), goal)
