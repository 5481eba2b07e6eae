"""Trains the pocket teacher: a tiny HunyuanVideo image-to-video transformer, by flow matching on portrait latents.

Model input is ``cat[noisy latent, image latent, mask]`` (33 channels), the prompt a fixed null prompt. With
``x_s = (1 - s) z + s eps`` the network learns the velocity ``eps - z`` at timestep ``1000 s``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT_CHANNELS, HEAD_DIM, NetworkShape, concat_condition
from magicdistill_core.flow import few_step_sigmas, sample_euler, shift_sigma
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.objectives.flow_matching import flow_matching_loss
from magicdistill_core.objectives.noise_levels import logit_normal_sigma
from magicdistill_core.pocket.render import FRAMES_PER_SECOND
from magicdistill_core.recipe import Recipe

from ..data.dataset import LatentDataset
from ..data.vae import Vae, load_vae
from ..networks.families.hunyuan_video import network_inputs
from ..networks.network import build_network, load_network, network_velocity
from .dataset import held_out_clips, to_unit_frames
from .pictures import plot_losses, save_strips
from .run import LOG_NAME, ScheduleConfig, TrainingRun, step_generator, training_device

logger = logging.getLogger(__name__)

_NULL_TOKENS = 4
_POOLED = 768


class TeacherConfig(ScheduleConfig):
    """Sizes of the network and the training of it."""

    steps: int = Field(8000, ge=1)
    warmup_steps: int = Field(100, ge=0)
    decay_steps: int = Field(2500, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    batch: int = Field(16, ge=1)
    # A double block spends half of its weights on the prompt, of which there is none to speak of.
    double_blocks: int = Field(1, ge=1)
    single_blocks: int = Field(9, ge=1)
    text_dim: int = Field(64, ge=1)
    shift: float = Field(5.0, gt=0)
    sample_steps: int = Field(28, ge=1)
    samples: int = Field(6, ge=1)


def network_shape(config: TeacherConfig) -> NetworkShape:
    """One attention head of 128: the narrowest network that ComfyUI recognises as HunyuanVideo."""
    return NetworkShape(
        in_channels=CONCAT_CHANNELS,
        hidden=HEAD_DIM,
        double_blocks=config.double_blocks,
        single_blocks=config.single_blocks,
        refiner_blocks=2,
        text_dim=config.text_dim,
        pooled_dim=_POOLED,
        guidance_embed=False,
    )


def make_null_prompt(config: TeacherConfig, device: torch.device) -> NullPrompt:
    """The fixed text conditioning that stands for "no prompt": small seeded noise, the same for every sample."""
    generator = step_generator(config.seed + 2, 0)
    text = 0.1 * torch.randn(1, _NULL_TOKENS, config.text_dim, generator=generator)
    pooled = 0.1 * torch.randn(1, _POOLED, generator=generator)
    return NullPrompt(text.to(device), pooled.to(device))


def sample_training_sigma(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels: half logit-normal(0, 1), half uniform, both shifted. The uniform half keeps both ends trained."""
    normal = logit_normal_sigma(batch, shift, generator)
    uniform = torch.rand(batch, generator=generator, device=generator.device)
    first = torch.arange(batch, device=generator.device) < batch // 2
    return torch.where(first, normal, shift_sigma(uniform, shift))


class ConditionedNetwork(nn.Module):
    """The network with its null prompt: a function of tensors alone, ``(x, sigma, condition) -> velocity``."""

    def __init__(self, network: nn.Module, prompt: NullPrompt) -> None:
        super().__init__()
        self.network = network
        self.prompt = prompt

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return self.network(**network_inputs(x, sigma, condition, self.prompt), return_dict=False)[0]


def capture(model: ConditionedNetwork, latents: Tensor, config: TeacherConfig) -> ConditionedNetwork:
    """Record the forward and backward of one batch as CUDA graphs, which replace those of ``model``.

    A network this small spends its time launching kernels: replayed from a graph a step is several times faster.
    """
    inputs = (latents.clone(), latents.new_ones(len(latents)), concat_condition(latents[:, :, :1], latents.shape[2]))
    # Outside of the graph's private memory a cache of cast weights would be lost.
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, inputs)
    return model


def training_loss(
    model: ConditionedNetwork,
    latents: Tensor,
    config: TeacherConfig,
    generator: torch.Generator,
    channel_weight: Tensor | None = None,
) -> Tensor:
    """``mean w |v(x_s, s) - (eps - z)|^2`` for clean latents ``[B, 16, T, H, W]`` that begin with their start image.

    ``channel_weight`` ``[16]`` has mean 1. The best velocity is the same for any weight; a small network spends its
    capacity where the weight is. ``generator`` lies on the device of the latents.
    """
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator, device=device)
    sigma = sample_training_sigma(len(latents), config.shift, generator)
    condition = concat_condition(latents[:, :, :1], latents.shape[2])

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16, cache_enabled=False):
            return model(x, sigma, condition)

    weight = None if channel_weight is None else channel_weight.view(-1, 1, 1, 1)
    return flow_matching_loss(velocity, latents, noise, sigma, weight)


