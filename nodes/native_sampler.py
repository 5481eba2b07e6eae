"""Wrap the core's samplers as ComfyUI's native SAMPLER."""

from typing import Any

import comfy.utils
import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..magicdistill_core.flow import SamplerState, sample_euler, sample_renoise, seeded_noise, x0_to_velocity


def few_step_sampler(name: str) -> KSAMPLER:
    """Return one of the core's samplers as a native SAMPLER.

    Args:
        name: `euler` or `renoise`. `renoise` seeds its noise with the seed of the run's starting noise.
    """

    def magicdistill_sampler(
        model: torch.nn.Module, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
    ) -> Tensor:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            # ComfyUI's models return the estimate of the clean latent.
            return x0_to_velocity(x, model(x, sigma, **extra_args), sigma)

        def report_step(state: SamplerState) -> None:
            callback({"i": state.step, "x": state.x, "denoised": state.x0, "sigma": state.sigma})
            progress.update()

        sigmas = sigmas.float()  # other nodes may compute SIGMAS in any number type
        with comfy.utils.model_trange(len(sigmas) - 1, disable=disable) as progress:
            if name == "renoise":
                return sample_renoise(velocity, x, sigmas, seeded_noise(extra_args["seed"] or 0), report_step)
            return sample_euler(velocity, x, sigmas, report_step)

    return KSAMPLER(magicdistill_sampler)
