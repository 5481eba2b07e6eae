"""Trains the pocket video autoencoder, in the TAEHV layout, on rendered portraits, in two stages.

1. The encoder, with a cheap stand-in for the decoder: its first level and one 1 x 1 convolution that sketches the
   pixels. Its latents are then normalised exactly and frozen, so a diffusion model can already be trained on them.
2. The decoder, on the frozen latents with a little noise added, so that near latents decode to near pictures.

Reconstruction loss: L1, L1 of spatial gradients (crisp edges), L1 of 4x reduced pictures (right colours). The encoder's
latents are also kept near zero mean and identity covariance, which is what a diffusion model wants to predict.
Networks without normalisation layers start badly, so both stages start as fitted linear codecs (linear_start.py).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from magicdistill_core.files import atomic_file
from magicdistill_core.geometry import SPACE_STRIDE, TIME_STRIDE
from magicdistill_core.taehv import TAEHV, run_stack

from .dataset import PortraitFolder, held_out_clips, to_unit_frames
from .linear_start import fit_readout, pair_latents, silence_branches, start_decoder, start_encoder
from .pictures import plot_losses, save_strips
from .run import LOG_NAME, ScheduleConfig, TrainingRun, step_generator, training_device

logger = logging.getLogger(__name__)

ENCODER_RUN, DECODER_RUN = "encoder", "decoder"
# The decoder's first level: soft clamp, convolution, relu, three memory blocks at the latents' own resolution.
_SKETCH_LAYERS = 6
_SKETCH_WIDTH = 256
# 0.14 dB less than fp16's own 11 bits.
_DECODER_BITS = 9


class CropConfig(ScheduleConfig):
    """What both stages see and how they are judged."""

    learning_rate: float = Field(5e-4, gt=0)
    ema: float = Field(0.99, ge=0, lt=1)
    batch: int = Field(3, ge=1)
    crop: int = Field(64, ge=16, multiple_of=16)
    frames: int = Field(9, ge=1)
    edge_weight: float = Field(0.5, ge=0)
    coarse_weight: float = Field(0.5, ge=0)
    latent_noise: float = Field(0.05, ge=0)
    held_out: int = Field(16, ge=1)


class EncoderConfig(CropConfig):
    """Stage 1."""

    steps: int = Field(700, ge=1)
    decay_steps: int = Field(250, ge=0)
    latent_weight: float = Field(0.003, ge=0)
    normalise_clips: int = Field(64, ge=1)


class DecoderConfig(CropConfig):
    """Stage 2."""

    steps: int = Field(1600, ge=1)
    decay_steps: int = Field(600, ge=0)


class Sketcher(nn.Module):
    """The autoencoder and the 1 x 1 convolution that turns its first decoder level into pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = TAEHV()
        self.pixels = nn.Conv2d(_SKETCH_WIDTH, TIME_STRIDE * 3 * SPACE_STRIDE**2, 1)

    def sketch(self, latents: Tensor) -> Tensor:
        """Frames ``[B, 4n + 1, 3, H, W]`` straight from the latents' own resolution."""
        features = run_stack(self.vae.decoder[:_SKETCH_LAYERS], latents.transpose(1, 2))
        frames = F.pixel_shuffle(self.pixels(features.flatten(0, 1)), SPACE_STRIDE)
        frames = frames.reshape(latents.shape[0], -1, 3, *frames.shape[-2:])
        return frames[:, TIME_STRIDE - 1 :]


def with_front(frames: Tensor) -> Tensor:
    """Clips of 4n + 1 frames with the three copies of frame 0 that the autoencoder puts in front."""
    return torch.cat([frames[:, :1].expand(-1, TIME_STRIDE - 1, -1, -1, -1), frames], dim=1)


