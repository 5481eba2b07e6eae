"""Flow matching: the loss for training and fine-tuning of teachers, and the noise on their start images.

MD: MagicDistillation (arXiv 2503.13319). M141: Magic 1-For-1 (arXiv 2502.07701).
"""

import torch
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


def flow_matching_loss(
    velocity: Velocity, z: Tensor, eps: Tensor, sigma: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return `mean(weight * (velocity(x_s, s) - (eps - z))^2)`, a scalar (M141 Eq. 9; MD Eq. 3).

    s is `sigma`, and `x_s = (1 - s) z + s eps`. A weight does not change the optimal velocity. It only decides where a
    network of limited size is most accurate: at the entries with the largest weights. With the weight `s^2` (see
    `x0_weight`) the loss is the mean squared error of the clean estimate `x_s - s velocity(x_s, s)`.

    Args:
        velocity: the trained network, a callable `(x, sigma) -> velocity`.
        z: clean samples `[B, ...]`; no gradient flows to them.
        eps: standard normal noise shaped as `z`.
        sigma: noise levels `[B]`.
        weight: positive weights that broadcast over `z`, such as `[C, 1, 1, 1]` for one weight per channel or
            `[B, 1, 1, 1, 1]` for one per sample; None for equal weights.

    Returns:
        A scalar, computed in float32 or a higher precision.
    """
    z = z.detach()
    predicted = velocity(add_noise(z, eps, sigma), sigma)
    error = (predicted - (eps - z)).to(torch.promote_types(predicted.dtype, torch.float32)).square()
    return error.mean() if weight is None else (error * weight).mean()


def x0_weight(sigma: Tensor, like: Tensor) -> Tensor:
    """Return the weights `sigma^2` that turn the flow-matching loss into an error of the clean estimate (M141).

    The clean estimate is `x0 = x_s - s v`, and the clean sample is `z = x_s - s (eps - z)`. So `(x0 - z)^2 = s^2 (v -
    (eps - z))^2`. Levels with little noise then count less than in the velocity's own error.

    Args:
        sigma: noise levels `[B]`.
        like: a tensor `[B, ...]` with the number of axes of the samples.

    Returns:
        `[B, 1, ...]`, which broadcasts over `like`.
    """
    return expand_sigma(sigma.square(), like)


def noise_reference(image_latent: Tensor, log_std: Tensor, eps: Tensor) -> Tensor:
    """Return the start image's latent with noise of standard deviation `exp(log_std)` (M141, reference-image noise).

    A network that is trained with slightly noisy start images depends less on their details. Its videos move more.

    Args:
        image_latent: the latent of the start image `[B, ...]`.
        log_std: natural logarithm of the standard deviation, `[B]`; Magic 1-For-1 draws it from N(-3, 0.5).
        eps: standard normal noise shaped as `image_latent`.
    """
    return image_latent + expand_sigma(log_std.exp(), image_latent) * eps
