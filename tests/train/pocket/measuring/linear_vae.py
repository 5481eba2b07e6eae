"""A video autoencoder without weights, for tests of what uses one: cells of 8 x 8 pixels, and every fourth frame."""

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.families.hunyuan_video import ARCHITECTURE
from magicdistill_core.geometry import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE


class LinearVae:
    """Latents are the mean colours of cells of every fourth frame; the other channels are 0."""

    architecture = ARCHITECTURE.name

    def encode(self, frames: Tensor) -> Tensor:
        cells = F.avg_pool2d(frames[:, ::TIME_STRIDE].flatten(0, 1), SPACE_STRIDE)
        colors = cells.unflatten(0, (len(frames), -1)).transpose(1, 2)
        return F.pad(colors, (0, 0, 0, 0, 0, 0, 0, LATENT_CHANNELS - 3))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode(images[:, None])

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents[:, :3].transpose(1, 2)
        times = [0, *(1 + n for n in range(frames.shape[1] - 1) for _ in range(TIME_STRIDE))]
        grown = F.interpolate(frames[:, times].flatten(0, 1), scale_factor=SPACE_STRIDE, mode="bilinear")
        return torch.clamp(grown.unflatten(0, (len(latents), -1)), 0, 1)
