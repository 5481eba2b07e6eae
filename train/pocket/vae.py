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
import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from magicdistill_core.errors import ConfigError
from magicdistill_core.geometry import SIDE_MULTIPLE, unit_to_frames
from magicdistill_core.media.video import contact_sheet
from magicdistill_core.taehv import TAEHV
from magicdistill_core.writable import check_output_file

from ..config.sections import OptimizerConfig, Positive
from ..distributed import available_device
from ..folder_lock import folder_lock
from ..methods.draws import keyed_generator
from ..run_folder import FOLDER, LATEST, METRICS_FILE, VALIDATION, checkpoint_folder, read_manifest
from ..watch.log import read_lines
from ..watch.plots import plot_losses
from .dataset import PortraitFolder, held_out_clips, to_unit_frames
from .linear_start import start_decoder
from .sketcher import SKETCH_LAYERS, Sketcher, initialise, normalise_latents, start_sketcher, with_front
from .stage import StageConfig, train_stage
from .vae_file import export_vae
from .vae_losses import latent_loss, psnr, reconstruct, reconstruction_loss

logger = logging.getLogger(__name__)

ENCODER_RUN, DECODER_RUN = "encoder", "decoder"
_SHOWN = 4

Share = Annotated[float, Field(ge=0)]


class CropConfig(StageConfig):
    """The settings of both stages: batches, loss weights and measurements."""

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


def train_encoder(config: EncoderConfig, data: Path, run_folder: Path) -> TAEHV:
    """Train stage 1 or resume it; return an autoencoder whose encoder is final and normalised.

    Args:
        config: the settings of the stage.
        data: the folder of portraits.
        run_folder: the stage's run folder.
    """
    device = _device()
    folder = PortraitFolder(data, device)
    model = Sketcher()
    initialise(model, keyed_generator(config.seed, "weights"))
    start_sketcher(model, sample_batch(folder, config, config.updates + 1, batch=12).cpu())
    model = model.to(device)
    model.vae.decoder[SKETCH_LAYERS:].requires_grad_(False)
    held_out = _held_out(config, folder)

    def loss(update: int) -> tuple[Tensor, dict[str, float]]:
        frames = sample_batch(folder, config, update)
        with _precision(config, device):
            latents = model.vae.encode(frames)
            made = model.sketch(_noisy(latents, config, update))
        value, parts = reconstruction_loss(made.float(), frames, config.edge_weight, config.coarse_weight)
        regular = latent_loss(latents)
        return value + config.latent_weight * regular, parts | {"latent": regular.item()}

    def validate(network: Sketcher, update: int) -> dict[str, float]:
        with torch.no_grad(), _precision(config, device):
            made = torch.cat([network.sketch(network.vae.encode(clip[None])).float() for clip in held_out])
        return _measured(run_folder, made, held_out, update)

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
    device = _device()
    folder = PortraitFolder(data, device)
    model = copy.deepcopy(encoder).cpu().requires_grad_(True)
    model.encoder.requires_grad_(False)
    start_decoder(model, with_front(sample_batch(folder, config, config.updates + 1, batch=6).cpu()), SKETCH_LAYERS)
    model = model.to(device)
    held_out = _held_out(config, folder)

    def loss(update: int) -> tuple[Tensor, dict[str, float]]:
        frames = sample_batch(folder, config, update)
        with _precision(config, device):
            with torch.no_grad():
                latents = model.encode(frames)
            made = model.decode_unclamped(_noisy(latents, config, update))
        return reconstruction_loss(made.float(), frames, config.edge_weight, config.coarse_weight)

    def validate(network: TAEHV, update: int) -> dict[str, float]:
        made = reconstruct(network, held_out, config.precision == "bf16")
        return _measured(run_folder, made, held_out, update)

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


def _device() -> torch.device:
    # All updates have the same shapes, so cuDNN needs to search for the fastest convolutions only once.
    torch.backends.cudnn.benchmark = True
    return available_device()


def _precision(config: CropConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def _held_out(config: CropConfig, folder: PortraitFolder) -> Tensor:
    clips = held_out_clips(config.held_out, folder.config.frames, folder.config.size)
    return to_unit_frames(clips).to(available_device())


def _noisy(latents: Tensor, config: CropConfig, update: int) -> Tensor:
    noise = torch.randn(latents.shape, generator=keyed_generator(config.seed, "noise", update))
    return latents + config.latent_noise * noise.to(latents.device)


def _measured(run_folder: Path, made: Tensor, held_out: Tensor, update: int) -> dict[str, float]:
    """Return the held-out PSNR in dB. Also write the loss curves and a contact sheet of clips and reconstructions."""
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
