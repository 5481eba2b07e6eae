"""Sampling of latents from a network, with a seed, a schedule and a sampler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from magicdistill_core.families.base import StartImage
from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.flow import SamplerCallback, Velocity, sample_euler, sample_renoise, seeded_noise, with_image
from magicdistill_core.recipe import Sampler

from .families import kind_of
from .network import network_velocity
from .prompts import Prompts


def sample_latents(
    velocity: Velocity,
    shape: tuple[int, ...],
    sigmas: Tensor,
    sampler: Sampler,
    seed: int | Sequence[int],
    device: torch.device | str,
    callback: SamplerCallback | None = None,
    kept_frames: int = 0,
    image: Tensor | None = None,
    image_in_noise: float = 0.0,
) -> Tensor:
    """Sample latents from the noise of a seed.

    The noise is drawn in float32 on the CPU. It is the same on every device, and the same that ComfyUI draws for the
    seed.

    Args:
        velocity: function `(x, sigma) -> velocity` that calls the model with its conditioning.
        shape: shape of the complete latents, `(B, 16, T, H, W)`.
        sigmas: noise levels `[N + 1]`, from 1 to 0.
        sampler: `euler` integrates the ODE; `renoise` predicts the clean latents and adds new noise in each step.
        seed: seed of the starting noise, and of the new noise of `renoise`. Several seeds, one for each sample of the
            batch, give each sample the noise that it has alone.
        device: device of the samples.
        callback: called for each model call, as in `magicdistill_core.flow`; None for no callback.
        kept_frames: number of first frames that the start image sets. Their noise is drawn, but not used.
        image: the start images' latents `[B, 16, 1, H, W]` in the network's scale; needed only if `image_in_noise` is
            not 0.
        image_in_noise: share of `image` in the starting noise (see `flow.with_image`).

    Returns:
        The generated frames `[B, 16, T - kept_frames, H, W]`, in the network's scale.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    part = shape if isinstance(seed, int) else (1, *shape[1:])
    whole = torch.cat([torch.randn(part, generator=torch.Generator().manual_seed(each)) for each in seeds])
    noise = whole[:, :, kept_frames:].to(device)
    if image is not None:
        noise = with_image(noise, image, image_in_noise)
    if sampler == "euler":
        return sample_euler(velocity, noise, sigmas, callback)
    draws = [seeded_noise(each) for each in seeds]

    def fresh(step: int, like: Tensor) -> Tensor:
        new = torch.cat([draw(step, rows) for draw, rows in zip(draws, whole.split(part[0]), strict=True)])
        return new[:, :, kept_frames:].to(like)

    return sample_renoise(velocity, noise, sigmas, fresh, callback)


@torch.no_grad()
def generate(
    network: torch.nn.Module,
    prompt: Prompts,
    image: StartImage,
    latent_frames: int,
    sigmas: Tensor,
    sampler: Sampler,
    seed: int | Sequence[int],
    callback: SamplerCallback | None = None,
    guidance: float | None = None,
    image_in_noise: float = 0.0,
) -> Tensor:
    """Sample the latents of a video that begins with a start image.

    The sampler's state stays in float32, even if the network computes in another dtype.

    Args:
        network: diffusers' transformer, from `load_network`.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        image: start images on the network's device.
        latent_frames: latent frames of the video, start image included.
        sigmas: noise levels `[N + 1]`, from 1 to 0.
        sampler: `euler` or `renoise`, as for `sample_latents`.
        seed: seed of the noise, or one for each sample, as for `sample_latents`.
        callback: called for each model call, as in `magicdistill_core.flow`; None for no callback.
        guidance: guidance scale for a network with a guidance embedding; None is `EMBEDDED_GUIDANCE`.
        image_in_noise: share of the start image in the starting noise (see `flow.with_image`).

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
    free = sample_latents(
        velocity,
        shape,
        sigmas,
        sampler,
        seed,
        image.latents.device,
        callback,
        family.kept_frames,
        image.latents,
        image_in_noise,
    )
    return family.whole(free, image)
