"""Features and measures of clips that need no pretrained network."""

import torch
from einops import rearrange
from torch import Tensor


def latent_statistics(latents_BCTHW: Tensor) -> Tensor:
    """Compute features of clips: per channel the mean and standard deviation over space and time, and the frame change.

    The frame change is the mean absolute difference between successive frames.

    Args:
        latents_BCTHW: `[B, C, T, H, W]` with T of at least 2.

    Returns:
        `[B, 3 * C]` in float32: C means, C standard deviations, C frame changes.
    """
    flat = rearrange(latents_BCTHW.float(), "b c t h w -> b c (t h w)")
    change = latents_BCTHW.float().diff(dim=2).abs().mean(dim=(2, 3, 4))
    return torch.cat([flat.mean(2), flat.std(2), change], dim=1)


def motion(frames_BTCHW: Tensor) -> Tensor:
    """Return the mean absolute difference between successive frames of each clip, `[B]`, in the unit of the frames.

    Args:
        frames_BTCHW: `[B, T, C, H, W]` with T of at least 2.
    """
    return frames_BTCHW.float().diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def sharpness(frames_BTCHW: Tensor) -> Tensor:
    """Return the mean absolute Laplacian of each clip, `[B]`, in the unit of the frames.

    Blur lowers it and noise raises it.

    Args:
        frames_BTCHW: `[B, T, C, H, W]` with sides of at least 3 pixels.
    """
    x = frames_BTCHW.float()
    neighbours = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (4 * x[..., 1:-1, 1:-1] - neighbours).abs().mean(dim=(1, 2, 3, 4))
