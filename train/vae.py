"""The video autoencoders the trainer can use, behind one protocol, all in the network's latent scale."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from einops import rearrange
from torch import Tensor

from magicdistill_core.checkpoint import file_sha256, read_metadata
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.hunyuan_video import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE, check_geometry
from magicdistill_core.taehv import load_taehv

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo


class Vae(Protocol):
    """Frames in [0, 1] to latents in the network's scale and back; inputs lie on the VAE's device."""

    def encode(self, frames: Tensor, /) -> Tensor:
        """`[B, 4n + 1, 3, H, W]` to `[B, 16, n + 1, H / 8, W / 8]`."""

    def encode_image(self, images: Tensor, /) -> Tensor:
        """`[B, 3, H, W]` to `[B, 16, 1, H / 8, W / 8]`."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """`[B, 16, n + 1, h, w]` to `[B, 4n + 1, 3, 8h, 8w]` in [0, 1]."""


class HunyuanVideoVae:
    """The full HunyuanVideo VAE of diffusers, tiled; its posterior's mode is taken, so that encoding is repeatable."""

    def __init__(self, model: "AutoencoderKLHunyuanVideo") -> None:
        self._model = model.eval().requires_grad_(False)
        self._model.enable_tiling()
        self._scale: float = model.config.scaling_factor

    @torch.no_grad()
    def encode(self, frames: Tensor, /) -> Tensor:
        """As `Vae.encode`.

        Raises:
            VideoError: if the geometry does not fit.
        """
        check_geometry(frames.shape[1], frames.shape[3], frames.shape[4])
        signed = rearrange(frames, "b t c h w -> b c t h w").to(self._model.dtype) * 2 - 1
        return self._model.encode(signed).latent_dist.mode().float() * self._scale

    def encode_image(self, images: Tensor, /) -> Tensor:
        """As `Vae.encode_image`."""
        return self.encode(images[:, None])

    @torch.no_grad()
    def decode(self, latents: Tensor, /) -> Tensor:
        """As `Vae.decode`."""
        signed = self._model.decode((latents / self._scale).to(self._model.dtype)).sample
        return rearrange((signed.float() / 2 + 0.5).clamp(0, 1), "b c t h w -> b t c h w")


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> Vae:
    """Load a VAE: a TAEHV-layout safetensors file, or a diffusers `AutoencoderKLHunyuanVideo` folder.

    The diffusers VAE runs in float32 on a CPU and in float16, its release's dtype, elsewhere.

    Raises:
        MagicDistillError: if it is neither, damaged, a pickle, or has other latents than HunyuanVideo's.
    """
    path = Path(path)
    if path.is_dir():
        return HunyuanVideoVae(_load_diffusers(path, torch.device(device)))
    read_metadata(path)  # refuses absent files, pickles and damage in our own words
    return load_taehv(path).requires_grad_(False).to(device)


def _load_diffusers(folder: Path, device: torch.device) -> "AutoencoderKLHunyuanVideo":
    # Imported here: it takes seconds, and a TAEHV file needs none of it.
    from diffusers import AutoencoderKLHunyuanVideo

    advice = "Expected the vae folder of a diffusers HunyuanVideo model (config.json and safetensors weights)."
    try:
        kind = AutoencoderKLHunyuanVideo.load_config(folder, local_files_only=True).get("_class_name")
        if kind != "AutoencoderKLHunyuanVideo":
            raise CheckpointError(f"{folder} holds a {kind}, which is no HunyuanVideo VAE. {advice}")
        model = AutoencoderKLHunyuanVideo.from_pretrained(
            folder,
            torch_dtype=torch.float32 if device.type == "cpu" else torch.float16,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"The VAE in {folder} cannot be loaded ({error}). {advice}") from error
    config = model.config
    found = (config.latent_channels, config.temporal_compression_ratio, config.spatial_compression_ratio)
    if found != (LATENT_CHANNELS, TIME_STRIDE, SPACE_STRIDE):
        raise CheckpointError(
            f"The VAE in {folder} has (channels, time stride, space stride) {found}, expected "
            f"{(LATENT_CHANNELS, TIME_STRIDE, SPACE_STRIDE)}. {advice}"
        )
    return model.to(device)


def vae_sha256(path: str | Path) -> str:
    """What a dataset records of its VAE: the sha256 of the file, or of the hashes of a folder's files by name.

    Raises:
        CheckpointError: if there is nothing at the path.
    """
    path = Path(path)
    if not path.is_dir():
        read_metadata(path)
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.json"), *path.glob("*.safetensors")]):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
