"""Write the file of the pocket autoencoder: fp16, TAEHV layout, decoder weights rounded so that they compress well."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.files import atomic_file
from magicdistill_core.taehv import TAEHV

# Costs 0.14 dB compared with the 11 bits of fp16.
_DECODER_BITS = 9


def on_grid(weight: Tensor, bits: int = _DECODER_BITS) -> Tensor:
    """Return a convolution's weight rounded to `bits` bits per output channel. The step of the grid is a power of two.

    fp16 stores these numbers exactly. They compress to three quarters of the size, which keeps the repository small.

    Args:
        weight: the weight, output channels first.
        bits: bits per number, sign included.
    """
    largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True).clamp_min(1e-8)
    step = torch.exp2(largest.log2().ceil() - (bits - 1))
    return (weight / step).round() * step


def export_vae(model: TAEHV, path: Path) -> None:
    """Write the fp16 file that ComfyUI's VAE loader recognises. ComfyUI infers HunyuanVideo's latent scale from fp16.

    The decoder's convolutions are rounded to a grid, see `on_grid`. The encoder is not rounded, because diffusion
    models are trained on its latents.

    Args:
        model: the trained autoencoder.
        path: the file to write.
    """
    state = {
        key: on_grid(value.float()) if key.startswith("decoder.") and value.ndim == 4 else value
        for key, value in model.state_dict().items()
    }
    with atomic_file(path) as temporary:
        save_file({key: value.half().cpu().contiguous() for key, value in state.items()}, temporary)
