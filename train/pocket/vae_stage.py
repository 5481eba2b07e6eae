"""What the stages of the pocket autoencoder's training share: settings, batches, precision, and measurements."""

import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from magicdistill_core.geometry import SIDE_MULTIPLE, unit_to_frames
from magicdistill_core.media.contact_sheet import contact_sheet

from ..config.sections import Positive
from ..distributed import available_device
from ..methods.draws import keyed_generator
from ..run_folder import METRICS_FILE, VALIDATION
from ..watch.log import read_lines
from ..watch.plots import plot_losses
from .dataset import PortraitFolder, held_out_clips, to_unit_frames
from .stage import StageConfig
from .vae_losses import psnr

logger = logging.getLogger(__name__)

_SHOWN = 4

Share = Annotated[float, Field(ge=0)]


class CropConfig(StageConfig):
    """The settings of every stage: batches, loss weights and measurements."""

    batch: Positive = Field(3, description="Clips per update.")
    crop: int = Field(
        64,
        ge=SIDE_MULTIPLE,
        multiple_of=SIDE_MULTIPLE,
        description="Side of the square crop of a clip, in pixels.",
    )
    frames: Positive = Field(9, description="Frames per clip, 4n + 1.")
    edge_weight: Share = Field(0.5, description="Weight of the L1 loss of spatial gradients.")
    coarse_weight: Share = Field(0.5, description="Weight of the L1 loss of 4x reduced pictures.")
    latent_noise: Share = Field(0.05, description="Standard deviation of the noise on the decoder's input.")
    held_out: Positive = Field(16, description="Held-out clips per measurement.")


def sample_batch(folder: PortraitFolder, config: CropConfig, update: int, batch: int | None = None) -> Tensor:
    """Return the clips of one update: float `[B, T, 3, crop, crop]`, random crops, mirrored with probability 1/2.

    Args:
        folder: the portraits.
        config: number and size of the crops, and the seed.
        update: number of the update; the same number draws the same crops.
        batch: number of clips; None takes `config.batch`.
    """
    generator = keyed_generator(config.seed, "clips", update)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    clips = []
    for _ in range(batch or config.batch):
        clip = folder.clip(draw(len(folder)))
        start = draw(clip.shape[0] - config.frames + 1)
        top, left = (draw(side - config.crop + 1) for side in clip.shape[1:3])
        clip = clip[start : start + config.frames, top : top + config.crop, left : left + config.crop]
        clips.append(clip.flip(2) if draw(2) else clip)
    return to_unit_frames(torch.stack(clips))


def stage_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    # All updates have the same shapes, so cuDNN needs to search for the fastest convolutions only once.
    torch.backends.cudnn.benchmark = True
    return available_device()


def stage_precision(config: CropConfig, device: torch.device) -> torch.autocast:
    """Return the context that computes in the precision of the settings.

    Args:
        config: the settings of the stage.
        device: device of the network.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def held_out_frames(config: CropConfig, folder: PortraitFolder) -> Tensor:
    """Return held-out clips `[N, T, 3, H, W]` in [0, 1] on the device of the training.

    Args:
        config: the number of clips.
        folder: the training portraits, for length and size of the clips.
    """
    clips = held_out_clips(config.held_out, folder.config.frames, folder.config.size)
    return to_unit_frames(clips).to(available_device())


def noisy_latents(latents: Tensor, config: CropConfig, update: int) -> Tensor:
    """Return latents with a little noise, which makes similar latents decode to similar pictures.

    Args:
        latents: `[B, 16, t, h, w]`.
        config: standard deviation and seed of the noise.
        update: number of the update; the same number draws the same noise.
    """
    noise = torch.randn(latents.shape, generator=keyed_generator(config.seed, "noise", update))
    return latents + config.latent_noise * noise.to(latents.device)


def measure(run_folder: Path, made: Tensor, held_out: Tensor, update: int) -> dict[str, float]:
    """Return the held-out PSNR in dB. Also write the loss curves and a contact sheet of clips and reconstructions.

    Args:
        run_folder: the run folder of the stage.
        made: the reconstructions `[N, T, 3, H, W]`.
        held_out: the original clips.
        update: number of the update.
    """
    quality = psnr(made, held_out)
    logger.info("%s, update %d: held-out PSNR %.2f dB", run_folder.name, update, quality)
    pairs = zip(held_out[:_SHOWN], made[:_SHOWN], strict=True)
    rows = [unit_to_frames(clip[None].cpu()) for pair in pairs for clip in pair]
    labels = ["held out", "reconstruction"] * (len(rows) // 2)
    sheets = run_folder / VALIDATION
    sheets.mkdir(exist_ok=True)
    contact_sheet(rows, labels, columns=9).save(sheets / f"update-{update:06d}.png")
    plot_losses(read_lines(run_folder / METRICS_FILE), [], run_folder / "curves.png")
    return {"psnr": quality}
