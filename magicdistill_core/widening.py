"""Add new inputs to a trained network without changing its output at first.

The functions take and return state dicts in the file layout. Unchanged tensors are shared, not copied.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CheckpointError
from .families.hunyuan_video import CONCAT_CHANNELS
from .geometry import LATENT_CHANNELS

_PATCH_EMBED = "img_in.proj.weight"
_TIME, _GUIDANCE = "time_in.mlp", "guidance_in.mlp"


def widen_to_image(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return a text-to-video network's weights with a start image input: 2C + 1 instead of C input channels.

    Only the patch embedding is widened. The weights of the first C channels are copied, the new ones are zero (Magic
    1-For-1, Sec. 3.1). The velocity therefore does not depend on the image and the mask until training changes these
    weights.

    Args:
        state: the network's weights in the file layout of HunyuanVideo.
        source: the file's name for error messages.

    Raises:
        CheckpointError: unless the patch embedding takes 16 channels.
    """
    weight = state[_PATCH_EMBED]
    if weight.shape[1] != LATENT_CHANNELS:
        raise CheckpointError(
            f"{source} takes {weight.shape[1]} input channels. Only a text-to-video network with {LATENT_CHANNELS} "
            f"input channels can be widened. Use this network without widening, or choose a text-to-video network."
        )
    rest = weight.new_zeros(weight.shape[0], CONCAT_CHANNELS - LATENT_CHANNELS, *weight.shape[2:])
    return {**state, _PATCH_EMBED: torch.cat([weight, rest], dim=1)}


def add_guidance_embedding(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return a network's weights with a guidance embedding: the guidance scale becomes an input next to the timestep.

    A network that already has a guidance embedding is returned unchanged (as a new dictionary). The new embedding's
    first layer is a copy of the timestep embedding's, which is trained for numbers of this range. Its output layer is
    zero, so it adds nothing to the modulation until it is trained.

    Args:
        state: the network's weights in the file layout.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if the architecture has no guidance embedding (Wan).
    """
    if f"{_GUIDANCE}.0.weight" in state:
        return dict(state)
    if f"{_TIME}.0.weight" not in state:
        raise CheckpointError(
            f"The architecture of {source} has no guidance input. Use a HunyuanVideo or Magic 1-For-1 network."
        )
    added = {}
    for leaf in ("weight", "bias"):
        added[f"{_GUIDANCE}.0.{leaf}"] = state[f"{_TIME}.0.{leaf}"].clone()
        added[f"{_GUIDANCE}.2.{leaf}"] = torch.zeros_like(state[f"{_TIME}.2.{leaf}"])
    return {**state, **added}
