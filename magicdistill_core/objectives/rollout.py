"""The generator's rollout: few-step sampling down to a random level; only the last model call has a gradient.

x0 is the generator's estimate of the clean latent. DMD2: arXiv 2405.14867.
"""

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
    """Return the generator's samples: its x0 estimates at level k of the schedule.

    The samples are `x_hat = x_k - sigma_k * G(x_k, sigma_k)`, where x_k is sampled from pure noise without gradient.
    Sampling stops at level k after `exit_index + 1` model calls. All processes with the same k make the same number of
    calls.

    Args:
        generator: the few-step generator G, a callable `(x, sigma) -> velocity`.
        noise_BCTHW: standard normal noise, the latent at `sigmas[0]`.
        sigmas: the noise levels `[N + 1]` of the schedule, decreasing to 0.
        exit_index: k, in `[0, N)`; the last model call is at `sigmas[k]`.
        sampler: `euler` integrates to level k; `renoise` adds fresh noise to x0 at every level (DMD2).
        fresh_noise: for `renoise`, the noise of the k steps before level k, each shaped as `noise_BCTHW`; unused by
            `euler`.

    Returns:
        `x_hat`, shaped as `noise_BCTHW`, with a gradient to G if gradients are enabled.

    Raises:
        ValueError: if `exit_index` is not in `[0, N)`.
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
