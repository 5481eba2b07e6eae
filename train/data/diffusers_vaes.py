"""The video autoencoders of the releases, through diffusers.

Encoding uses the mode of the posterior, so the same frames always have the same latents. Images, and all videos of Wan,
are encoded and decoded in one piece, as in ComfyUI. HunyuanVideo's videos are cut into parts along time, as in its
release, and into tiles of the picture only where the memory needs it.
"""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn

from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.families import wan
from magicdistill_core.families.hunyuan_video import ARCHITECTURE
from magicdistill_core.geometry import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE, check_geometry, video_frames

from .free_memory import free_bytes

logger = logging.getLogger(__name__)

_ADVICE = "Expected the vae folder of a diffusers HunyuanVideo or Wan 2.1 model (config.json and safetensors weights)."
# The ways to cut a video of HunyuanVideo, the best one first: frames of a part, and whether the picture is cut into
# tiles of 256 pixels. The release's parts have 64 frames. Parts and tiles overlap by a quarter.
_WAYS = ((64, False), (64, True), (16, True))
_TILE = 256
# Tensors of the first block's size that the autoencoder holds at once, estimated from its code: the block's input of
# twice the channels, its normalised and padded copies, and its output.
_TENSORS_AT_ONCE = 8


class _DiffusersVae(ABC):
    """The shared part of the VAEs: frames in [0, 1] become the autoencoder's [-1, 1] and its dtype."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        # One clip of a batch after the other.
        self._model.enable_slicing()

    @torch.no_grad()
    def encode(self, frames: Tensor, /) -> Tensor:
        """Encode clips; see `Vae.encode`.

        Args:
            frames: `[B, 4n + 1, 3, H, W]` in [0, 1].

        Returns:
            The mode of the posterior, `[B, 16, n + 1, H / 8, W / 8]` in float32.

        Raises:
            VideoError: if the geometry does not fit.
        """
        check_geometry(frames.shape[1], frames.shape[3], frames.shape[4])
        self._choose_way(frames.shape[1], frames.shape[3], frames.shape[4])
        signed = rearrange(frames, "b t c h w -> b c t h w").to(self._model.dtype) * 2 - 1
        return self._scaled(self._model.encode(signed).latent_dist.mode().float())

    def encode_image(self, images: Tensor, /) -> Tensor:
        """Encode still images; see `Vae.encode_image`."""
        return self.encode(images[:, None])

    @torch.no_grad()
    def decode(self, latents: Tensor, /) -> Tensor:
        """Decode latents; see `Vae.decode`."""
        rows, columns = (SPACE_STRIDE * side for side in latents.shape[-2:])
        self._choose_way(video_frames(latents.shape[2]), rows, columns)
        signed = self._model.decode(self._raw(latents).to(self._model.dtype)).sample
        return rearrange((signed.float() / 2 + 0.5).clamp(0, 1), "b c t h w -> b t c h w")

    @abstractmethod
    def _choose_way(self, frames: int, height: int, width: int) -> None:
        """Decide whether the next clip, of this size in frames and pixels, is computed in parts."""

    @abstractmethod
    def _scaled(self, raw: Tensor) -> Tensor:
        """Return the autoencoder's latents in the network's scale."""

    @abstractmethod
    def _raw(self, latents: Tensor) -> Tensor:
        """Return latents of the network in the autoencoder's scale; the inverse of `_scaled`."""


