"""Sampling of latents from a network, with a seed, a schedule and a sampler."""

import torch
from torch import Tensor

from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.flow import SamplerCallback, Velocity, sample_euler, sample_renoise, seeded_noise
from magicdistill_core.recipe import Sampler

from .families import kind_of
from .network import network_velocity


def sample_latents(
    velocity: Velocity,
    shape: tuple[int, ...],
    sigmas: Tensor,
    sampler: Sampler,
    seed: int,
    device: torch.device | str,
    callback: SamplerCallback | None = None,
    kept_frames: int = 0,
) -> Tensor:
    """Sample latents from the noise of a seed.

    The noise is drawn in float32 on the CPU. It is the same on every device, and the same that ComfyUI draws for the
    seed.

    Args:
        velocity: function `(x, sigma) -> velocity` that calls the model with its conditioning.
        shape: shape of the complete latents, `(B, 16, T, H, W)`.
        sigmas: noise levels `[N + 1]`, from 1 to 0.
        sampler: `euler` integrates the ODE; `renoise` predicts the clean latents and adds new noise in each step.
        seed: seed of the starting noise, and of the new noise of `renoise`.
        device: device of the samples.
        callback: called for each model call, as in `magicdistill_core.flow`; None for no callback.
        kept_frames: number of first frames that the start image sets. Their noise is drawn, but not used.

    Returns:
        The generated frames `[B, 16, T - kept_frames, H, W]`, in the network's scale.
    """
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    noise = whole[:, :, kept_frames:].to(device)
    if sampler == "euler":
        return sample_euler(velocity, noise, sigmas, callback)
    draw = seeded_noise(seed)

    def fresh(step: int, like: Tensor) -> Tensor:
        return draw(step, whole)[:, :, kept_frames:].to(like)

    return sample_renoise(velocity, noise, sigmas, fresh, callback)


@torch.no_grad()
def generate(
    network: torch.nn.Module,
    prompt: NullPrompt,
    image: StartImage,
    latent_frames: int,
    sigmas: Tensor,
    sampler: Sampler,
    seed: int,
    callback: SamplerCallback | None = None,
    guidance: float | None = None,
) -> Tensor:
    """Sample the latents of a video that begins with a start image.

    The sampler's state stays in float32, even if the network computes in another dtype.

    Args:
        network: diffusers' transformer, from `load_network`.
        prompt: text conditioning, repeated over the batch.
        image: start images on the network's device.
        latent_frames: latent frames of the video, start image included.
        sigmas: noise levels `[N + 1]`, from 1 to 0.
        sampler: `euler` or `renoise`, as for `sample_latents`.
        seed: seed of the noise.
        callback: called for each model call, as in `magicdistill_core.flow`; None for no callback.
        guidance: guidance scale for a network with a guidance embedding; None is `EMBEDDED_GUIDANCE`.

    Returns:
        Latents `[B, 16, latent_frames, H, W]` in float32.
    """
    batch, channels, _, rows, columns = image.latents.shape
    family = kind_of(network).family
    model = network_velocity(network, family.condition(image, latent_frames), prompt, guidance or EMBEDDED_GUIDANCE)
    dtype = next(network.parameters()).dtype

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x.to(dtype), sigma).float()

    shape = (batch, channels, latent_frames, rows, columns)
    free = sample_latents(velocity, shape, sigmas, sampler, seed, image.latents.device, callback, family.kept_frames)
    return family.whole(free, image)
