"""The file of the pocket autoencoder: fp16 in the TAEHV layout, its decoder on a grid that packs well."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.files import atomic_file
from magicdistill_core.taehv import TAEHV

# 0.14 dB less than fp16's own 11 bits.
_DECODER_BITS = 9


def on_grid(weight: Tensor, bits: int = _DECODER_BITS) -> Tensor:
    """A convolution's weight rounded to a grid of so many bits per output channel, its step a power of two.

    Such numbers are exact in fp16 and pack into three quarters of the space, which a repository keeps forever.
    """
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True).clamp_min(1e-8)
    step = torch.exp2(largest.log2().ceil() - (bits - 1))
    return (weight / step).round() * step


def export_vae(model: TAEHV, path: Path) -> None:
    """Write the fp16 file that ComfyUI's VAE loader recognises (fp16 is how it tells HunyuanVideo's latent scale).

    The decoder's convolutions lie on a grid, see `on_grid`; the encoder, whose latents others are trained on, does not.
    """
    state = {
        key: on_grid(value.float()) if key.startswith("decoder.") and value.ndim == 4 else value
        for key, value in model.state_dict().items()
    }
    with atomic_file(path) as temporary:
        save_file({key: value.half().cpu().contiguous() for key, value in state.items()}, temporary)
