"""The adversarial losses of DMD2 on noised latents, with an approximate R1 penalty (MD Sec. 3.4).

A *discriminator* D is a callable `(x_sigma, sigma) -> logits [B]`: high for data, low for the generator's samples.
MD: MagicDistillation (arXiv 2503.13319). DMD2: arXiv 2405.14867.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import add_noise

Logits = Callable[[Tensor, Tensor], Tensor]


class DiscriminatorLoss(NamedTuple):
    """The discriminator's loss, and scalars that show how well it separates data from samples.

    Attributes:
        loss: the loss, a scalar with its graph.
        real_logit: mean logit of the data, without graph.
        fake_logit: mean logit of the generator's samples, without graph.
        penalty: `mean (D(z_s) - D(z_s + perturbation))^2`, before its weight `r1`, without graph; 0 if `r1` is 0.
    """

    loss: Tensor
    real_logit: Tensor
    fake_logit: Tensor
    penalty: Tensor


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
    """Return the discriminator's loss: softplus losses on data and samples, plus a penalty on its slope.

    The loss is `mean(softplus(-D(z_s)) + softplus(D(x_s)) + r1 * (D(z_s) - D(z_s + perturbation))^2)`. `z_s` and `x_s`
    are the data and the samples, both noised with `eps` at level `sigma`. The last term is the R1 penalty with a finite
    difference instead of the gradient, because flash attention cannot be differentiated twice. The perturbation is
    added to the input of D, after the noise. Before the noise it would shrink to `(1 - sigma)` of its size.

    Args:
        discriminator: D, a callable `(x_sigma, sigma) -> logits [B]`.
        z: clean latents of the data `[B, ...]`.
        x_hat: the generator's samples `[B, ...]`; no gradient flows to them.
        eps: standard normal noise shaped as `z`.
        sigma: noise levels `[B]`.
        r1: weight of the penalty; 0 skips its discriminator call.
        perturbation: small noise shaped as `z`, already scaled, for the noised data; None if `r1` is 0.
    """
    z_sigma = add_noise(z, eps, sigma)
    real = discriminator(z_sigma, sigma).float()
    fake = discriminator(add_noise(x_hat.detach(), eps, sigma), sigma).float()
    loss = (F.softplus(-real) + F.softplus(fake)).mean()
    penalty = real.new_zeros(())
    if r1:
        assert perturbation is not None
        moved = discriminator(z_sigma + perturbation, sigma).float()
        penalty = (real - moved).square().mean()
        loss = loss + r1 * penalty
    return DiscriminatorLoss(loss, real.detach().mean(), fake.detach().mean(), penalty.detach())


def adversarial_gradient(discriminator: Logits, x_hat: Tensor, eps: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the generator's adversarial loss `mean softplus(-D(x_hat))`, and its gradient with respect to `x_hat`.

    D reads `x_hat` after `eps` is added at level `sigma`. The gradient is computed here, and only with respect to
    `x_hat`. The generator's backward therefore does not run through the discriminator's engine. Add
    `weight * (x_hat * gradient).sum()` to the generator's loss.

    Args:
        discriminator: D, a callable `(x_sigma, sigma) -> logits [B]`.
        x_hat: the generator's samples `[B, ...]`.
        eps: standard normal noise shaped as `x_hat`.
        sigma: noise levels `[B]`.

    Returns:
        The loss (a scalar without its graph), and the gradient `[B, ...]`.
    """
    with torch.enable_grad():
        leaf = x_hat.detach().requires_grad_()
        loss = F.softplus(-discriminator(add_noise(leaf, eps, sigma), sigma).float()).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
