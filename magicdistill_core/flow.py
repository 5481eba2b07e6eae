"""Flow matching: schedules, velocity <-> x0, and the few-step samplers, as pure functions.

Shape legend: B batch, C channels, T latent frames, H and W latent rows and columns. `sigma` is in [0, 1]; the timestep
of a model is `1000 * sigma`. A *velocity* is a callable `(x_BCTHW, sigma_B) -> v_BCTHW`.
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
    """Apply the timestep shift `s * t / (1 + (s - 1) * t)` (SD3 time shift; Magic 1-For-1 uses s = 5).

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
    """Return the `steps + 1` sigmas of the few-step schedule: uniform in t from 1 to 0, then shifted.

    With `steps=4, shift=5` these are 1, 0.9375, 0.8333.., 0.625, 0: the timesteps [1000, 937.5, 833.3, 625] of
    MagicDistillation and Magic 1-For-1.

    Returns:
        float32 tensor `[steps + 1]`, computed in float64; the last value is exactly 0.

    Raises:
        ValueError: if `steps < 1` or `shift` is not a positive number.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def expand_sigma(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape `sigma_B` (or a scalar) to broadcast over `like` `[B, ...]`, in the dtype and on the device of `like`."""
    sigma = sigma.to(device=like.device, dtype=like.dtype)
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(z: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Return the noised latent `x_sigma = (1 - sigma) * z + sigma * eps`."""
    s = expand_sigma(sigma, z)
    return (1 - s) * z + s * eps


def velocity_to_x0(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Return `x0_hat = x_sigma - sigma * v`: one Euler step from sigma to 0."""
    return x - expand_sigma(sigma, x) * v


def x0_to_velocity(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Return `v = (x_sigma - x0_hat) / sigma`, the inverse of `velocity_to_x0` for sigma > 0."""
    return (x - x0) / expand_sigma(sigma, x)


def _predict(velocity: Velocity, x: Tensor, sigma: Tensor) -> Tensor:
    return velocity(x, sigma.expand(x.shape[0]))


def sample_euler(
    velocity: Velocity, x_BCTHW: Tensor, sigmas: Tensor, callback: SamplerCallback | None = None
) -> Tensor:
    """Integrate the probability-flow ODE with Euler steps: `x <- x + (sigma_next - sigma) * v`.

    Args:
        velocity: the model.
        x_BCTHW: the starting point at `sigmas[0]` (pure noise if `sigmas[0]` is 1).
        sigmas: `[N + 1]`, decreasing.
        callback: called after every model call.

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

    Args:
        velocity, x_BCTHW, sigmas, callback: see `sample_euler`.
        noise_sampler: `(step, like) -> noise` shaped as `like`; called after each step whose next sigma is not 0.

    Returns:
        The latent at `sigmas[-1]`, shaped as `x_BCTHW`.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.to(x_BCTHW.device))):
        x0 = velocity_to_x0(x_BCTHW, _predict(velocity, x_BCTHW, sigma), sigma)
        if callback is not None:
            callback(SamplerState(step, float(sigmas[step]), x_BCTHW, x0))
        x_BCTHW = x0 if sigmas[step + 1] == 0 else add_noise(x0, noise_sampler(step, x0), sigma_next)
    return x_BCTHW


def seeded_noise(seed: int) -> NoiseSampler:
    """Return a noise sampler for `sample_renoise` whose draws depend on the seed only, not on the device.

    It draws float32 numbers on the CPU. Its generator's seed is `seed + 1`, so the draws do not repeat the starting
    noise, which is drawn with `seed`.
    """
    generator = torch.Generator().manual_seed((seed + 1) % 2**64)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    return noise
