"""Ground-truth supervision of a few-step generator (MagicDistillation, Eq. 7)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..flow import Velocity, add_noise, velocity_to_x0
from .consistency import pseudo_huber

Distance = Literal["huber", "mse"]


def paired_distance(x: Tensor, z: Tensor, distance: Distance, xi: float) -> Tensor:
    """`mean( sqrt((x - z)^2 + xi^2) - xi )` for `huber`, the mean squared difference for `mse`."""
    return F.mse_loss(x.float(), z.float()) if distance == "mse" else pseudo_huber(x - z, xi)


def supervision_loss(
    generator: Velocity, z: Tensor, eps: Tensor, sigma: Tensor, *, distance: Distance, xi: float
) -> Tensor:
    """The paired distance that the KL between generator and data reduces to when both are smoothed by a small xi.

    The generator sees noised data, `x_sigma = (1 - sigma) z + sigma eps` at levels of its schedule, and its x0 is
    compared with the data.

    Args:
        generator: the few-step generator.
        z: clean latents `[B, ...]`.
        eps, sigma: noise like `z`, and a level of the generator's schedule for each sample `[B]`.
    """
    x_sigma = add_noise(z, eps, sigma)
    return paired_distance(velocity_to_x0(x_sigma, generator(x_sigma, sigma), sigma), z, distance, xi)
