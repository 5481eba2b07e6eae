"""Video autoencoders (VAEs) behind one protocol. All use the network's latent scale."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from magicdistill_core.safetensors_file import read_metadata
from magicdistill_core.taehv import load_taehv


class Vae(Protocol):
    """A video autoencoder between frames in [0, 1] and latents in the network's scale. Inputs must be on its device."""

    @property
    def architecture(self) -> str:
        """Name of the `families.base.Architecture` that the latents are for."""

    def encode(self, frames: Tensor, /) -> Tensor:
        """Encode frames `[B, 4n + 1, 3, H, W]` to latents `[B, 16, n + 1, H / 8, W / 8]`."""

    def encode_image(self, images: Tensor, /) -> Tensor:
        """Encode still images `[B, 3, H, W]` to latents `[B, 16, 1, H / 8, W / 8]`."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """Decode latents `[B, 16, n + 1, h, w]` to frames `[B, 4n + 1, 3, 8h, 8w]` in [0, 1]."""


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> Vae:
    """Load a VAE.

    Args:
        path: a safetensors file in the TAEHV layout (HunyuanVideo's latents), or a diffusers folder.
        device: device of the VAE.

    Raises:
        MagicDistillError: if the VAE is neither, is damaged or a pickle, or its latents fit no known family.
    """
    path = Path(path)
    if path.is_dir():
        # Imported here because it takes seconds, and a TAEHV file does not need it.
        from .diffusers_vaes import load_diffusers_vae

        return load_diffusers_vae(path, torch.device(device))
    read_metadata(path)  # refuses absent files, pickles and damage with our own messages
    # A CPU computes the convolutions much faster in this memory format.
    vae = load_taehv(path).requires_grad_(False).to(device)
    torch.nn.utils.convert_conv2d_weight_memory_format(vae, torch.channels_last)
    return vae
