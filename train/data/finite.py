"""NaN and infinite values in latents. A VAE that overflows in half precision makes them."""

import torch
from torch import Tensor


def not_finite(tensor: Tensor) -> str | None:
    """Count the values of a tensor that are NaN or infinite.

    Args:
        tensor: any floating-point tensor.

    Returns:
        The counts in words, such as `3 NaN and 0 infinite values of 2,304`; None if all values are finite.
    """
    if torch.isfinite(tensor).all():
        return None
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return f"{nan:,} NaN and {infinite:,} infinite values of {tensor.numel():,}"
