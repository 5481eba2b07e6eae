"""The core's samplers as ComfyUI's native SAMPLER."""

from typing import Any

import comfy.utils
import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..magicdistill_core.flow import SamplerState, sample_euler, sample_renoise, seeded_noise, x0_to_velocity


def few_step_sampler(name: str) -> KSAMPLER:
    """One of the core's samplers, 'euler' or 'renoise', as a native SAMPLER.

    'renoise' draws its noise by the seed that the run's starting noise came from.
    """

    def magicdistill_sampler(
        model: torch.nn.Module, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
    ) -> Tensor:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            # ComfyUI's models answer with the clean estimate.
            return x0_to_velocity(x, model(x, sigma, **extra_args), sigma)

        def seen(state: SamplerState) -> None:
            callback({"i": state.step, "x": state.x, "denoised": state.x0, "sigma": state.sigma})
            progress.update()

        with comfy.utils.model_trange(len(sigmas) - 1, disable=disable) as progress:
            if name == "renoise":
                return sample_renoise(velocity, x, sigmas, seeded_noise(extra_args["seed"] or 0), seen)
            return sample_euler(velocity, x, sigmas, seen)

    return KSAMPLER(magicdistill_sampler)
