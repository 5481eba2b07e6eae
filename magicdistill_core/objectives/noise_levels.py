"""Random noise levels at which the losses are evaluated."""

import torch
from torch import Tensor

from ..flow import shift_sigma

SIGMA_MIN, SIGMA_MAX = 0.02, 0.98


def sample_sigma(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Draw `sigma = shift_s(U(0, 1))`, clamped to [0.02, 0.98]: `[batch]` float32. The losses use it by default."""
    uniform = torch.rand(batch, generator=generator, device=generator.device)
    return shift_sigma(uniform, shift).clamp(SIGMA_MIN, SIGMA_MAX)


def logit_normal_sigma(
    batch: int, shift: float, generator: torch.Generator, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Draw `sigma = shift_s(sigmoid(N(mean, std^2)))`, `[batch]` float32.

    M141 trains its teacher with mean 0, std 1 and shift 5.
    """
    normal = torch.randn(batch, generator=generator, device=generator.device)
    return shift_sigma((mean + std * normal).sigmoid(), shift)
