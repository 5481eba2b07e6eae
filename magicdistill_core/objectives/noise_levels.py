"""Where on the noise axis the losses look."""

import torch
from torch import Tensor

from ..flow import shift_sigma

SIGMA_MIN, SIGMA_MAX = 0.02, 0.98


def sample_sigma(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """`sigma = shift_s(U(0, 1))` clamped to [0.02, 0.98], `[batch]` float32: the expectation of every loss here."""
    uniform = torch.rand(batch, generator=generator, device=generator.device)
    return shift_sigma(uniform, shift).clamp(SIGMA_MIN, SIGMA_MAX)


def logit_normal_sigma(
    batch: int, shift: float, generator: torch.Generator, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """`sigma = shift_s(sigmoid(N(mean, std^2)))`, `[batch]` float32: where M141 trains its teacher (0, 1, shift 5)."""
    normal = torch.randn(batch, generator=generator, device=generator.device)
    return shift_sigma((mean + std * normal).sigmoid(), shift)
