"""The generator's rollout: few-step sampling up to a random level, of which only the last call carries a gradient."""

import torch
from torch import Tensor

from ..flow import Velocity, sample_euler, sample_renoise, velocity_to_x0
from ..recipe import Sampler


def rollout(
    generator: Velocity,
    noise_BCTHW: Tensor,
    sigmas: Tensor,
    exit_index: int,
    sampler: Sampler,
    fresh_noise: list[Tensor],
) -> Tensor:
    """`x_hat = x_k - sigma_k * G(x_k, sigma_k)` after sampling from pure noise to level k without gradient.

    The walk stops at level k, so every process that shares k makes `exit_index + 1` calls.

    Args:
        generator: the few-step generator G.
        noise_BCTHW: pure noise, the state at level 0.
        sigmas: the schedule `[N + 1]`, ending in 0.
        exit_index: k, in `[0, N)`.
        sampler: `euler` integrates to level k; `renoise` noises x0 afresh at every level (DMD2).
        fresh_noise: for `renoise`, the noise of the steps before k.

    Returns:
        `x_hat`, with a gradient to G where gradients are enabled.

    Raises:
        ValueError: if `exit_index` is no level of the schedule.
    """
    levels = len(sigmas) - 1
    if not 0 <= exit_index < levels:
        raise ValueError(f"exit_index is {exit_index}, expected 0 to {levels - 1} for a schedule of {levels} steps.")
    sigmas = sigmas.to(noise_BCTHW.device)
    walked = sigmas[: exit_index + 1]
    with torch.no_grad():
        if sampler == "euler":
            x_k = sample_euler(generator, noise_BCTHW, walked)
        else:
            x_k = sample_renoise(generator, noise_BCTHW, walked, lambda step, _: fresh_noise[step])
    sigma_k = sigmas[exit_index].expand(x_k.shape[0])
    return velocity_to_x0(x_k, generator(x_k, sigma_k), sigma_k)
