"""Differences between two pictures of the same scene: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _DEVIATION = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Two equal pictures. Their PSNR is infinite, which no mean survives; 8-bit pictures that differ stay below 98 dB.
_MOST_DB = 100.0


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of pictures, in dB; 100 for equal pictures.

    Args:
        x: `[N, 3, H, W]` in [0, 1].
        y: the same shape.
    """
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp(min=1e-30))).clamp(max=_MOST_DB).float()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity of each pair of pictures, the mean over pixels and channels.

    It is that of Wang et al. (2004): a Gaussian window of 11 x 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03, and
    only pixels with a complete window.

    Args:
        x: `[N, 3, H, W]` in [0, 1], with sides of at least 11 pixels.
        y: the same shape.

    Raises:
        ValueError: if a side is shorter than the window.
    """
    if min(x.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels. Found {list(x.shape[-2:])}.")
    place = torch.arange(_WINDOW, dtype=torch.float64, device=x.device) - _WINDOW // 2
    kernel = torch.exp(-place.square() / (2 * _DEVIATION**2))
    kernel = (kernel / kernel.sum()).float()
    x, y = x.float(), y.float()
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)

    def blurred(picture: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(picture, rows, groups=channels), columns, groups=channels)

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (numerator / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).flatten(1).mean(1)