class HunyuanVideoVae(_DiffusersVae):
    """HunyuanVideo's VAE. The network's latents are the VAE's times one factor.

    It computes in float32 on a CPU, elsewhere in float16, the dtype of its release.
    """

    architecture: ClassVar[str] = ARCHITECTURE.name

    def __init__(self, model: Any) -> None:
        """Freeze an `AutoencoderKLHunyuanVideo`, which is on its device already."""
        super().__init__(model)
        self._ways: dict[tuple[int, int, int], tuple[int, bool]] = {}

    def _choose_way(self, frames: int, height: int, width: int) -> None:
        # Remembered, so that all clips of a dataset are encoded alike.
        size = (frames, height, width)
        if size not in self._ways:
            self._ways[size] = self._first_that_fits(size)
        part, tiled = self._ways[size]
        self._model.use_tiling = tiled
        self._model.tile_sample_min_num_frames, self._model.tile_sample_stride_num_frames = part, part * 3 // 4

    def _first_that_fits(self, size: tuple[int, int, int]) -> tuple[int, bool]:
        frames, height, width = size
        bytes_of_frame = self._model.config.block_out_channels[0] * self._model.dtype.itemsize * _TENSORS_AT_ONCE
        free = free_bytes(self._model.device)
        for part, tiled in _WAYS:
            rows, columns = (min(side, _TILE) if tiled else side for side in (height, width))
            # Each part also has the frame before it.
            if min(frames, part + 1) * rows * columns * bytes_of_frame <= free:
                break
        if tiled and max(height, width) > _TILE:
            logger.warning(
                "The VAE takes clips of %d frames of %d x %d in tiles of %d pixels and parts of %d frames: only %.1f "
                "GB are free. Latents and pictures differ a little from those in one piece",
                *(frames, width, height, _TILE, part, free / 1e9),
            )
        return part, tiled

    def _scaled(self, raw: Tensor) -> Tensor:
        return raw * self._model.config.scaling_factor

    def _raw(self, latents: Tensor) -> Tensor:
        return latents / self._model.config.scaling_factor


class WanVae(_DiffusersVae):
    """Wan 2.1's VAE. The network's latents are normalised per channel. It computes in float32, like its release."""

    architecture: ClassVar[str] = wan.ARCHITECTURE.name

    def _choose_way(self, frames: int, height: int, width: int) -> None:
        """Do nothing: this autoencoder itself goes through a clip four frames at a time, with exact results."""

    def _scaled(self, raw: Tensor) -> Tensor:
        return wan.normalised(raw)

    def _raw(self, latents: Tensor) -> Tensor:
        return wan.denormalised(latents)


def load_diffusers_vae(folder: Path, device: torch.device) -> HunyuanVideoVae | WanVae:
    """Load a diffusers `AutoencoderKLHunyuanVideo` or `AutoencoderKLWan`.

    Args:
        folder: the `vae` folder of a diffusers model.
        device: device of the VAE.

    Raises:
        CheckpointError: if the folder holds neither or is damaged, or its latents do not fit the network.
    """
    half = torch.float32 if device.type == "cpu" else torch.float16
    kinds: dict[str, tuple[type[HunyuanVideoVae] | type[WanVae], Any, torch.dtype]] = {
        "AutoencoderKLHunyuanVideo": (HunyuanVideoVae, AutoencoderKLHunyuanVideo, half),
        "AutoencoderKLWan": (WanVae, AutoencoderKLWan, torch.float32),
    }
    try:
        kind = AutoencoderKLWan.load_config(folder, local_files_only=True).get("_class_name")
        if kind not in kinds:
            raise CheckpointError(f"{folder} holds a {kind}, which is not a known video VAE. {_ADVICE}")
        wrapper, network, dtype = kinds[kind]
        model: nn.Module = network.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"The VAE in {folder} cannot be loaded ({cause(error)}). {_ADVICE}") from error
    config: Any = model.config
    found = (
        (config.latent_channels, config.temporal_compression_ratio, config.spatial_compression_ratio)
        if wrapper is HunyuanVideoVae
        else (config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial)
    )
    if found != (LATENT_CHANNELS, TIME_STRIDE, SPACE_STRIDE):
        raise CheckpointError(
            f"The VAE in {folder} has (channels, time stride, space stride) {found}, expected "
            f"{(LATENT_CHANNELS, TIME_STRIDE, SPACE_STRIDE)}. {_ADVICE}"
        )
    return wrapper(model.to(device))
