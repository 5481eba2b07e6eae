"""DINO's ViT-B/16 (Caron et al., 2021), with its own interpolation of the position embeddings."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEADS = 12
_EPSILON = 1e-6
# DINO adds it to the number of patches before it divides, against rounding.
_OFFSET = 0.1


class Dino(nn.Module):
    """A vision transformer; its embedding is the class token after the last norm."""

    def __init__(self, weights: Mapping[str, Tensor], heads: int = _HEADS) -> None:
        """Take the weights.

        Args:
            weights: DINO's state dict.
            heads: number of attention heads.
        """
        super().__init__()
        self._heads = heads
        self._depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embeddings `[N, D]` of normalised pixels `[N, 3, H, W]`."""
        kernel = self._weight("patch_embed.proj.weight")
        patches = F.conv2d(pixels, kernel, self._weight("patch_embed.proj.bias"), stride=kernel.shape[-1])
        rows, columns = patches.shape[-2:]
        x = torch.cat(
            [self._weight("cls_token").expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        x = x + self._positions(rows, columns)
        for block in range(self._depth):
            x = x + self._attention(self._norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn")
            hidden = F.gelu(self._linear(self._norm(x, f"blocks.{block}.norm2"), f"blocks.{block}.mlp.fc1"))
            x = x + self._linear(hidden, f"blocks.{block}.mlp.fc2")
        return self._norm(x, "norm")[:, 0]

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), _EPSILON)

    def _attention(self, x: Tensor, name: str) -> Tensor:
        count, tokens, width = x.shape
        qkv = self._linear(x, f"{name}.qkv").view(count, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self._linear(mixed.transpose(1, 2).reshape(count, tokens, width), f"{name}.proj")

    def _positions(self, rows: int, columns: int) -> Tensor:
        positions = self._weight("pos_embed")
        side = math.isqrt(positions.shape[1] - 1)
        if rows == columns == side:
            return positions
        grid = positions[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + _OFFSET) / side, (columns + _OFFSET) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def load_dino(path: Path, device: torch.device) -> Dino:
    """Load DINO's ViT-B/16.

    Args:
        path: `dino_vitbase16_pretrain.pth`.
        device: where it computes.
    """
    return Dino(torch.load(path, map_location="cpu", weights_only=True)).to(device)
