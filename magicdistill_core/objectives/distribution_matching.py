"""Distribution matching between a real and a fake score (MagicDistillation, Eq. 2, 3, 5 and 6; DMD2's normaliser)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma
from .flow_matching import flow_matching_loss
from .guidance import guided_velocity

NORMALIZER_FLOOR = 1e-5


class GeneratorLoss(NamedTuple):
    """The loss, and scalars of it that tell how training goes."""

    loss: Tensor
    gradient_norm: Tensor  # mean |g|, as used
    real_fake_distance: Tensor  # mean |r - f|, before guidance
    guidance_ratio: Tensor  # mean |what guidance adds to r| / mean |r - f|; 0 without guidance


class Guidance(NamedTuple):
    """Classifier-free guidance of the real score: `r = v(none) + scale * (v(c) - v(none))`; scale 1 means none."""

    scale: float
    unconditional: Velocity


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over all but the batch axis, kept for broadcasting."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def matching_gradient(
    x_hat: Tensor, eps: Tensor, sigma: Tensor, real: Tensor, fake: Tensor, *, normalize: bool
) -> Tensor:
    """The distribution-matching direction g at `x_hat`, from the two velocities at `x_sigma`.

    Unnormalised `g = sigma * (r - f)`, which is `x0_fake - x0_real` (MD Eq. 2). Normalised
    `g = (r - f) / max(mean_per_sample |r - u|, 1e-5)` with `u = eps - x_hat`: DMD2's `mean |x_hat - x0_real|`, of which
    sigma cancels.

    Args:
        x_hat, eps: `[B, ...]`, the generator's sample and the noise put on it.
        sigma: `[B]`.
        real, fake: velocities `[B, ...]` of the weak and the strong score.
    """
    difference = real - fake
    if not normalize:
        return expand_sigma(sigma, difference) * difference
    distance = per_sample_mean((real - (eps - x_hat)).abs())
    return difference / distance.clamp_min(NORMALIZER_FLOOR)


def surrogate_loss(x_hat: Tensor, gradient: Tensor) -> Tensor:
    """`0.5 * mean || x_hat - sg(x_hat - g) ||^2`, whose gradient by `x_hat` is `g / x_hat.numel()`."""
    return 0.5 * F.mse_loss(x_hat.float(), (x_hat - gradient).detach().float())


def generator_loss(
    x_hat: Tensor,
    eps: Tensor,
    sigma: Tensor,
    real: Velocity,
    fake: Velocity,
    *,
    normalize: bool,
    guidance: Guidance | None = None,
) -> GeneratorLoss:
    """The generator's loss (MD Eq. 2 with the weak-to-strong scores of Eq. 5 and 6; M141 Eq. 4).

    Args:
        x_hat: the rollout's sample `[B, ...]`, with gradient.
        eps, sigma: fresh noise like `x_hat`, and its levels `[B]`.
        real: the weak score, teacher + a_weak * branch (a_weak = 0 is vanilla DMD).
        fake: the strong score, teacher + a_strong * branch.
        normalize: DMD2's normalisation; False is the papers' own form.
        guidance: of the real score, if any.
    """
    with torch.no_grad():
        x_sigma = add_noise(x_hat, eps, sigma)
        r = real(x_sigma, sigma)
        f = fake(x_sigma, sigma)
        distance = (r - f).abs().mean()
        ratio = torch.zeros_like(distance)
        if guidance is not None:
            guided = guided_velocity(r, guidance.unconditional(x_sigma, sigma), guidance.scale)
            ratio = (guided - r).abs().mean() / distance.clamp_min(NORMALIZER_FLOOR)
            r = guided
        gradient = matching_gradient(x_hat, eps, sigma, r.float(), f.float(), normalize=normalize)
    return GeneratorLoss(surrogate_loss(x_hat, gradient), gradient.abs().mean(), distance, ratio)


def fake_loss(x_hat: Tensor, eps: Tensor, sigma: Tensor, fake: Velocity) -> Tensor:
    """Flow matching of the fake score on the generator's samples (MD Eq. 3): `mean || v(x_s, s) - (eps - x_hat) ||^2`.

    Args:
        x_hat: the generator's sample `[B, ...]`; its gradient is stopped here.
        eps, sigma: fresh noise like `x_hat`, and its levels `[B]`.
        fake: the strong score.
    """
    return flow_matching_loss(fake, x_hat, eps, sigma)
