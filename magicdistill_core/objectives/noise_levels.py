"""Random noise levels at which the losses are evaluated.

M141: Magic 1-For-1 (arXiv 2502.07701).
"""

import torch
from torch import Tensor

from ..flow import shift_sigma

SIGMA_MIN, SIGMA_MAX = 0.02, 0.98


def sample_sigma(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Draw noise levels from a uniform distribution after the timestep shift. The losses use them by default.

    Args:
        batch: how many levels to draw.
        shift: the timestep shift, see `shift_sigma`; 1 keeps the distribution uniform.
        generator: the source of the random numbers.

    Returns:
        `[batch]` float32 on the generator's device, clamped to [0.02, 0.98].
    """
    return uniform_sigma(torch.rand(batch, generator=generator, device=generator.device), shift)


def uniform_sigma(uniform: Tensor, shift: float) -> Tensor:
    """Return the levels of `sample_sigma` for numbers from a uniform distribution on [0, 1)."""
    return shift_sigma(uniform, shift).clamp(SIGMA_MIN, SIGMA_MAX)


def logit_normal_sigma(
    batch: int, shift: float, generator: torch.Generator, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Draw noise levels `shift_sigma(sigmoid(n), shift)`, where n has a normal distribution.

    M141 trains its teacher with mean 0, std 1 and shift 5.

    Args:
        batch: how many levels to draw.
        shift: the timestep shift, see `shift_sigma`; 1 changes nothing.
        generator: the source of the random numbers.
        mean: mean of n; a larger mean draws more noise.
        std: standard deviation of n.

    Returns:
        `[batch]` float32 in (0, 1) on the generator's device.
    """
    normal = torch.randn(batch, generator=generator, device=generator.device)
    return normal_sigma(normal, shift, mean, std)


def normal_sigma(normal: Tensor, shift: float, mean: float, std: float) -> Tensor:
    """Return the levels of `logit_normal_sigma` for numbers from a standard normal distribution."""
    return shift_sigma((mean + std * normal).sigmoid(), shift)
