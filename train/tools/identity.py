"""A network that compares the person in a frame with the portrait: CLIP's image embedding."""

from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.long_video.drift import Embedder

from ..data.clip_pixels import clip_pixels


def load_identity(folder: Path, device: torch.device | str = "cpu") -> Embedder:
    """Load CLIP's vision tower with its projection.

    Args:
        folder: a transformers folder of CLIP, complete or with its vision tower only.
        device: device of the network.

    Returns:
        A function from pictures `[N, 3, H, W]` in [0, 1] to embeddings `[N, D]` on the CPU.

    Raises:
        CheckpointError: if the folder holds no such network.
    """
    # Imported here because it takes seconds.
    from transformers import CLIPVisionModelWithProjection

    try:
        model = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The identity network in {folder} cannot be loaded ({cause(error)}). Expected a transformers folder of "
            f"CLIP, such as clip-vit-large-patch14, with safetensors weights."
        ) from error
    model = model.eval().to(device)

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        pixels = clip_pixels(pictures.to(device), model.config.image_size, middle=True)
        return torch.cat([model(part.to(model.dtype)).image_embeds.float().cpu() for part in pixels.split(16)])

    return embed
