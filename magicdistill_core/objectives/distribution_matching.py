"""Distribution matching with a real and a fake score (MagicDistillation, Eq. 2, 3, 5 and 6; normaliser of DMD2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma
from .flow_matching import flow_matching_loss
from .guidance import guided_velocity

NORMALIZER_FLOOR = 1e-5


class GeneratorLoss(NamedTuple):
    """The generator's loss, and scalars to monitor training.

    Attributes:
        loss: the loss, with its graph.
        gradient_norm: `mean |g|` of the gradient g in the loss, after normalisation.
        real_fake_distance: `mean |r - f|` before guidance.
        guidance_ratio: `mean |r_guided - r| / mean |r - f|`; 0 without guidance.
    """

    loss: Tensor
    gradient_norm: Tensor
    real_fake_distance: Tensor
    guidance_ratio: Tensor


class Guidance(NamedTuple):
    """Classifier-free guidance of the real score: `r = v(none) + scale * (v(c) - v(none))`; scale 1 means none."""

    scale: float
    unconditional: Velocity


def per_sample_mean(x: Tensor) -> Tensor:
    """Return the mean over all axes except the batch axis, `[B, 1, ...]`."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def matching_gradient(
    x_hat: Tensor, eps: Tensor, sigma: Tensor, real: Tensor, fake: Tensor, *, normalize: bool
) -> Tensor:
    """Return the distribution-matching gradient g at `x_hat`, from velocities r (real) and f (fake) at `x_sigma`.

    Without normalisation `g = sigma * (r - f)`, which equals `x0_fake - x0_real` (MD Eq. 2). With normalisation
    `g = (r - f) / max(mean_per_sample |r - u|, 1e-5)` with `u = eps - x_hat`. This is DMD2's division by
    `mean |x_hat - x0_real|`, in which sigma cancels.

    Args:
        x_hat: the generator's samples `[B, ...]`.
        eps: the noise that was added to them, `[B, ...]`.
        sigma: the noise levels `[B]`.
        real, fake: velocities `[B, ...]` of the real (weak) and the fake (strong) score.
        normalize: whether to normalise as DMD2 does.
    """
    difference = real - fake
    if not normalize:
        return expand_sigma(sigma, difference) * difference
    distance = per_sample_mean((real - (eps - x_hat)).abs())
    return difference / distance.clamp_min(NORMALIZER_FLOOR)


def surrogate_loss(x_hat: Tensor, gradient: Tensor) -> Tensor:
    """Return `0.5 * mean || x_hat - sg(x_hat - g) ||^2`. Its gradient by `x_hat` is `g / x_hat.numel()`."""
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
    """Return the generator's loss (MD Eq. 2 with the weak-to-strong scores of Eq. 5 and 6; M141 Eq. 4).

    Args:
        x_hat: the samples of the rollout `[B, ...]`, with gradient.
        eps: fresh noise shaped as `x_hat`.
        sigma: noise levels `[B]`.
        real: the real (weak) score, teacher + a_weak * branch (a_weak = 0 is vanilla DMD).
        fake: the fake (strong) score, teacher + a_strong * branch.
        normalize: True normalises as DMD2 does; False uses the papers' unnormalised form.
        guidance: classifier-free guidance of the real score; None for no guidance.
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
    """Return the fake score's flow-matching loss on samples (MD Eq. 3): `mean || v(x_s, s) - (eps - x_hat) ||^2`.

    Args:
        x_hat: the generator's samples `[B, ...]`; no gradient flows to them.
        eps: fresh noise shaped as `x_hat`.
        sigma: noise levels `[B]`.
        fake: the fake (strong) score, v.
    """
    return flow_matching_loss(fake, x_hat, eps, sigma)
