"""Train the pocket video autoencoder (TAEHV layout) on rendered portraits in two stages.

1. Train the encoder with a cheap substitute for the decoder (`sketcher.py`). Then normalise its latents exactly and
   freeze it. A diffusion model can already be trained on these latents.
2. Train the decoder on the frozen latents plus a little noise. The noise makes similar latents decode to similar
   pictures.

The reconstruction loss is the sum of L1, L1 of spatial gradients (sharp edges) and L1 of 4x reduced pictures (right
colours). A second loss keeps the latents near zero mean and identity covariance, because such latents are a good target
for a diffusion model. Networks without normalisation layers learn slowly from random weights, so both stages start as
fitted linear codecs (`linear_start.py`).
"""

import copy
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.taehv import TAEHV
from magicdistill_core.writable import check_output_file

from ..config.sections import OptimizerConfig, Positive
from ..folder_lock import folder_lock
from ..methods.draws import keyed_generator
from ..run_folder import FOLDER, LATEST, checkpoint_folder, read_manifest
from .dataset import PortraitFolder, to_unit_frames
from .linear_start import start_decoder
from .sketcher import SKETCH_LAYERS, Sketcher, initialise, normalise_latents, start_sketcher, with_front
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

ENCODER_RUN, DECODER_RUN = "encoder", "decoder"


def _optimizer(decay: float) -> OptimizerConfig:
    return OptimizerConfig(lr=5e-4, betas=(0.9, 0.99), warmup=50, final_lr=5e-7, decay=decay)


class EncoderConfig(CropConfig):
    """The settings of stage 1, the encoder."""

    updates: Positive = Field(700, description="Total number of updates.")
    optimizer: OptimizerConfig = Field(_optimizer(0.36), description="AdamW.")
    latent_weight: Share = Field(0.003, description="Weight of the loss for zero mean and identity covariance.")
    normalise_clips: Positive = Field(64, description="Clips for the normalisation of the latents after training.")


class DecoderConfig(CropConfig):
    """The settings of stage 2, the decoder."""

    updates: Positive = Field(1600, description="Total number of updates.")
    optimizer: OptimizerConfig = Field(_optimizer(0.38), description="AdamW.")


def train_encoder(config: EncoderConfig, data: Path, run_folder: Path) -> TAEHV:
    """Train stage 1 or resume it; return an autoencoder whose encoder is final and normalised.

    Args:
        config: the settings of the stage.
        data: the folder of portraits.
        run_folder: the stage's run folder.
    """
    device = stage_device()
    folder = PortraitFolder(data, device)
    model = Sketcher()
    initialise(model, keyed_generator(config.seed, "weights"))
    start_sketcher(model, sample_batch(folder, config, config.updates + 1, batch=12).cpu())
    model = model.to(device)
    model.vae.decoder[SKETCH_LAYERS:].requires_grad_(False)
    held_out = held_out_frames(config, folder)

    def loss(update: int) -> tuple[Tensor, dict[str, float]]:
        frames = sample_batch(folder, config, update)
        with stage_precision(config, device):
            latents = model.vae.encode(frames)
            made = model.sketch(noisy_latents(latents, config, update))
        value, parts = reconstruction_loss(made.float(), frames, config.edge_weight, config.coarse_weight)
        regular = latent_loss(latents)
        return value + config.latent_weight * regular, parts | {"latent": regular.item()}

    def validate(network: Sketcher, update: int) -> dict[str, float]:
        with torch.no_grad(), stage_precision(config, device):
            made = torch.cat([network.sketch(network.vae.encode(clip[None])).float() for clip in held_out])
        return measure(run_folder, made, held_out, update)

    trained = train_stage(run_folder, config, model, loss, validate, ("l1",))
    clips = torch.stack([folder.clip(number) for number in range(min(config.normalise_clips, len(folder)))])
    normalise_latents(trained.vae, to_unit_frames(clips).to(device))
    return trained.vae


def train_decoder(config: DecoderConfig, encoder: TAEHV, data: Path, run_folder: Path, out: Path) -> float:
    """Train stage 2 or resume it, and write the averaged autoencoder.

    Args:
        config: the settings of the stage.
        encoder: the autoencoder from `train_encoder`.
        data: the folder of portraits.
        run_folder: the stage's run folder.
        out: the file to write, in fp16.

    Returns:
        The PSNR on held-out clips in dB.
    """
    device = stage_device()
    folder = PortraitFolder(data, device)
    model = copy.deepcopy(encoder).cpu().requires_grad_(True)
    model.encoder.requires_grad_(False)
    start_decoder(model, with_front(sample_batch(folder, config, config.updates + 1, batch=6).cpu()), SKETCH_LAYERS)
    model = model.to(device)
    held_out = held_out_frames(config, folder)

    def loss(update: int) -> tuple[Tensor, dict[str, float]]:
        frames = sample_batch(folder, config, update)
        with stage_precision(config, device):
            with torch.no_grad():
                latents = model.encode(frames)
            made = model.decode_unclamped(noisy_latents(latents, config, update))
        return reconstruction_loss(made.float(), frames, config.edge_weight, config.coarse_weight)

    def validate(network: TAEHV, update: int) -> dict[str, float]:
        made = reconstruct(network, held_out, config.precision == "bf16")
        return measure(run_folder, made, held_out, update)

    trained = train_stage(run_folder, config, model, loss, validate, ("l1",))
    export_vae(trained, out)
    return psnr(reconstruct(trained, held_out), held_out)


def train_vae(encoder: EncoderConfig, decoder: DecoderConfig, data: Path, run_folder: Path, out: Path) -> float:
    """Train both stages or resume them, and write the autoencoder.

    Args:
        encoder: the settings of stage 1.
        decoder: the settings of stage 2.
        data: the folder of portraits.
        run_folder: folder for the two stages' run folders.
        out: the file to write, in fp16.

    Returns:
        The PSNR on held-out clips in dB.

    Raises:
        FolderInUseError: if another process trains in `run_folder`.
        OutputError: if `run_folder` or `out` cannot be written.
        ConfigError: if a stage was started with other settings, or the encoder would be trained further although the
            decoder has already been trained on it.
    """
    check_output_file(out)
    with folder_lock(run_folder, "magicdistill pocket train-vae"):
        _check_encoder_is_final(encoder, run_folder)
        vae = train_encoder(encoder, data, run_folder / ENCODER_RUN)
        return train_decoder(decoder, vae, data, run_folder / DECODER_RUN, out)


def _check_encoder_is_final(config: EncoderConfig, run_folder: Path) -> None:
    if not (run_folder / DECODER_RUN / FOLDER / LATEST).is_file():
        return
    made = read_manifest(checkpoint_folder(run_folder / ENCODER_RUN)).update
    if made < config.updates:
        raise ConfigError(
            f"The decoder in {run_folder} was trained on the encoder of {made} updates, so the encoder cannot be "
            f"trained to {config.updates} updates. Set the encoder's updates={made}, or choose another folder."
        )
