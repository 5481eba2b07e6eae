"""Ground-truth supervision of a few-step generator: a regression to the data (MD Eq. 7).

MD: MagicDistillation (arXiv 2503.13319).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, velocity_to_x0
from .consistency import pseudo_huber

Distance = Literal["huber", "mse"]


def paired_distance(x: Tensor, z: Tensor, distance: Distance, xi: float) -> Tensor:
    """Return the mean distance of paired latents, a scalar in float32 or a higher precision.

    Args:
        x: latents of any shape.
        z: their partners, shaped as `x`.
        distance: `huber` is `mean(sqrt((x - z)^2 + xi^2) - xi)`; `mse` is the mean squared difference.
        xi: width of the Huber loss (`pseudo_huber`); unused by `mse`.
    """
    return F.mse_loss(x.float(), z.float()) if distance == "mse" else pseudo_huber(x - z, xi)


def supervision_loss(
    generator: Velocity, z: Tensor, eps: Tensor, sigma: Tensor, *, distance: Distance, xi: float
) -> Tensor:
    """Return the paired distance between the data and the generator's x0 estimates of the noised data, a scalar.

    The KL divergence between the generator and the data reduces to this distance if both distributions are smoothed by
    a small xi. The generator's input is `x_sigma = (1 - sigma) z + sigma eps`.

    Args:
        generator: the few-step generator, a callable `(x, sigma) -> velocity`.
        z: clean latents of the data `[B, ...]`.
        eps: standard normal noise shaped as `z`.
        sigma: levels of the generator's schedule, one per sample `[B]`.
        distance: `huber` or `mse`; see `paired_distance`.
        xi: width of the Huber loss; unused by `mse`.
    """
    x_sigma = add_noise(z, eps, sigma)
    return paired_distance(velocity_to_x0(x_sigma, generator(x_sigma, sigma), sigma), z, distance, xi)
