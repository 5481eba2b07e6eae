"""RIFE v4 (Huang et al., 2022): the frame in the middle of two frames, by estimated flow."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .others import Interpolate

# Each block works at this fraction of the picture's size.
_SCALES = (8, 4, 2, 1)


class Rife(nn.Module):
    """Four blocks that refine flow and mask from coarse to fine."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights.

        Args:
            weights: `blockN.…` for N from 0 to 3.
        """
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the frame in the middle, `[N, 3, H, W]` in [0, 1].

        Args:
            first: `[N, 3, H, W]` in [0, 1], with sides that are multiples of 32.
            second: the frame after it.
        """
        time = torch.full_like(first[:, :1], 0.5)
        flow, mask = self._block(0, torch.cat([first, second, time], 1), None, _SCALES[0])
        for number, scale in enumerate(_SCALES[1:], start=1):
            warped = torch.cat([warp(first, flow[:, :2]), warp(second, flow[:, 2:]), time, mask], 1)
            more_flow, more_mask = self._block(number, warped, flow, scale)
            flow, mask = flow + more_flow, mask + more_mask
        share = mask.sigmoid()
        return warp(first, flow[:, :2]) * share + warp(second, flow[:, 2:]) * (1 - share)

    def _block(self, number: int, x: Tensor, flow: Tensor | None, scale: int) -> tuple[Tensor, Tensor]:
        name = f"block{number}"
        x = _resized(x, 1 / scale)
        if flow is not None:
            x = torch.cat([x, _resized(flow, 1 / scale) / scale], 1)
        for layer in range(2):
            x = self._conv(x, f"{name}_conv0_{layer}", 2)
        inner = x
        for layer in range(8):
            inner = self._conv(inner, f"{name}_convblock_{layer}", 1)
        weight, bias = self.get_buffer(f"{name}_lastconv_weight"), self.get_buffer(f"{name}_lastconv_bias")
        out = _resized(F.conv_transpose2d(inner + x, weight, bias, stride=2, padding=1), 2 * scale)
        return out[:, :4] * (2 * scale), out[:, 4:5]

    def _conv(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_0_weight"), self.get_buffer(f"{name}_0_bias")
        return F.prelu(F.conv2d(x, weight, bias, stride, padding=1), self.get_buffer(f"{name}_1_weight"))


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """Return a picture sampled at `place + flow`, with repeated edges.

    Args:
        picture: `[N, C, H, W]`.
        flow: right and down, in pixels, `[N, 2, H, W]`.
    """
    height, width = picture.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height, device=flow.device),
        torch.linspace(-1, 1, width, device=flow.device),
        indexing="ij",
    )
    x = columns + flow[:, 0] * (2 / max(width - 1, 1))
    y = rows + flow[:, 1] * (2 / max(height - 1, 1))
    return F.grid_sample(picture, torch.stack([x, y], -1), "bilinear", "border", align_corners=True)


def _resized(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def load_rife(path: Path, device: torch.device) -> Interpolate:
    """Load RIFE v4.

    Args:
        path: `flownet.pkl`.
        device: where it computes.
    """
    weights = torch.load(path, map_location="cpu", weights_only=True)
    blocks = {name.removeprefix("module."): value for name, value in weights.items() if ".block" in f".{name}"}
    network = Rife({name: value for name, value in blocks.items() if name.startswith("block")}).to(device)
    return lambda first, second: network(first.to(device), second.to(device)).cpu()
