"""Embeddings of pictures by a CLIP_VISION of ComfyUI."""

from comfy.clip_vision import ClipVisionModel
from torch import Tensor


def picture_embeddings(clip_vision: ClipVisionModel, pictures: Tensor) -> Tensor:
    """Return the embeddings `[N, D]` of pictures, in float32 on the CPU; CLIP's are in its space of text and image.

    Args:
        clip_vision: the network.
        pictures: `[N, H, W, 3]` in [0, 1].
    """
    embeds: Tensor = clip_vision.encode_image(pictures)["image_embeds"]
    return embeds.float().cpu()