def start_sketcher(model: Sketcher, frames: Tensor) -> None:
    """Start stage 1 as a linear codec fitted to ``frames [B, 4n + 1, 3, H, W]``."""
    padded = with_front(frames)
    start_encoder(model.vae, padded)
    pair_latents(model.vae.decoder[1])
    first_level = model.vae.decoder[:_SKETCH_LAYERS]
    silence_branches(first_level)
    with torch.no_grad():
        features = run_stack(first_level, model.vae.encode(frames).transpose(1, 2)).flatten(0, 1)
        groups = padded.unflatten(1, (-1, TIME_STRIDE)).flatten(0, 1).flatten(1, 2)
        fit_readout(model.pixels, features, F.pixel_unshuffle(groups, SPACE_STRIDE))


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """He-initialised convolutions with zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def sample_batch(folder: PortraitFolder, config: CropConfig, step: int, batch: int | None = None) -> Tensor:
    """The clips of one step: float ``[B, T, 3, crop, crop]``, random windows, half of them mirrored."""
    generator = step_generator(config.seed, step)

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


def reconstruction_loss(made: Tensor, real: Tensor, config: CropConfig) -> tuple[Tensor, dict[str, float]]:
    """Weighted L1, edge L1 and coarse L1 of frames ``[B, T, 3, H, W]``."""
    error = made - real
    pixel = error.abs().mean()
    edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error.flatten(0, 1), 4).abs().mean()
    loss = pixel + config.edge_weight * edge + config.coarse_weight * coarse
    return loss, {"l1": pixel.item(), "edge": edge.item(), "coarse": coarse.item()}


def latent_loss(latents: Tensor) -> Tensor:
    """Distance of the channels' mean from 0 and covariance from the identity, for latents ``[B, C, t, h, w]``."""
    samples = latents.float().movedim(1, -1).flatten(0, -2)
    mean = samples.mean(dim=0)
    centered = samples - mean
    covariance = centered.T @ centered / samples.shape[0]
    identity = torch.eye(samples.shape[1], device=samples.device)
    return mean.square().sum() + (covariance - identity).square().sum()


def reconstruct(model: TAEHV, clips: Tensor, bf16: bool = False) -> Tensor:
    """Encode and decode clips ``[N, T, 3, H, W]`` one at a time."""
    with torch.no_grad(), torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=bf16):
        return torch.cat([model.decode(model.encode(clip[None])).float() for clip in clips])


