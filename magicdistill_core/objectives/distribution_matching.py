"""Distribution matching with a real and a fake score (MD Eq. 2, 3, 5 and 6), with the normaliser of DMD2.

The *real score* is the velocity of a network that knows the data. The *fake score* is trained on the generator's
samples. Where the two differ, the generator's samples do not yet look like data. In MagicDistillation both are the
teacher plus a low-rank branch: at weight a_weak for the real score, and at weight a_strong for the fake score.
MD: MagicDistillation (arXiv 2503.13319). M141: Magic 1-For-1 (arXiv 2502.07701). DMD2: arXiv 2405.14867.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma
from .flow_matching import flow_matching_loss
from .guidance import guided_velocity

NORMALIZER_FLOOR = 1e-5


class GeneratorLoss(NamedTuple):
    """The generator's loss, and scalars to monitor training. r and f are the velocities of the real and the fake score.

    Attributes:
        loss: the loss, a scalar with its graph.
        gradient_norm: `mean |g|` of the gradient g in the loss (see `matching_gradient`), after normalisation.
        real_fake_distance: `mean |r - f|` before guidance.
        relative_distance: the size of `r - f` relative to `r - u` with `u = eps - x_hat`, before guidance (see
            `relative_distance`).
        guidance_ratio: `mean |r_guided - r| / mean |r - f|`; 0 without guidance.
    """

    loss: Tensor
    gradient_norm: Tensor
    real_fake_distance: Tensor
    relative_distance: Tensor
    guidance_ratio: Tensor


class Guidance(NamedTuple):
    """Classifier-free guidance of the real score: `r = v(none) + scale * (v(c) - v(none))`.

    Attributes:
        scale: the guidance scale; 1 means no guidance.
        unconditional: `v(none)`, the velocity of the real score without its conditioning.
    """

    scale: float
    unconditional: Velocity


def per_sample_mean(x: Tensor) -> Tensor:
    """Return the mean over all axes except the batch axis: `[B, 1, ...]`, which broadcasts over `x` `[B, ...]`."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def matching_gradient(
    x_hat: Tensor, eps: Tensor, sigma: Tensor, real: Tensor, fake: Tensor, *, normalize: bool
) -> Tensor:
    """Return the distribution-matching gradient g at the samples, `[B, ...]`.

    r = `real` and f = `fake` are velocities at `x_sigma`, the noised samples. Without normalisation
    `g = sigma * (r - f)`, which equals `x0_fake - x0_real` (MD Eq. 2). With normalisation
    `g = (r - f) / max(mean |r - u|, 1e-5)` with `u = eps - x_hat` and one mean per sample. This is DMD2's division by
    `mean |x_hat - x0_real|`, in which sigma cancels.

    Args:
        x_hat: the generator's samples `[B, ...]`.
        eps: the noise that was added to them, `[B, ...]`.
        sigma: the noise levels `[B]`.
        real: the velocity `[B, ...]` of the real (weak) score, after guidance if there is any.
        fake: the velocity `[B, ...]` of the fake (strong) score.
        normalize: True normalises as DMD2 does; False uses the papers' unnormalised form.
    """
    difference = real - fake
    if not normalize:
        return expand_sigma(sigma, difference) * difference
    distance = per_sample_mean((real - (eps - x_hat)).abs())
    return difference / distance.clamp_min(NORMALIZER_FLOOR)


def relative_distance(x_hat: Tensor, eps: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Return `rms(r - f) / rms(r - u)` with `u = eps - x_hat`, the mean over the samples, a scalar.

    It is the part of the real score's error on the generator's samples that the fake score removes. The best fake score
    is the conditional mean of u, so `E (r - u)^2 = E (r - f)^2 + E (f - u)^2`. Therefore the ratio of its root mean
    squares is at most 1: 0 if both scores are equal, 1 if the fake score predicts the samples perfectly. A lasting
    value above 1 means that the fake score is worse than the real score on the generator's own samples. (Derived.)

    Args:
        x_hat: the generator's samples `[B, ...]`.
        eps: the noise that was added to them, `[B, ...]`.
        real: the velocity `[B, ...]` of the real score, before guidance.
        fake: the velocity `[B, ...]` of the fake score.
    """
    apart = per_sample_mean((real - fake).square()).sqrt()
    error = per_sample_mean((real - (eps - x_hat)).square()).sqrt()
    return (apart / error.clamp_min(NORMALIZER_FLOOR)).mean()


def surrogate_loss(x_hat: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar loss whose gradient with respect to `x_hat` is `gradient / x_hat.numel()`.

    The loss is `0.5 * mean (x_hat - sg(x_hat - gradient))^2`, where sg stops the gradient.

    Args:
        x_hat: the generator's samples `[B, ...]`, with their graph.
        gradient: shaped as `x_hat`.
    """
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
    """Return the generator's distribution-matching loss, and scalars to monitor it (MD Eq. 2, 5 and 6; M141 Eq. 4).

    The samples are noised with `eps` at level `sigma`, and both scores are called there without gradient. The
    `matching_gradient` of their velocities becomes the gradient of the loss (`surrogate_loss`). A backward pass through
    the loss reaches only the generator, through `x_hat`.

    Args:
        x_hat: the samples of the rollout `[B, ...]`, with their graph.
        eps: fresh standard normal noise shaped as `x_hat`.
        sigma: noise levels `[B]`.
        real: the real (weak) score, a callable `(x, sigma) -> velocity`: the teacher plus the branch at weight a_weak.
            With a_weak = 0 it is the teacher (DMD).
        fake: the fake (strong) score, a callable of the same form: the teacher plus the branch at weight a_strong.
        normalize: True divides the gradient, per sample, by the mean distance of the sample from the real score's x0
            estimate, as DMD2 does. False uses the papers' unnormalised form.
        guidance: classifier-free guidance of the real score; None for no guidance.
    """
    with torch.no_grad():
        x_sigma = add_noise(x_hat, eps, sigma)
        r = real(x_sigma, sigma)
        f = fake(x_sigma, sigma)
        distance = (r - f).abs().mean()
        relative = relative_distance(x_hat, eps, r, f)
        ratio = torch.zeros_like(distance)
        if guidance is not None:
            guided = guided_velocity(r, guidance.unconditional(x_sigma, sigma), guidance.scale)
            ratio = (guided - r).abs().mean() / distance.clamp_min(NORMALIZER_FLOOR)
            r = guided
        gradient = matching_gradient(x_hat, eps, sigma, r.float(), f.float(), normalize=normalize)
    return GeneratorLoss(surrogate_loss(x_hat, gradient), gradient.abs().mean(), distance, relative, ratio)


def fake_loss(x_hat: Tensor, eps: Tensor, sigma: Tensor, fake: Velocity) -> Tensor:
    """Return the fake score's flow-matching loss on the generator's samples, a scalar (MD Eq. 3).

    The loss is `mean (fake(x_s, s) - (eps - x_hat))^2` with s = `sigma` and `x_s = (1 - s) x_hat + s eps`.

    Args:
        x_hat: the generator's samples `[B, ...]`; no gradient flows to them.
        eps: fresh standard normal noise shaped as `x_hat`.
        sigma: noise levels `[B]`.
        fake: the fake (strong) score, a callable `(x, sigma) -> velocity`; it is trained.
    """
    return flow_matching_loss(fake, x_hat, eps, sigma)
