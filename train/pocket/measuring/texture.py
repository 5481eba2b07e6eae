"""Features of the fine texture of clips: they show dirt (specks, torn edges, flicker) and say little of sharpness.

Blur and sharpening scale all fine contrasts of a picture alike. Dirt raises the few strongest ones. The features are
therefore logarithms of quantiles, relative to a middle quantile.
"""

import torch
from torch import Tensor

from .blur import blur

_MIDDLE = 0.9
_QUANTILES = (0.5, 0.75, 0.97, 0.99, 0.997, 0.9995)
_SCALES = (0.7, 1.2)
_FLOOR = 1e-3


def texture(first: Tensor, late: Tensor) -> Tensor:
    """Return the texture of late frames, its change since the first frame, and that of their flicker, `[N, F]`.

    The change does not depend on the person, because a clip begins with its start image.

    Args:
        first: the first frames of the clips, `[N, 3, H, W]` in [0, 1].
        late: later frames of the clips, `[N, L, 3, H, W]` in [0, 1], consecutive, L of at least 3.
    """
    # What a frame has that the mean of its neighbours does not have.
    flicker = late[:, 1:-1] - (late[:, :-2] + late[:, 2:]) / 2
    before, now, changing = (
        torch.stack([_quantiles(response) for response in _responses(frames)], dim=-1).mean(dim=1).flatten(1)
        for frames in (first[:, None], late, flicker)
    )
    return torch.cat([now, now - before, changing], dim=1)


def _responses(frames: Tensor) -> list[Tensor]:
    """Return the fine contrasts of frames `[..., 3, H, W]`: contrast and roundness at each scale, `[..., H, W]`."""
    found = []
    for scale in _SCALES:
        smooth = blur(frames, scale)
        found.append((smooth - blur(frames, 2 * scale)).square().mean(dim=-3).sqrt())
        # A spot is curved alike in both directions. An edge or a line is curved in one, so the determinant is 0.
        across = smooth.diff(n=2, dim=-1)[..., 1:-1, :]
        down = smooth.diff(n=2, dim=-2)[..., :, 1:-1]
        mixed = (smooth[..., 2:, 2:] - smooth[..., 2:, :-2] - smooth[..., :-2, 2:] + smooth[..., :-2, :-2]) / 4
        found.append((across * down - mixed.square()).clamp_min(0).mean(dim=-3).sqrt())
    return found


def _quantiles(response: Tensor) -> Tensor:
    """Return the logarithms of the quantiles of `[..., H, W]`, relative to the middle one, `[..., Q]`."""
    values = response.flatten(-2)
    levels = torch.tensor([*_QUANTILES, _MIDDLE], dtype=values.dtype)
    logs = (torch.quantile(values, levels, dim=-1) + _FLOOR).log().movedim(0, -1)
    return logs[..., :-1] - logs[..., -1:]
