"""EfficientNet-lite0 (ImageNet): features of pictures, from the layer before its classes."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .others import Features

# Repeats and stride of each stage. Kernels and widths are those of the weights.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_EPSILON = 1e-3
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetLite0(nn.Module):
    """Returns the average of the last feature map."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights.

        Args:
            weights: the state dict of efficientnet-lite-pytorch.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        self._names = set(weights)
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "__"), value)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Return features `[N, 1280]` of uint8 pictures `[N, 3, 224, 224]`."""
        x = (pictures.float() / 255 - self.mean) / self.deviation
        x = F.relu6(self._conv(x, "_conv_stem", "_bn0", 2))
        number = 0
        for repeats, stride in _STAGES:
            for repeat in range(repeats):
                x = self._block(x, f"_blocks.{number}", stride if repeat == 0 else 1)
                number += 1
        return F.relu6(self._conv(x, "_conv_head", "_bn1")).mean((2, 3))

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        y = x
        if f"{name}._expand_conv.weight" in self._names:
            y = F.relu6(self._conv(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = F.relu6(self._conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = self._conv(y, f"{name}._project_conv", f"{name}._bn2")
        return x + y if stride == 1 and x.shape == y.shape else y

    def _conv(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = self._weight(f"{conv}.weight")
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        # TensorFlow's padding: as much as needed, and the odd pixel at the end.
        pad = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        x = F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))
        mean, variance, scale, shift = (
            self._weight(f"{norm}.{part}") for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        return F.batch_norm(x, mean, variance, scale, shift, eps=_EPSILON)

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "__"))


def load_efficientnet(path: Path, device: torch.device) -> Features:
    """Load EfficientNet-lite0.

    Args:
        path: `efficientnet-lite0-57934424.pth`.
        device: where it computes.

    Returns:
        A function from uint8 pictures `[N, 3, 224, 224]` to features `[N, 1280]`.
    """
    network = EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True)).to(device)
    return lambda pictures: network(pictures.to(device)).cpu()
