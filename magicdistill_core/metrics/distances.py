"""The energy distance between two sets of feature vectors."""

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance of two sets: `2 E|x - y| - E|x - x'| - E|y - y'|` (Szekely and Rizzo).

    Pairs of a sample with itself are left out. The estimate is unbiased. For two sets of the same distribution its mean
    is 0, so single values may be slightly negative.

    Args:
        x: feature vectors `[N, D]`, N of at least 2.
        y: feature vectors `[M, D]`, M of at least 2.

    Raises:
        ValueError: if the shapes do not fit or a set has fewer than two samples.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Two sets of feature vectors are needed, [N, D] and [M, D] with N, M >= 2. Found {list(x.shape)} and "
            f"{list(y.shape)}. Use more samples, or features of one length."
        )
    x, y = x.double(), y.double()
    within = [torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])