@torch.no_grad()
def visible_weight(vae: Vae, latents: Tensor) -> Tensor:
    """How much a change of each latent channel changes the picture: RMS response, ``[16]`` with mean 1.

    Whitened latents hide that their first components carry nearly all that is seen; the loss should know.
    """
    before = vae.decode(latents)
    gains = []
    for channel in range(LATENT_CHANNELS):
        moved = latents.clone()
        generator = step_generator(13, channel)
        moved[:, channel] += 0.5 * torch.randn(moved[:, channel].shape, generator=generator).to(moved)
        gains.append((vae.decode(moved) - before).square().mean().sqrt())
    gain = torch.stack(gains)
    return gain / gain.mean()


@torch.no_grad()
def sample_clips(
    network: nn.Module, image_latents: Tensor, latent_frames: int, prompt: NullPrompt, config: TeacherConfig
) -> Tensor:
    """Latents ``[N, 16, T, H, W]`` sampled by ``sample_steps`` Euler steps from start images ``[N, 16, 1, H, W]``."""
    noise = torch.randn(
        len(image_latents), LATENT_CHANNELS, latent_frames, *image_latents.shape[3:], generator=step_generator(7, 0)
    )
    velocity = network_velocity(network, concat_condition(image_latents, latent_frames), prompt)
    return sample_euler(velocity, noise.to(image_latents), few_step_sigmas(config.sample_steps, config.shift))


def export_teacher(
    network: nn.Module, prompt: NullPrompt, config: TeacherConfig, data: LatentDataset, step: int, path: Path
) -> None:
    """Write the single bf16 file, with recipe and null prompt, that the trainer and ComfyUI load."""
    recipe = Recipe(
        kind="teacher",
        steps=config.sample_steps,
        shift=config.shift,
        width=data.width,
        height=data.height,
        frames=data.frames,
        fps=FRAMES_PER_SECOND,
        method="flow_matching",
        training_step=step,
    )
    save_checkpoint(path, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), recipe, prompt, torch.bfloat16)


def train_teacher(
    config: TeacherConfig,
    dataset: Path,
    vae_file: Path,
    run_folder: Path,
    out: Path,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    start: Path | None = None,
) -> None:
    """Train (or go on training) in ``run_folder`` and write the averaged weights to ``out`` with every contact sheet.

    ``dataset`` is a folder of portrait latents, made with the autoencoder in ``vae_file``. A new run begins with the
    weights in ``start``, or with random ones.
    """
    torch.set_num_threads(config.threads)
    device = training_device()
    data = LatentDataset(dataset)
    clips = data.batch(range(len(data))).latents.to(device)
    # Initialisation has no generator argument in diffusers: draw it from the seed and leave no trace.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(network_shape(config))
    if start is not None:
        network.load_state_dict(load_network(load_checkpoint(start)).state_dict())
    network.to(device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    run = TrainingRun(run_folder, config, network, average, optimizer)
    prompt = make_null_prompt(config, device)
    vae = load_vae(vae_file, device)
    held_out = to_unit_frames(held_out_clips(config.samples, data.frames, data.height)).to(device)
    # The middle of a few clips, where the face is, says it as well as whole clips and costs a thirtieth.
    top, left = (side // 4 for side in clips.shape[3:])
    weight = visible_weight(vae, clips[:2, :, :2, top:-top, left:-left])
    model = ConditionedNetwork(network, prompt)
    if device.type == "cuda":
        capture(model, clips[: config.batch], config)
    for step in run.remaining():
        generator = step_generator(config.seed, step, device)
        chosen = torch.randint(len(clips), (config.batch,), generator=generator, device=device)
        loss = training_loss(model, clips[chosen], config, generator, weight)
        run.update(loss, {})
        progress(run.step, config.steps, loss.item())
        if run.sheet_due():
            _report(run, average, vae, held_out, prompt, config)
            export_teacher(average, prompt, config, data, run.step, out)
    export_teacher(average, prompt, config, data, run.step, out)


def _report(
    run: TrainingRun, average: nn.Module, vae: Vae, held_out: Tensor, prompt: NullPrompt, config: TeacherConfig
) -> None:
    """Log the held-out loss (at fixed noise), plot the curve, and lay out samples: truth above sample for each clip."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip[None]) for clip in held_out])
        model = ConditionedNetwork(average, prompt)
        losses = [
            training_loss(model, latents, config, step_generator(11, draw, latents.device)).item() for draw in range(8)
        ]
        made = sample_clips(average, latents[:, :, :1], latents.shape[2], prompt, config)
        frames = torch.cat([vae.decode(latent[None]) for latent in made])
    run.log({"step": run.step, "held_out": sum(losses) / len(losses)})
    rows = [clip.cpu() for pair in zip(held_out, frames, strict=True) for clip in pair]
    save_strips(run.folder / f"sheet-{run.step:06d}.png", rows)
    plot_losses(run.folder / LOG_NAME, run.folder / "curve.png", ("loss", "held_out"))
    logger.info("step %d: held-out loss %.4f", run.step, sum(losses) / len(losses))