def psnr(made: Tensor, real: Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB, for values in [0, 1]."""
    error = (made - real).square().flatten(1).mean(dim=1)
    return float((-10 * torch.log10(error.clamp_min(1e-10))).mean())


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


def normalise_latents(vae: TAEHV, clips: Tensor) -> None:
    """Fold the latents' mean and deviation over ``clips`` into the encoder's last layer: exactly zero mean and unit
    variance per channel there. The decoder's first layer takes the inverse (up to the soft clamp between them)."""
    with torch.no_grad():
        samples = torch.cat([vae.encode(clip[None]) for clip in clips]).movedim(1, -1).flatten(0, -2)
        mean, std = samples.mean(dim=0), samples.std(dim=0)
        last, first = vae.encoder[-1], vae.decoder[1]
        assert isinstance(last, nn.Conv2d)
        assert isinstance(first, nn.Conv2d)
        assert last.bias is not None
        assert first.bias is not None
        last.weight.div_(std.view(-1, 1, 1, 1))
        last.bias.sub_(mean).div_(std)
        first.bias.add_((first.weight.sum(dim=(2, 3)) * mean).sum(dim=1))
        first.weight.mul_(std.view(1, -1, 1, 1))


Progress = Callable[[int, int, float], None]


def train_encoder(config: EncoderConfig, data: Path, run_folder: Path, progress: Progress) -> TAEHV:
    """Stage 1, resumable in ``run_folder``: returns an autoencoder whose encoder is final and normalised."""
    device = _prepare(config)
    folder = PortraitFolder(data, device)
    model = Sketcher()
    initialise(model, step_generator(config.seed, -1))
    start_sketcher(model, sample_batch(folder, config, config.steps + 1, batch=12).cpu())
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.vae.decoder[_SKETCH_LAYERS:].requires_grad_(False)
    average = copy.deepcopy(model)
    run = TrainingRun(run_folder, config, model, average, _optimizer(model, config))
    held_out = to_unit_frames(held_out_clips(config.held_out, folder.config.frames, folder.config.size)).to(device)
    for step in run.remaining():
        frames = sample_batch(folder, config, step)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            latents = model.vae.encode(frames)
            made = model.sketch(_noisy(latents, config, step))
        loss, parts = reconstruction_loss(made.float(), frames, config)
        regular = latent_loss(latents)
        run.update(loss + config.latent_weight * regular, {**parts, "latent": regular.item()})
        progress(run.step, config.steps, parts["l1"])
        if run.sheet_due():
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
                sketches = torch.cat([average.sketch(average.vae.encode(clip[None])).float() for clip in held_out])
            _report(run, sketches, held_out, ("l1", "edge", "latent", "psnr"))
    clips = torch.stack([folder.clip(number) for number in range(min(config.normalise_clips, len(folder)))])
    normalise_latents(average.vae, to_unit_frames(clips).to(device))
    return average.vae


def train_decoder(
    config: DecoderConfig, encoder: TAEHV, data: Path, run_folder: Path, out: Path, progress: Progress
) -> float:
    """Stage 2, resumable in ``run_folder``: writes the averaged autoencoder to ``out``, returns its held-out PSNR."""
    device = _prepare(config)
    folder = PortraitFolder(data, device)
    model = copy.deepcopy(encoder).cpu().requires_grad_(True)
    model.encoder.requires_grad_(False)
    start_decoder(model, with_front(sample_batch(folder, config, config.steps + 1, batch=6).cpu()), _SKETCH_LAYERS)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    run = TrainingRun(run_folder, config, model, average, _optimizer(model, config))
    held_out = to_unit_frames(held_out_clips(config.held_out, folder.config.frames, folder.config.size)).to(device)
    for step in run.remaining():
        frames = sample_batch(folder, config, step)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                latents = model.encode(frames)
            made = model.decode_unclamped(_noisy(latents, config, step))
        loss, parts = reconstruction_loss(made.float(), frames, config)
        run.update(loss, parts)
        progress(run.step, config.steps, parts["l1"])
        if run.sheet_due():
            _report(run, reconstruct(average, held_out, config.bf16), held_out, ("l1", "edge", "coarse", "psnr"))
            export_vae(average, out)
    export_vae(average, out)
    return psnr(reconstruct(average, held_out), held_out)


def train_vae(
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    data: Path,
    run_folder: Path,
    out: Path,
    progress: Progress = lambda step, steps, loss: None,
) -> float:
    """Both stages, each resumable, in ``run_folder``; the fp16 file goes to ``out``.

    ``progress(step, steps, l1)`` is told after each step of each stage. Returns the held-out PSNR in dB.
    """
    vae = train_encoder(encoder, data, run_folder / ENCODER_RUN, progress)
    return train_decoder(decoder, vae, data, run_folder / DECODER_RUN, out, progress)


def _prepare(config: CropConfig) -> torch.device:
    torch.set_num_threads(config.threads)
    # Every step has the same shapes: cuDNN may look for the fastest convolutions once.
    torch.backends.cudnn.benchmark = True
    return training_device()


def _optimizer(model: nn.Module, config: CropConfig) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay)


def _noisy(latents: Tensor, config: CropConfig, step: int) -> Tensor:
    generator = step_generator(config.seed + 1, step, latents.device)
    noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device=latents.device)
    return latents + config.latent_noise * noise


def _report(run: TrainingRun, made: Tensor, held_out: Tensor, columns: tuple[str, ...]) -> None:
    """Measure on held-out clips, log, and write the curve and the contact sheet (each clip above its copy)."""
    quality = psnr(made, held_out)
    run.log({"step": run.step, "psnr": quality})
    logger.info("%s, step %d: held-out PSNR %.2f dB", run.folder.name, run.step, quality)
    rows = [clip.cpu() for pair in zip(held_out[:4], made[:4], strict=True) for clip in pair]
    save_strips(run.folder / f"sheet-{run.step:06d}.png", rows)
    plot_losses(run.folder / LOG_NAME, run.folder / "curve.png", columns)
