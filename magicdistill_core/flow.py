"""Flow matching: schedules, velocity <-> x0, and the few-step samplers, as pure functions.

Shape legend: B batch, C channels, T latent frames, H and W latent rows and columns. `sigma` is the noise level in
[0, 1]: 0 is clean, 1 is pure noise. The timestep of a model is `1000 * sigma`. A *velocity* is a callable
`(x_BCTHW, sigma_B) -> v_BCTHW`, usually a network with its conditioning. x0 is the estimate of the clean latent.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ConfigError

TIMESTEPS = 1000.0

Velocity = Callable[[Tensor, Tensor], Tensor]
NoiseSampler = Callable[[int, Tensor], Tensor]


class SamplerState(NamedTuple):
    """The argument of a sampler's callback after the model call of a step.

    Attributes:
        step: the step's number, counted from 0.
        sigma: the level of the model call.
        x: the noisy latent `[B, C, T, H, W]` at `sigma`.
        x0: the estimate of the clean latent.
    """

    step: int
    sigma: float
    x: Tensor
    x0: Tensor


SamplerCallback = Callable[[SamplerState], None]


def shift_sigma(t: Tensor, shift: float) -> Tensor:
    """Apply the timestep shift and return `shift * t / (1 + (shift - 1) * t)` (the time shift of Stable Diffusion 3).

    Args:
        t: times in [0, 1], of any shape.
        shift: 1 changes nothing; a larger shift moves the levels towards 1 (more noise). Magic 1-For-1 uses 5.

    Raises:
        ConfigError: if `shift` is not a positive number.
    """
    if not 0 < shift < math.inf:
        raise ConfigError(
            f"shift is {shift}, expected a positive number (1 keeps the schedule uniform). Use 5, or the shift of the "
            f"model's training."
        )
    return shift * t / (1 + (shift - 1) * t)


def few_step_sigmas(steps: int, shift: float) -> Tensor:
    """Return the noise levels of the few-step schedule: uniform times from 1 to 0, shifted by `shift_sigma`.

    With `steps=4, shift=5` these are 1, 0.9375, 0.8333.., 0.625, 0: the timesteps [1000, 937.5, 833.3, 625] of
    MagicDistillation and Magic 1-For-1.

    Args:
        steps: number of model calls, at least 1.
        shift: see `shift_sigma`.

    Returns:
        float32 tensor `[steps + 1]` on the CPU, computed in float64; the last value is exactly 0.

    Raises:
        ValueError: if `steps < 1` or `shift` is not a positive number.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def expand_sigma(sigma: Tensor, like: Tensor) -> Tensor:
    """Return `sigma` in a shape that broadcasts over `like`, with the dtype and on the device of `like`.

    Args:
        sigma: one level per sample `[B]`, or one level for all (a scalar tensor).
        like: a tensor `[B, ...]`.

    Returns:
        `[B, 1, ...]`, or `[1, 1, ...]` for a scalar.
    """
    sigma = sigma.to(device=like.device, dtype=like.dtype)
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(z: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Return the noised latent `x_sigma = (1 - sigma) * z + sigma * eps`, shaped as `z`.

    Args:
        z: clean latents `[B, ...]`.
        eps: standard normal noise shaped as `z`.
        sigma: noise levels in [0, 1], `[B]` or a scalar.
    """
    s = expand_sigma(sigma, z)
    return (1 - s) * z + s * eps


def velocity_to_x0(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Return the estimate of the clean latent, `x0 = x - sigma * v`: one Euler step from sigma to 0.

    Args:
        x: noised latents `[B, ...]` at level `sigma`.
        v: the model's velocity at `x`.
        sigma: noise levels `[B]`, or a scalar.
    """
    return x - expand_sigma(sigma, x) * v


def x0_to_velocity(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Return the velocity `v = (x - x0) / sigma`, the inverse of `velocity_to_x0`.

    Args:
        x: noised latents `[B, ...]` at level `sigma`.
        x0: the model's estimate of the clean latents.
        sigma: noise levels `[B]`, or a scalar; not 0.
    """
    return (x - x0) / expand_sigma(sigma, x)


def _predict(velocity: Velocity, x: Tensor, sigma: Tensor) -> Tensor:
    return velocity(x, sigma.expand(x.shape[0]))


def sample_euler(
    velocity: Velocity, x_BCTHW: Tensor, sigmas: Tensor, callback: SamplerCallback | None = None
) -> Tensor:
    """Integrate the probability-flow ODE with Euler steps: `x <- x + (sigma_next - sigma) * v`.

    Args:
        velocity: the model, a callable `(x, sigma [B]) -> velocity` shaped as `x`.
        x_BCTHW: the starting point at `sigmas[0]` (pure noise if `sigmas[0]` is 1).
        sigmas: noise levels `[N + 1]`, decreasing; N is the number of model calls.
        callback: called with a `SamplerState` after every model call; None for no callback.

    Returns:
        The latent at `sigmas[-1]`, shaped as `x_BCTHW`.
    """
    # Copy all sigmas to the device at once: one copy per step would wait for the model each time.
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.to(x_BCTHW.device))):
        v = _predict(velocity, x_BCTHW, sigma)
        if callback is not None:
            callback(SamplerState(step, float(sigmas[step]), x_BCTHW, velocity_to_x0(x_BCTHW, v, sigma)))
        x_BCTHW = x_BCTHW + (sigma_next - sigma).to(x_BCTHW.dtype) * v
    return x_BCTHW


def sample_renoise(
    velocity: Velocity,
    x_BCTHW: Tensor,
    sigmas: Tensor,
    noise_sampler: NoiseSampler,
    callback: SamplerCallback | None = None,
) -> Tensor:
    """Sample as DMD2 does: predict x0, then add fresh noise to reach the next sigma.

    A step to sigma 0, usually the last one, adds no noise: its x0 is the result.

    Args:
        velocity: see `sample_euler`.
        x_BCTHW: see `sample_euler`.
        sigmas: see `sample_euler`.
        noise_sampler: a callable `(step, like) -> noise` shaped as `like`; called after each step whose next sigma is
            not 0. Steps are counted from 0.
        callback: see `sample_euler`.

    Returns:
        The latent at `sigmas[-1]`, shaped as `x_BCTHW`.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.to(x_BCTHW.device))):
        x0 = velocity_to_x0(x_BCTHW, _predict(velocity, x_BCTHW, sigma), sigma)
        if callback is not None:
            callback(SamplerState(step, float(sigmas[step]), x_BCTHW, x0))
        x_BCTHW = x0 if sigmas[step + 1] == 0 else add_noise(x0, noise_sampler(step, x0), sigma_next)
    return x_BCTHW


def with_image(noise_BCTHW: Tensor, image_BC1HW: Tensor, share: float) -> Tensor:
    """Return starting noise that holds a little of the start image: `(1 - share) * noise + share * image`.

    HunyuanVideo-I2V's release starts so, with a share of 0.001, for more stable videos.

    Args:
        noise_BCTHW: standard normal noise.
        image_BC1HW: the start image's latent in the network's scale, repeated over all frames. Of several frames, the
            first one is used.
        share: in [0, 1); 0 returns the noise itself.
    """
    if not share:
        return noise_BCTHW
    return (1 - share) * noise_BCTHW + share * image_BC1HW[:, :, :1].to(noise_BCTHW)


def seeded_noise(seed: int) -> NoiseSampler:
    """Return a noise sampler for `sample_renoise` whose draws depend on the seed only, not on the device.

    It draws float32 numbers on the CPU. Its generator's seed is `seed + 1`, so the draws do not repeat the starting
    noise, which is drawn with `seed`.

    Args:
        seed: the seed of the starting noise, a whole number from 0 to 2^64 - 1.
    """
    generator = torch.Generator().manual_seed((seed + 1) % 2**64)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    return noise
