"""Latent consistency distillation on flow matching: one step of the teacher's ODE, then straight to the clean end."""

import torch
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma, velocity_to_x0


def pseudo_huber(difference: Tensor, width: float) -> Tensor:
    """`mean sqrt(d^2 + width^2) - width`: `d^2 / (2 width)` for small differences, `|d|` for large ones."""
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return ((difference.square() + width**2).sqrt() - width).mean()


def consistency_target(x: Tensor, sigma: Tensor, sigma_next: Tensor, teacher: Velocity, target: Velocity) -> Tensor:
    """Where a point of the teacher's ODE should be said to end: `x' - s' * target(x', s')`.

    `x' = x + (s' - s) * teacher(x, s)` is the teacher's Euler step, and at `sigma_next` 0 the target. Without gradient.

    Args:
        x: points `[B, ...]` at the levels `sigma` `[B]`.
        sigma_next: the next lower levels `[B]` of the teacher's schedule.
        teacher: the velocity whose ODE is followed for one step.
        target: the velocity whose clean estimate is believed after it.
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
    """`huber(x_s - s * student(x_s, s) - consistency_target)`: latent consistency distillation (MD App. B, "LCM").

    Args:
        student: the few-step network.
        teacher, target: as for `consistency_target`. With the student itself as the target this is consistency
            distillation without averaging, as FastVideo does it; with the teacher it is how the paper words it.
        z, eps: clean samples `[B, ...]` and noise like them.
        sigma, sigma_next: neighbouring levels `[B]` of the teacher's schedule.
        huber_width: of `pseudo_huber`.
    """
    x = add_noise(z, eps, sigma)
    goal = consistency_target(x, sigma, sigma_next, teacher, target)
    return pseudo_huber(velocity_to_x0(x, student(x, sigma), sigma) - goal, huber_width)
