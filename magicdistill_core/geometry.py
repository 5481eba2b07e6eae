"""The geometry of videos and latents: strides, channels, shapes, and the sizes that are possible.

All families share these numbers: HunyuanVideo's VAE and Wan 2.1's have the same strides and number of channels.
"""

import torch
from einops import rearrange
from torch import Tensor

from .errors import VideoError

LATENT_CHANNELS = 16
# Latent frame 0 encodes frame 0 only; every later latent frame encodes this many frames.
TIME_STRIDE = 4
SPACE_STRIDE = 8
# Height and width of the networks' patches in latent pixels.
PATCH = 2
SIDE_MULTIPLE = SPACE_STRIDE * PATCH


def latent_frames(frames: int) -> int:
    """Return the number of latent frames of a video: n + 1 for 4n + 1 frames.

    Args:
        frames: number of video frames, 4n + 1.

    Raises:
        VideoError: for another number. The message names the nearest possible ones.
    """
    if frames < 1 or (frames - 1) % TIME_STRIDE:
        lower = video_frames((max(1, frames) - 1) // TIME_STRIDE + 1)
        raise VideoError(
            f"{frames} frames cannot be encoded: the VAE takes 4n + 1 frames. Use {lower} or {lower + TIME_STRIDE}."
        )
    return (frames - 1) // TIME_STRIDE + 1


def video_frames(latents: int) -> int:
    """Return the number of video frames of n + 1 latent frames: 4n + 1. The inverse of `latent_frames`."""
    return (latents - 1) * TIME_STRIDE + 1


def nearest_length(frames: float) -> int:
    """Return the possible video length nearest to `frames`: a number of the form 4n + 1, at least 1.

    Args:
        frames: the desired number of frames, which may be a fraction (seconds times frame rate).
    """
    return video_frames(max(0, round((frames - 1) / TIME_STRIDE)) + 1)


def nearest_side(pixels: float) -> int:
    """Return the possible width or height nearest to `pixels`: a multiple of 16, at least 16."""
    return max(1, round(pixels / SIDE_MULTIPLE)) * SIDE_MULTIPLE


def check_geometry(frames: int, height: int, width: int) -> None:
    """Refuse video sizes that the VAE or the network's patches do not support.

    Args:
        frames: number of video frames.
        height: height in pixels.
        width: width in pixels.

    Raises:
        VideoError: unless frames = 4n + 1 and both sides are positive multiples of 16. The message names the nearest
            possible value.
    """
    latent_frames(frames)
    for name, side in (("height", height), ("width", width)):
        if side < SIDE_MULTIPLE or side % SIDE_MULTIPLE:
            raise VideoError(
                f"A {name} of {side} pixels does not fit: sides must be multiples of {SIDE_MULTIPLE} (VAE stride "
                f"{SPACE_STRIDE}, patch {PATCH}). Use the nearest one, {nearest_side(side)}."
            )


def latent_shape(frames: int, height: int, width: int, batch: int = 1) -> tuple[int, int, int, int, int]:
    """Return the shape `(batch, 16, T, H, W)` of a video's latent: H and W are 1/8 of the sides, T is (frames + 3) / 4.

    Args:
        frames: number of video frames, 4n + 1.
        height: height in pixels, a multiple of 16.
        width: width in pixels, a multiple of 16.
        batch: number of videos.

    Raises:
        VideoError: see `check_geometry`.
    """
    check_geometry(frames, height, width)
    return (batch, LATENT_CHANNELS, latent_frames(frames), height // SPACE_STRIDE, width // SPACE_STRIDE)


def frames_to_unit(frames_THWC: Tensor) -> Tensor:
    """Convert uint8 frames `[T, H, W, 3]` to float32 `[1, T, 3, H, W]` in [0, 1], the input of a VAE's encoder."""
    return rearrange(frames_THWC, "t h w c -> 1 t c h w").float() / 255


def unit_to_frames(video_BTCHW: Tensor) -> Tensor:
    """Convert a decoded video `[1, T, 3, H, W]` to uint8 frames `[T, H, W, 3]`. Values are clamped to [0, 1] first."""
    return rearrange((video_BTCHW.float().clamp(0, 1) * 255).round().to(torch.uint8), "1 t c h w -> t h w c")
