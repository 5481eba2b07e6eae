"""RAFT's original weights (`raft-things.pth`) in torchvision's network."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_ITERATIONS = 20
_DIVISOR = 8
_NAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm([12])\.", r"\1.convnormrelu\2.1."),
    (r"update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"update_block\.mask\.2\.", "mask_predictor.conv."),
    (r"update_block\.encoder\.conv([cf])(\d)\.", lambda m: _motion(m)),
    (r"update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
)

Flow = Callable[[Tensor, Tensor], Tensor]
"""A function from two pictures `[1, 3, H, W]` in levels of 0 to 255 to the flow `[2, H, W]` in pixels."""


def _motion(match: re.Match[str]) -> str:
    return f"update_block.motion_encoder.conv{'corr' if match[1] == 'c' else 'flow'}{match[2]}.0."


def torchvision_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the original RAFT under torchvision's names.

    The original lists the norm of a downsampling layer twice; torchvision names it once.

    Args:
        weights: the original state dict, also with the prefix `module.`.
    """
    renamed = {}
    for name, value in weights.items():
        if ".norm3." in name:
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def load_raft(path: Path, device: torch.device) -> Flow:
    """Load RAFT.

    Args:
        path: `raft-things.pth`.
        device: where it computes.
    """
    return raft_flow(torch.load(path, map_location="cpu", weights_only=True), device)


def raft_flow(weights: Mapping[str, Tensor], device: torch.device) -> Flow:
    """Return RAFT's flow with 20 iterations; pictures are padded to multiples of 8 by repeating their edges.

    Args:
        weights: the original state dict.
        device: where it computes.
    """
    from torchvision.models.optical_flow import raft_large

    network = raft_large(weights=None)
    network.load_state_dict(torchvision_names(weights))
    network = network.eval().to(device)

    @torch.no_grad()
    def flow(first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        rows, columns = -height % _DIVISOR, -width % _DIVISOR
        edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        pair = [F.pad(2 * (picture / 255) - 1, edges, mode="replicate").to(device) for picture in (first, second)]
        # VBench does not cut the padding off before it looks for the longest vectors.
        return network(*pair, num_flow_updates=_ITERATIONS)[-1][0].cpu()

    return flow
