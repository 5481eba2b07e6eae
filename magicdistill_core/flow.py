"""Flow matching: schedules, velocity <-> x0, and the few-step samplers, as pure functions.

Shape legend: B batch, C channels, T latent frames, H and W latent rows and columns. `sigma` lies in [0, 1]; a model's
timestep is `1000 * sigma`. A *velocity* is a callable `(x_BCTHW, sigma_B) -> v_BCTHW`.
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
    """What a sampler's callback sees after the model call of step `step`."""

    step: int
    sigma: float
    x: Tensor
    x0: Tensor


SamplerCallback = Callable[[SamplerState], None]


def shift_sigma(t: Tensor, shift: float) -> Tensor:
    """Timestep shift `s * t / (1 + (s - 1) * t)` (SD3 time shift; Magic 1-For-1 uses s = 5).

    Raises:
        ConfigError: if `shift` is not a positive number.
    """
    if not 0 < shift < math.inf:
        raise ConfigError(
            f"shift is {shift}, expected a positive number (1 leaves the schedule uniform). Use 5, or what the model "
            f"was trained with."
        )
    return shift * t / (1 + (shift - 1) * t)


def few_step_sigmas(steps: int, shift: float) -> Tensor:
    """The `steps + 1` sigmas of the few-step schedule: uniform in t from 1 to 0, then shifted.

    With `steps=4, shift=5` these are 1, 0.9375, 0.8333.., 0.625, 0: the timesteps [1000, 937.5, 833.3, 625] of
    MagicDistillation and Magic 1-For-1.

    Returns:
        float32 tensor `[steps + 1]`, computed in float64, ending in an exact 0.

    Raises:
        ValueError: if `steps < 1` or `shift <= 0`.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def expand_sigma(sigma: Tensor, like: Tensor) -> Tensor:
    """`sigma_B` (or a scalar) reshaped to broadcast over `like` `[B, ...]`, in `like`'s dtype and device."""
    sigma = sigma.to(device=like.device, dtype=like.dtype)
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(z: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """`x_sigma = (1 - sigma) * z + sigma * eps`."""
    s = expand_sigma(sigma, z)
    return (1 - s) * z + s * eps


def velocity_to_x0(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """`x0_hat = x_sigma - sigma * v`: the Euler step from sigma straight to 0."""
    return x - expand_sigma(sigma, x) * v


def x0_to_velocity(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """`v = (x_sigma - x0_hat) / sigma`, the inverse of `velocity_to_x0` for sigma > 0."""
    return (x - x0) / expand_sigma(sigma, x)


def _predict(velocity: Velocity, x: Tensor, sigma: Tensor) -> Tensor:
    return velocity(x, sigma.expand(x.shape[0]))


def sample_euler(
    velocity: Velocity, x_BCTHW: Tensor, sigmas: Tensor, callback: SamplerCallback | None = None
) -> Tensor:
    """Deterministic Euler integration of the probability flow: `x <- x + (sigma_next - sigma) * v`.

    Args:
        velocity: the model.
        x_BCTHW: the starting point at `sigmas[0]` (pure noise when that is 1).
        sigmas: `[N + 1]`, decreasing.
        callback: called after every model call with the step, its sigma, x and the x0 estimate there.
    """
    # All sigmas go to the device at once: a copy from the host at every step would wait for the model each time.
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
    """DMD2's sampler: predict x0, then noise it afresh to the next sigma.

    Args:
        velocity, x_BCTHW, sigmas, callback: as for `sample_euler`.
        noise_sampler: `(step, like) -> noise` shaped as `like`; called once for every step but the last.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.to(x_BCTHW.device))):
        x0 = velocity_to_x0(x_BCTHW, _predict(velocity, x_BCTHW, sigma), sigma)
        if callback is not None:
            callback(SamplerState(step, float(sigmas[step]), x_BCTHW, x0))
        x_BCTHW = x0 if sigmas[step + 1] == 0 else add_noise(x0, noise_sampler(step, x0), sigma_next)
    return x_BCTHW


def seeded_noise(seed: int) -> NoiseSampler:
    """The noise sampler that `sample_renoise` takes for a seed: the same draws for whoever samples the same file.

    Drawn in float32 on the CPU from `seed + 1`, so that it repeats neither the starting noise of `seed` nor a device's
    own generator.
    """
    generator = torch.Generator().manual_seed((seed + 1) % 2**64)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    return noise
