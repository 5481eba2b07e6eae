"""Latent consistency distillation for flow matching (LCM; MD App. B).

The teacher makes one Euler step from a noise level to the next lower one. From there, a target network estimates the
clean sample. The student learns to predict the same clean sample from the higher level.
MD: MagicDistillation (arXiv 2503.13319).
"""

import torch
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma, velocity_to_x0


def pseudo_huber(difference: Tensor, width: float) -> Tensor:
    """Return the pseudo-Huber loss `mean(sqrt(d^2 + width^2) - width)`, a scalar in float32 or a higher precision.

    Per element it is about `d^2 / (2 width)` for small d, and about `|d|` for large d.

    Args:
        difference: d, of any shape.
        width: the size of d at which the loss changes from quadratic to linear, greater than 0.
    """
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return ((difference.square() + width**2).sqrt() - width).mean()


def consistency_target(x: Tensor, sigma: Tensor, sigma_next: Tensor, teacher: Velocity, target: Velocity) -> Tensor:
    """Return the clean sample (x0) that the student should predict at `x`: shaped as `x`, without gradient.

    Let s be `sigma` and s' be `sigma_next`. One Euler step of the teacher leads to `x' = x + (s' - s) * teacher(x, s)`.
    The target is the estimate of the clean sample from there: `x' - s' * target(x', s')`. If s' is 0, this is `x'`
    itself.

    Args:
        x: noised samples `[B, ...]` at level s.
        sigma: their noise levels `[B]`, s.
        sigma_next: the next lower levels `[B]` of the teacher's schedule, s'; may be 0.
        teacher: the velocity that makes the Euler step.
        target: the velocity that estimates the clean sample from `x'`.
    """
    with torch.no_grad():
        x_next = x + expand_sigma(sigma_next - sigma, x) * teacher(x, sigma)
        return velocity_to_x0(x_next, target(x_next, sigma_next), sigma_next)


def consistency_loss(
    student: Velocity,
    teacher: Velocity,
    target: Velocity,
    z: Tensor,
    eps: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    huber_width: float,
) -> Tensor:
    """Return the student's consistency loss, a scalar: `pseudo_huber(x0 - goal)` (LCM; MD App. B).

    With s = `sigma`, the noised sample is `x_s = (1 - s) z + s eps`. The student's prediction is
    `x0 = x_s - s * student(x_s, s)`. The goal is the `consistency_target` at `x_s`.

    Args:
        student: the velocity of the few-step network.
        teacher: the velocity that makes one Euler step; called without gradient.
        target: the velocity that estimates the clean sample after this step; called without gradient. It can be the
            student itself: this is consistency distillation without averaged weights, as in FastVideo. It can be the
            teacher, as the paper describes it.
        z: clean samples `[B, ...]`.
        eps: standard normal noise shaped as `z`.
        sigma: noise levels `[B]` of the teacher's schedule.
        sigma_next: the next lower levels `[B]` of the same schedule; may be 0.
        huber_width: the width of `pseudo_huber`.
    """
    x = add_noise(z, eps, sigma)
    goal = consistency_target(x, sigma, sigma_next, teacher, target)
    return pseudo_huber(velocity_to_x0(x, student(x, sigma), sigma) - goal, huber_width)
