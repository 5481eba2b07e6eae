"""The geometry of videos and of their latents: strides, channels, shapes, and which sizes are possible.

All families share it: HunyuanVideo's VAE and Wan 2.1's have the same strides and number of channels.
"""

import torch
from einops import rearrange
from torch import Tensor

from .errors import VideoError

LATENT_CHANNELS = 16
# Latent frame 0 stands for frame 0 alone, every further one for so many frames.
TIME_STRIDE = 4
SPACE_STRIDE = 8
# The networks' patches are so many latent pixels high and wide.
PATCH = 2
SIDE_MULTIPLE = SPACE_STRIDE * PATCH


def latent_frames(frames: int) -> int:
    """Latent frames of a video of 4n + 1 frames: n + 1."""
    return (frames - 1) // TIME_STRIDE + 1


def video_frames(latents: int) -> int:
    """The inverse of `latent_frames`: frames of a video of n + 1 latent frames, 4n + 1."""
    return (latents - 1) * TIME_STRIDE + 1


def nearest_length(frames: float) -> int:
    """The number of frames 4n + 1 nearest to `frames` (seconds times frames a second), at least 1."""
    return video_frames(max(0, round((frames - 1) / TIME_STRIDE)) + 1)


def nearest_side(pixels: float) -> int:
    """The width or height nearest to `pixels` that the VAE and the patches can hold, at least 16."""
    return max(1, round(pixels / SIDE_MULTIPLE)) * SIDE_MULTIPLE


def check_geometry(frames: int, height: int, width: int) -> None:
    """Refuse video sizes that the VAE and the patches cannot hold.

    Raises:
        VideoError: unless frames = 4n + 1 and both sides are positive multiples of 16.
    """
    lower = video_frames(latent_frames(max(1, frames)))
    if frames != lower:
        raise VideoError(
            f"{frames} frames cannot be encoded: the VAE takes 4n + 1 frames. Use {lower} or {lower + TIME_STRIDE}."
        )
    for name, side in (("height", height), ("width", width)):
        if side < SIDE_MULTIPLE or side % SIDE_MULTIPLE:
            raise VideoError(
                f"A {name} of {side} pixels does not fit: sides must be multiples of {SIDE_MULTIPLE} (VAE stride "
                f"{SPACE_STRIDE}, patch {PATCH}). The nearest that fits is {nearest_side(side)}: use that."
            )


def latent_shape(frames: int, height: int, width: int, batch: int = 1) -> tuple[int, int, int, int, int]:
    """`(B, 16, T, H, W)` of the latent of a video; geometry errors as in `check_geometry`."""
    check_geometry(frames, height, width)
    return (batch, LATENT_CHANNELS, latent_frames(frames), height // SPACE_STRIDE, width // SPACE_STRIDE)


def frames_to_unit(frames_THWC: Tensor) -> Tensor:
    """uint8 frames `[T, H, W, 3]` as float `[1, T, 3, H, W]` in [0, 1]: what a VAE's encode takes."""
    return rearrange(frames_THWC, "t h w c -> 1 t c h w").float() / 255


def unit_to_frames(video_BTCHW: Tensor) -> Tensor:
    """A decoded video `[1, T, 3, H, W]` in [0, 1] as uint8 frames `[T, H, W, 3]`."""
    return rearrange((video_BTCHW.float().clamp(0, 1) * 255).round().to(torch.uint8), "1 t c h w -> t h w c")
