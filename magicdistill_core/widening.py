"""New inputs for a trained network, added so that at first they change nothing.

Functions of state dicts in the file layout; what they return shares the tensors that they leave as they are.
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
    """A text-to-video network that takes a start image as well: patch embedding from C to 2C + 1 input channels.

    The first C channels are copied and the rest are zero (Magic 1-For-1, Sec. 3.1), so that the velocity does not
    depend on image and mask until it has been trained to.

    Raises:
        CheckpointError: unless the patch embedding takes 16 channels.
    """
    weight = state[_PATCH_EMBED]
    if weight.shape[1] != LATENT_CHANNELS:
        raise CheckpointError(
            f"{source} takes {weight.shape[1]} input channels; only a text-to-video network, which takes "
            f"{LATENT_CHANNELS}, can be widened to a start image. Use it without widening, or name a text-to-video one."
        )
    rest = weight.new_zeros(weight.shape[0], CONCAT_CHANNELS - LATENT_CHANNELS, *weight.shape[2:])
    return {**state, _PATCH_EMBED: torch.cat([weight, rest], dim=1)}


def add_guidance_embedding(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A network that takes its guidance scale as an input, beside the timestep; one that does so already stays.

    The embedding begins as the timestep's first layer, which knows such numbers, before a zero output layer: until that
    has been trained, nothing is added to the modulation.

    Raises:
        CheckpointError: if a network of this kind has no place for one.
    """
    if f"{_GUIDANCE}.0.weight" in state:
        return dict(state)
    if f"{_TIME}.0.weight" not in state:
        raise CheckpointError(
            f"{source} is of a kind that takes no guidance as an input. Use a HunyuanVideo or Magic 1-For-1 network."
        )
    added = {}
    for leaf in ("weight", "bias"):
        added[f"{_GUIDANCE}.0.{leaf}"] = state[f"{_TIME}.0.{leaf}"].clone()
        added[f"{_GUIDANCE}.2.{leaf}"] = torch.zeros_like(state[f"{_TIME}.2.{leaf}"])
    return {**state, **added}
