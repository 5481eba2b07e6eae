"""The adversarial losses of DMD2 on noised latents, with an approximate R1 penalty (MagicDistillation, Sec. 3.4).

A *discriminator* is a callable `(x_sigma, sigma) -> logits [B]`: high for data, low for the generator's samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import add_noise

Logits = Callable[[Tensor, Tensor], Tensor]


class DiscriminatorLoss(NamedTuple):
    """The loss, and scalars that tell who is winning."""

    loss: Tensor
    real_logit: Tensor
    fake_logit: Tensor
    penalty: Tensor  # (D(z) - D(z + noise))^2, before its weight


def discriminator_loss(
    discriminator: Logits,
    z: Tensor,
    x_hat: Tensor,
    eps: Tensor,
    sigma: Tensor,
    *,
    r1: float,
    perturbation: Tensor | None,
) -> DiscriminatorLoss:
    """`mean softplus(-D(z)) + softplus(D(sg x_hat)) + r1 * (D(z) - D(z + perturbation))^2`, all noised alike.

    The last term is R1 with a finite difference in place of the gradient, which a network with flash attention cannot
    differentiate twice.

    Args:
        discriminator: of noised latents.
        z: clean latents `[B, ...]`.
        x_hat: the generator's samples `[B, ...]`; their gradient is stopped here.
        eps, sigma: noise like `z`, and levels `[B]`, the same for both.
        r1: weight of the penalty; 0 leaves its discriminator call out.
        perturbation: small noise like `z`, already scaled; None where `r1` is 0.
    """
    real = discriminator(add_noise(z, eps, sigma), sigma).float()
    fake = discriminator(add_noise(x_hat.detach(), eps, sigma), sigma).float()
    loss = (F.softplus(-real) + F.softplus(fake)).mean()
    penalty = real.new_zeros(())
    if r1:
        assert perturbation is not None
        moved = discriminator(add_noise(z + perturbation, eps, sigma), sigma).float()
        penalty = (real - moved).square().mean()
        loss = loss + r1 * penalty
    return DiscriminatorLoss(loss, real.detach().mean(), fake.detach().mean(), penalty.detach())


def adversarial_gradient(discriminator: Logits, x_hat: Tensor, eps: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's adversarial loss `mean softplus(-D(x_hat))`, and its gradient by `x_hat`.

    The gradient is taken here and by `x_hat` alone, so that no backward runs through the discriminator's engine: add
    `weight * (x_hat * gradient).sum()` to the generator's loss.

    Returns:
        The loss without graph, and the gradient `[B, ...]`.
    """
    with torch.enable_grad():
        leaf = x_hat.detach().requires_grad_()
        loss = F.softplus(-discriminator(add_noise(leaf, eps, sigma), sigma).float()).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
