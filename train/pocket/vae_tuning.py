"""Fine-tune a finished pocket autoencoder, for example on portraits of another world.

First encoder and decoder together, then the decoder alone: its encoder is final, so a diffusion model can already be
trained on its latents.
"""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from magicdistill_core.taehv import TAEHV, load_taehv
from magicdistill_core.writable import check_output_file

from ..config.sections import OptimizerConfig, Positive
from ..folder_lock import folder_lock
from .dataset import PortraitFolder, to_unit_frames
from .sketcher import normalise_latents
from .stage import train_stage
from .vae_file import export_vae
from .vae_losses import latent_loss, psnr, reconstruct, reconstruction_loss
from .vae_stage import (
    CropConfig,
    Share,
    held_out_frames,
    measure,
    noisy_latents,
    sample_batch,
    stage_device,
    stage_precision,
)


class TuningConfig(CropConfig):
    """The settings of a fine-tuning."""

    updates: Positive = Field(2000, description="Total number of updates.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=2e-4, betas=(0.9, 0.99), warmup=50, final_lr=5e-7, decay=0.5), description="AdamW."
    )
    decoder_only: bool = Field(
        False, description="Leave the encoder unchanged, so that models that were trained on its latents stay valid."
    )
    latent_weight: Share = Field(
        0.003, description="Weight of the loss for zero mean and identity covariance. Unused with decoder_only."
    )
    normalise_clips: Positive = Field(
        64, description="Clips for the normalisation of the latents after training. Unused with decoder_only."
    )


def tune_vae(config: TuningConfig, start: Path, data: Path, run_folder: Path, out: Path) -> float:
    """Train a finished autoencoder further, or resume, and write the averaged autoencoder.

    Args:
        config: the settings.
        start: the autoencoder to start from, a file in the TAEHV layout.
        data: the folder of portraits.
        run_folder: the run folder.
        out: the file to write, in fp16.

    Returns:
        The PSNR on held-out clips in dB.

    Raises:
        FolderInUseError: if another process trains in `run_folder`.
        OutputError: if `run_folder` or `out` cannot be written.
        ConfigError: if the run was started with other settings.
        MagicDistillError: if `start` is no autoencoder in the TAEHV layout.
    """
    check_output_file(out)
    with folder_lock(run_folder, "magicdistill pocket train-vae"):
        device = stage_device()
        folder = PortraitFolder(data, device)
        model = load_taehv(start).float().requires_grad_(True).to(device)
        model.encoder.requires_grad_(not config.decoder_only)
        held_out = held_out_frames(config, folder)

        def loss(update: int) -> tuple[Tensor, dict[str, float]]:
            frames = sample_batch(folder, config, update)
            with stage_precision(config, device):
                with torch.set_grad_enabled(not config.decoder_only):
                    latents = model.encode(frames)
                made = model.decode_unclamped(noisy_latents(latents, config, update))
            value, parts = reconstruction_loss(made.float(), frames, config.edge_weight, config.coarse_weight)
            if config.decoder_only:
                return value, parts
            regular = latent_loss(latents)
            return value + config.latent_weight * regular, parts | {"latent": regular.item()}

        def validate(network: TAEHV, update: int) -> dict[str, float]:
            made = reconstruct(network, held_out, config.precision == "bf16")
            return measure(run_folder, made, held_out, update)

        trained = train_stage(run_folder, config, model, loss, validate, ("l1",))
        if not config.decoder_only:
            clips = torch.stack([folder.clip(number) for number in range(min(config.normalise_clips, len(folder)))])
            normalise_latents(trained, to_unit_frames(clips).to(device))
        export_vae(trained, out)
        return psnr(reconstruct(trained, held_out), held_out)
