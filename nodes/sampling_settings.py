"""How a few-step model is sampled: the inputs of the nodes, completed by the recipe, and the settings in words."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.flow import TIMESTEPS
from .attachments import attached_to

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


def said_of(settings: Settings, sigmas: Tensor) -> str:
    """Steps and shift, the sampler, and the first of the schedule's timesteps, in words."""
    shown = ", ".join(f"{TIMESTEPS * float(sigma):.1f}".removesuffix(".0") for sigma in sigmas[:-1][:_SHOWN])
    more = ", ..." if settings.steps > _SHOWN else ""
    return f"{settings.steps} steps, shift {settings.shift:g}, {settings.sampler}\ntimesteps {shown}{more}"
