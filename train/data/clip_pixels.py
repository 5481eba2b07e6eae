"""Images for CLIP's vision models, resized as CLIP's own processor and ComfyUI do it."""

import torch.nn.functional as F
from torch import Tensor

# CLIP normalises its images by these.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(images: Tensor, side: int, *, middle: bool) -> Tensor:
    """Resize images to CLIP's square, round them to 8 bits and normalise them.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        side: width and height of the square in pixels.
        middle: True keeps the middle of the image (resized by its shorter side), like transformers'
            `CLIPImageProcessor` and ComfyUI's CLIP Vision Encode with crop "center". False squeezes the complete image
            into the square, like Wan 2.1's release and ComfyUI's crop "none".

    Returns:
        `[B, 3, side, side]` in float32.
    """
    rows, columns = images.shape[-2:]
    size = (side, side)
    if middle:
        shorter = min(rows, columns)
        size = (side * rows // shorter, side * columns // shorter)
    square = images.float()
    if (rows, columns) != size:
        square = F.interpolate(square, size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = square[..., top : top + side, left : left + side]
    levels = (square * 255).clamp(0, 255).round() / 255
    mean, std = (levels.new_tensor(values).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (levels - mean) / std
