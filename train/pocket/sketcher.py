"""Stage 1 of the pocket autoencoder's training: the encoder with a cheap substitute for the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.geometry import SPACE_STRIDE, TIME_STRIDE
from magicdistill_core.taehv import TAEHV, run_stack

from .linear_start import fit_readout, pair_latents, silence_branches, start_encoder

# The decoder's first level: soft clamp, convolution, relu and three memory blocks at the resolution of the latents.
SKETCH_LAYERS = 6
_SKETCH_WIDTH = 256


class Sketcher(nn.Module):
    """The autoencoder, and a 1 x 1 convolution that converts its first decoder level into pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = TAEHV()
        self.pixels = nn.Conv2d(_SKETCH_WIDTH, TIME_STRIDE * 3 * SPACE_STRIDE**2, 1)

    def sketch(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, 16, n + 1, h, w]` to frames `[B, 4n + 1, 3, H, W]` with the first decoder level only."""
        features = run_stack(self.vae.decoder[:SKETCH_LAYERS], latents.transpose(1, 2))
        frames = F.pixel_shuffle(self.pixels(features.flatten(0, 1)), SPACE_STRIDE)
        frames = frames.reshape(latents.shape[0], -1, 3, *frames.shape[-2:])
        return frames[:, TIME_STRIDE - 1 :]


def with_front(frames: Tensor) -> Tensor:
    """Prepend three copies of frame 0 to clips of 4n + 1 frames, as the autoencoder does.

    Args:
        frames: clips `[B, 4n + 1, 3, H, W]`.

    Returns:
        Clips `[B, 4n + 4, 3, H, W]`.
    """
    return torch.cat([frames[:, :1].expand(-1, TIME_STRIDE - 1, -1, -1, -1), frames], dim=1)


def start_sketcher(model: Sketcher, frames: Tensor) -> None:
    """Initialise stage 1 as a linear codec that is fitted to some clips.

    Args:
        model: the model, on the CPU; it is changed.
        frames: clips `[B, 4n + 1, 3, H, W]` in [0, 1].
    """
    padded = with_front(frames)
    start_encoder(model.vae, padded)
    pair_latents(model.vae.decoder[1])
    first_level = model.vae.decoder[:SKETCH_LAYERS]
    silence_branches(first_level)
    with torch.no_grad():
        features = run_stack(first_level, model.vae.encode(frames).transpose(1, 2)).flatten(0, 1)
        groups = padded.unflatten(1, (-1, TIME_STRIDE)).flatten(0, 1).flatten(1, 2)
        fit_readout(model.pixels, features, F.pixel_unshuffle(groups, SPACE_STRIDE))


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise the convolutions of a model with He initialisation and zero biases.

    Args:
        model: the model, on the CPU; it is changed.
        generator: draws the weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normalise_latents(vae: TAEHV, clips: Tensor) -> None:
    """Normalise the latents: fold their mean and standard deviation over some clips into the encoder's last layer.

    Over these clips, each channel then has exactly zero mean and unit variance. The decoder's first layer gets the
    inverse, which is exact except for the soft clamp between the two layers.

    Args:
        vae: the autoencoder; it is changed.
        clips: `[N, 4n + 1, 3, H, W]` in [0, 1], on the device of the autoencoder.
    """
    with torch.no_grad():
        samples = torch.cat([vae.encode(clip[None]) for clip in clips]).movedim(1, -1).flatten(0, -2)
        mean, std = samples.mean(dim=0), samples.std(dim=0)
        last, first = vae.encoder[-1], vae.decoder[1]
        assert isinstance(last, nn.Conv2d)
        assert isinstance(first, nn.Conv2d)
        assert last.bias is not None
        assert first.bias is not None
        last.weight.div_(std.view(-1, 1, 1, 1))
        last.bias.sub_(mean).div_(std)
        first.bias.add_((first.weight.sum(dim=(2, 3)) * mean).sum(dim=1))
        first.weight.mul_(std.view(1, -1, 1, 1))
