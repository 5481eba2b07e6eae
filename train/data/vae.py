"""The video autoencoders the trainer can use, behind one protocol, all in the network's latent scale."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from magicdistill_core.safetensors_file import read_metadata
from magicdistill_core.taehv import load_taehv


class Vae(Protocol):
    """Frames in [0, 1] to latents in the network's scale and back; inputs lie on the VAE's device."""

    @property
    def architecture(self) -> str:
        """Whose latents they are: the name of a `families.base.Architecture`."""

    def encode(self, frames: Tensor, /) -> Tensor:
        """`[B, 4n + 1, 3, H, W]` to `[B, 16, n + 1, H / 8, W / 8]`."""

    def encode_image(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` to `[B, 16, 1, H / 8, W / 8]`."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """`[B, 16, n + 1, h, w]` to `[B, 4n + 1, 3, 8h, 8w]` in [0, 1]."""


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> Vae:
    """Load a VAE: a TAEHV-layout safetensors file (HunyuanVideo's latents), or a diffusers folder.

    Raises:
        MagicDistillError: if it is neither, damaged, a pickle, or has other latents than a known family's.
    """
    path = Path(path)
    if path.is_dir():
        # Imported here: it takes seconds, and a TAEHV file needs none of it.
        from .diffusers_vaes import load_diffusers_vae

        return load_diffusers_vae(path, torch.device(device))
    read_metadata(path)  # refuses absent files, pickles and damage in our own words
    return load_taehv(path).requires_grad_(False).to(device)
