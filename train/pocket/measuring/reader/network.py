"""The network of the reader: a small residual CNN on single frames of 96 x 96 pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.pocket.files import SIZE

from .quantities import IDENTITY, MOTION

# Channels of the feature maps at 1/2, 1/4 and 1/8 of the picture.
_WIDTHS = (24, 48, 64)
_GROUPS = 8
_LAYOUT_CHANNELS = 24
_LAYOUT = 64


class _Block(nn.Module):
    """Two convolutions with a residual connection. `[N, C, H, W]` in and out.

    Args:
        width: number of channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = (nn.GroupNorm(_GROUPS, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


def _down(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(_GROUPS, n_out), nn.ReLU())


class ReaderNetwork(nn.Module):
    """The network. It returns standardised quantities; the buffers convert them to the units of the renderer.

    Its features are the mean and the maximum of every channel over the picture, and a vector that knows where things
    are. The maximum lets one small defect count as much as a large one.

    Attributes:
        motion_mean, motion_std: of the motion over all people and frames, `[7]`.
        identity_mean, identity_std: of the attributes over all people, `[D]`.
        identity_scale: factor of each standardised attribute, so that distances up to 1 mean "the same person", `[D]`.
        whole_shift: added to the logit of "whole", so that a probability below 1/2 is rare for whole faces, `[]`.
    """

    motion_mean: Tensor
    motion_std: Tensor
    identity_mean: Tensor
    identity_std: Tensor
    identity_scale: Tensor
    whole_shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.body = nn.Sequential(
            _down(3, first, 5), _Block(first), _down(first, second, 3), _Block(second), _down(second, third, 3)
        )
        self.last = _Block(third)
        self.layout = nn.Sequential(
            _down(third, third, 3),
            nn.Conv2d(third, _LAYOUT_CHANNELS, 1),
            nn.Flatten(),
            nn.Linear(_LAYOUT_CHANNELS * (SIZE // 16) ** 2, _LAYOUT),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.feature_count, len(MOTION) + len(IDENTITY) + 1)
        for name, length in (("motion", len(MOTION)), ("identity", len(IDENTITY))):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))
        self.register_buffer("identity_scale", torch.ones(len(IDENTITY)))
        self.register_buffer("whole_shift", torch.zeros(()))

    @property
    def feature_count(self) -> int:
        """Length of the vector that `features` returns."""
        return 2 * _WIDTHS[-1] + _LAYOUT

    def features(self, frames: Tensor) -> Tensor:
        """Return the features of frames, `[N, feature_count]`.

        Args:
            frames: `[N, 3, 96, 96]` in [0, 1].
        """
        x: Tensor = self.last(self.body((frames - 0.5) * 4))
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3)), self.layout(x)], dim=1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return standardised motion `[N, 7]`, standardised identity `[N, D]`, and the logit of "whole" `[N]`.

        Args:
            frames: `[N, 3, 96, 96]` in [0, 1].
        """
        motion, identity, whole = self.head(self.features(frames)).split([len(MOTION), len(IDENTITY), 1], dim=1)
        return motion, identity, whole[:, 0]


def initialise(network: ReaderNetwork, generator: torch.Generator) -> None:
    """Draw the weights. Blocks start as the identity, and all outputs at their mean.

    Args:
        network: changed in place.
        generator: a CPU generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _Block):
            nn.init.zeros_(module.second_norm.weight)
    nn.init.zeros_(network.head.weight)
