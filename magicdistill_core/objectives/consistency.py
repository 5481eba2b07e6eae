"""Latent consistency distillation for flow matching: one step on the teacher's ODE, then an estimate of its end."""

import torch
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma, velocity_to_x0


def pseudo_huber(difference: Tensor, width: float) -> Tensor:
    """Return `mean sqrt(d^2 + width^2) - width`: about `d^2 / (2 width)` for small d, about `|d|` for large d."""
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return ((difference.square() + width**2).sqrt() - width).mean()


def consistency_target(x: Tensor, sigma: Tensor, sigma_next: Tensor, teacher: Velocity, target: Velocity) -> Tensor:
    """Return the regression target of the student at `x`: `x' - s' * target(x', s')`, without gradient.

    `x' = x + (s' - s) * teacher(x, s)` is one Euler step of the teacher. At `sigma_next` 0 the target is `x'` itself.

    Args:
        x: noised samples `[B, ...]`.
        sigma: their levels `[B]`, s.
        sigma_next: the next lower levels `[B]` of the teacher's schedule, s'.
        teacher: the velocity that makes the Euler step.
        target: the velocity that estimates the clean end from `x'`.
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
    """Return `huber(x_s - s * student(x_s, s) - consistency_target)` (MD App. B, "LCM").

    Args:
        student: the few-step network.
        teacher, target: see `consistency_target`. The target can be the student itself: this is consistency
            distillation without averaged weights, as in FastVideo. It can be the teacher, as the paper describes it.
        z: clean samples `[B, ...]`.
        eps: noise shaped as `z`.
        sigma, sigma_next: neighbouring levels `[B]` of the teacher's schedule.
        huber_width: the width of `pseudo_huber`.
    """
    x = add_noise(z, eps, sigma)
    goal = consistency_target(x, sigma, sigma_next, teacher, target)
    return pseudo_huber(velocity_to_x0(x, student(x, sigma), sigma) - goal, huber_width)
