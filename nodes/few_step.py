"""What the few-step sampler and its parts share: settings from the recipe, the core's samplers, and what to check."""

from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.flow import (
    TIMESTEPS,
    SamplerState,
    sample_euler,
    sample_renoise,
    seeded_noise,
    x0_to_velocity,
)
from .attached import attached_to, known_family

# What a file without a recipe is assumed to be: the schedule of MagicDistillation and Magic 1-For-1.
_STEPS, _SHIFT, _SAMPLER = 4, 5.0, "euler"
FROM_RECIPE = "recipe"
_SHOWN = 8


def steps_input() -> io.Int.Input:
    """How many model calls."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip="Model calls, 1 to 1000; 0 takes the recipe's. Few-step models lose quality on more steps as well as "
        "on fewer; change it to compare, or for a teacher (28).",
    )


def shift_input() -> io.Float.Input:
    """How the steps are spread over the noise levels."""
    return io.Float.Input(
        "shift",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip="Timestep shift, no unit, up to 100, usually 1 to 17; 0 takes the recipe's. Higher spends more steps "
        "on coarse motion. Change it only together with a model that was trained for it.",
    )


def sampler_input() -> io.Combo.Input:
    """How a step is made."""
    return io.Combo.Input(
        "sampler",
        options=[FROM_RECIPE, "euler", "renoise"],
        default=FROM_RECIPE,
        tooltip="recipe: as distilled. euler: deterministic flow. renoise: predicts the clean video and noises it "
        "afresh at every step. Change it to compare.",
    )


@dataclass(frozen=True)
class Settings:
    """How to sample: model calls, timestep shift and the core's sampler."""

    steps: int
    shift: float
    sampler: str


def settings_for(
    model: ModelPatcher, steps: int = 0, shift: float = 0.0, sampler: str = FROM_RECIPE
) -> tuple[Settings, list[str]]:
    """The settings to sample a MODEL with, where 0 and 'recipe' leave one to its recipe, and what to say of them."""
    attached = attached_to(model)
    recipe = attached.recipe if attached is not None else None
    patched = _patched_shift(model)
    if recipe is None:
        wanted = Settings(_STEPS, patched or _SHIFT, _SAMPLER)
        notes = [
            f"the model carries no recipe: where nothing is set, {wanted.steps} steps, shift {wanted.shift:g} "
            f"{'(set on the MODEL) ' if patched else ''}and {wanted.sampler} are assumed."
        ]
    else:
        wanted, notes = Settings(recipe.steps, recipe.shift, recipe.sampler), []
    used = Settings(steps or wanted.steps, shift or wanted.shift, wanted.sampler if sampler == FROM_RECIPE else sampler)
    if recipe is not None:
        notes += [
            f"{name} is {got}, but the model was made for {want}."
            for name, got, want in (
                ("steps", used.steps, wanted.steps),
                ("shift", used.shift, wanted.shift),
                ("sampler", used.sampler, wanted.sampler),
            )
            if got != want
        ]
        if recipe.guidance_scale != 1:
            notes.append(
                f"the recipe asks for guidance {recipe.guidance_scale:g}; the few-step sampler uses none. Use CFG "
                f"Guider with SamplerCustomAdvanced for it."
            )
    if patched and patched not in (used.shift, recipe.shift if recipe is not None else None):
        notes.append(
            f"another node set the MODEL's own shift to {patched:g}, which does not reach this schedule: shift "
            f"{used.shift:g} is used. Set shift {patched:g} here if that was meant, or remove the other node."
        )
    return used, notes


def _patched_shift(model: ModelPatcher) -> float | None:
    """The shift that a node (the pack's loader, ModelSamplingSD3) gave a MODEL, if one did."""
    sampling = model.object_patches.get("model_sampling")
    return getattr(sampling, "shift", None)


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


def said_of(settings: Settings, sigmas: Tensor) -> str:
    """Steps and shift, the sampler, and the first of the schedule's timesteps, in words."""
    shown = ", ".join(f"{TIMESTEPS * float(sigma):.1f}".removesuffix(".0") for sigma in sigmas[:-1][:_SHOWN])
    more = ", ..." if settings.steps > _SHOWN else ""
    return f"{settings.steps} steps, shift {settings.shift:g}, {settings.sampler}\ntimesteps {shown}{more}"


def check_start_image(model: ModelPatcher, conditioning: list[list], latent: dict, samples: Tensor) -> None:
    """Refuse what ComfyUI would silently replace by zeros or rescale.

    Raises:
        VideoError: if an image-to-video model gets no start image, or one of another size than the latent.
    """
    family = known_family(model)
    if family is None or not family.takes_image:
        return
    if family.kept_frames:
        if latent.get("noise_mask") is None or any("guiding_frame_index" not in values for _, values in conditioning):
            raise VideoError(
                "This model keeps the start image in the latent's first frame, and CONDITIONING or LATENT do not say "
                "so. Connect both outputs of Portrait to video."
            )
        return
    # Wan's image half covers the video; the other families' is one frame.
    sides = slice(-3, None) if family.image_covers_video else slice(-2, None)
    for _, values in conditioning:
        image = values.get("concat_latent_image")
        if image is None:
            raise VideoError(
                "The conditioning carries no start image, which this image-to-video model needs. Connect the "
                "CONDITIONING of Portrait to video."
            )
        if image.shape[sides] != samples.shape[sides]:
            raise VideoError(
                f"The start image was encoded to {list(image.shape[sides])} latent pixels, but the latent has "
                f"{list(samples.shape[sides])}. Connect CONDITIONING and LATENT of the same Portrait to video node."
            )
        mask = values.get("concat_mask")
        if mask is not None and mask.shape[-3:] != samples.shape[-3:]:
            raise VideoError(
                f"The conditioning was made for {list(mask.shape[-3:])} latent frames, rows and columns, but the "
                f"latent has {list(samples.shape[-3:])}. Connect CONDITIONING and LATENT of the same Portrait to video "
                f"node."
            )


def embedded_guidance(model: ModelPatcher, conditioning: list[list]) -> tuple[float | None, list[str]]:
    """The guidance that a network with a guidance embedding is given, and whether it was made for another.

    None for networks without such an embedding, which ignore what a conditioning says.
    """
    if not model.model.model_config.unet_config.get("guidance_embed"):
        return None, []
    given = {float(values["guidance"]) for _, values in conditioning if values.get("guidance") is not None}
    attached = attached_to(model)
    wanted = attached.recipe.embedded_guidance if attached is not None and attached.recipe is not None else None
    notes = [
        f"guidance is {value:g}, but the model was made for {wanted:g}."
        for value in sorted(given)
        if wanted is not None and value != wanted
    ]
    return min(given, default=None), notes
