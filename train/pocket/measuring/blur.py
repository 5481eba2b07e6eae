"""Gaussian blur of pictures."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Return pictures after a Gaussian blur, shaped as `pictures`. The border is mirrored.

    Args:
        pictures: `[..., H, W]`, H and W larger than `3 * sigma`.
        sigma: standard deviation of the kernel in pixels; 0 changes nothing.
    """
    if sigma == 0:
        return pictures
    rows, columns = (_matrix(side, sigma).to(pictures) for side in pictures.shape[-2:])
    # Products of matrices are several times as fast as convolutions of one channel.
    return rows @ pictures @ columns.T


@lru_cache(maxsize=32)
def _matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix `[side, side]` that blurs a column of pixels."""
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    mirrored = F.pad(torch.eye(side, dtype=torch.float64)[None, None], (0, 0, reach, reach), mode="reflect")
    return F.conv2d(mirrored, kernel.view(1, 1, -1, 1))[0, 0]
