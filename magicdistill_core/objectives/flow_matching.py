"""Flow matching: the loss that teachers are trained and fine-tuned by."""

import torch
from torch import Tensor

from ..flow import Velocity, add_noise, expand_sigma


def flow_matching_loss(
    velocity: Velocity, z: Tensor, eps: Tensor, sigma: Tensor, weight: Tensor | None = None
) -> Tensor:
    """`mean weight * (v(x_s, s) - (eps - z))^2` with `x_s = (1 - s) z + s eps` (M141 Eq. 9; MD Eq. 3).

    The best velocity is the same for any positive weight; a small network spends its capacity where the weight is.

    Args:
        velocity: the network that learns.
        z: clean samples `[B, ...]`; no gradient flows to them.
        eps: noise like `z`.
        sigma: noise levels `[B]`.
        weight: broadcasts over `z`, such as `[C, 1, 1, 1]` for a weight of the channels.

    Returns:
        A scalar, computed in float32 or finer.
    """
    z = z.detach()
    predicted = velocity(add_noise(z, eps, sigma), sigma)
    error = (predicted - (eps - z)).to(torch.promote_types(predicted.dtype, torch.float32)).square()
    return error.mean() if weight is None else (error * weight).mean()


def noise_reference(image_latent: Tensor, log_std: Tensor, eps: Tensor) -> Tensor:
    """The start image's latent with noise of standard deviation `exp(log_std)` added (reference-image noise of M141).

    A network that is trained on slightly noisy start images relies less on every detail of them, and moves more.

    Args:
        image_latent: `[B, ...]`.
        log_std: `[B]`; Magic 1-For-1 draws it from N(-3, 0.5).
        eps: standard normal noise like `image_latent`.
    """
    return image_latent + expand_sigma(log_std.exp(), image_latent) * eps
