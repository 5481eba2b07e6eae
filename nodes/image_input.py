"""Read an IMAGE from any node: any number type, gray, or with transparency."""

import torch
from torch import Tensor

from ..magicdistill_core.errors import VideoError

_CHANNELS = {1: "gray", 3: "RGB", 4: "RGB with alpha"}


def check_images(images: Tensor, what: str) -> None:
    """Check that a tensor is an IMAGE that `rgb` can convert.

    Args:
        images: the IMAGE.
        what: the name of the input for the error message.

    Raises:
        VideoError: if it has no picture or no pixels, another number of axes or channels, or another number type than
            floating point and uint8.
    """
    numbers = images.is_floating_point() or images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[-1] not in _CHANNELS or 0 in images.shape or not numbers:
        kinds = ", ".join(f"{count} ({kind})" for count, kind in _CHANNELS.items())
        raise VideoError(
            f"The IMAGE of {what} has the shape {list(images.shape)} and the number type {images.dtype}, expected "
            f"[pictures, height, width, channels] with at least one pixel, {kinds} channels, and floating point or "
            f"uint8. Connect the output of Load Image, VAE Decode or another node that outputs images."
        )


def rgb(pictures: Tensor) -> Tensor:
    """Convert pictures that `check_images` accepts to RGB in float32. Transparent parts become white.

    The trainer also lays transparent pictures on white (`read_image`).

    Args:
        pictures: `[..., H, W, C]` with 1, 3 or 4 channels, floating point in [0, 1], or uint8.

    Returns:
        `[..., H, W, 3]` in [0, 1].
    """
    levels = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()
    if levels.shape[-1] == 1:
        return levels.expand(*levels.shape[:-1], 3)
    if levels.shape[-1] == 3:
        return levels
    colours, alpha = levels[..., :3], levels[..., 3:].clamp(0, 1)
    return colours * alpha + (1 - alpha)
