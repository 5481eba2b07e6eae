"""Sampling settings: the inputs that the sampling nodes share, how the recipe completes them, and their summary."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..magicdistill_core.flow import TIMESTEPS
from .attachments import attached_to

# The defaults for a file without a recipe: the schedule of MagicDistillation and Magic 1-For-1.
_STEPS, _SHIFT, _SAMPLER = 4, 5.0, "euler"
FROM_RECIPE = "recipe"
_SHOWN = 8


def steps_input() -> io.Int.Input:
    """Return the definition of the input `steps`, the number of model calls."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip="Number of model calls, up to 1000. 0 (default) uses the recipe's number, also for a teacher (about "
        "28); without a recipe it means 4. A few-step model loses quality with more steps as well as with fewer.",
    )


def shift_input() -> io.Float.Input:
    """Return the definition of the input `shift`, which spreads the steps over the noise levels."""
    return io.Float.Input(
        "shift",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip="Timestep shift, up to 100 (no unit), usually 1 to 17. 0 (default) uses the recipe's shift; without a "
        "recipe the shift that another node set on the MODEL, or 5. A higher shift spends more steps on high noise, "
        "where coarse motion forms. Set it only if the model was trained for another value.",
    )


def sampler_input() -> io.Combo.Input:
    """Return the definition of the input `sampler`, the rule for one step."""
    return io.Combo.Input(
        "sampler",
        options=[FROM_RECIPE, "euler", "renoise"],
        default=FROM_RECIPE,
        tooltip="Rule for one step. recipe (default): the sampler that the recipe names; without a recipe euler. "
        "euler: moves along the predicted flow and adds no noise. renoise: predicts the clean video, then adds new "
        "noise for the next step; the last step adds none. Choose euler or renoise only to compare.",
    )


@dataclass(frozen=True)
class Settings:
    """The settings of a sampling.

    Attributes:
        steps: number of model calls.
        shift: timestep shift; 1 spreads the steps evenly over the noise levels.
        sampler: the core's sampler, `euler` or `renoise`.
    """

    steps: int
    shift: float
    sampler: str


def settings_for(
    model: ModelPatcher, steps: int = 0, shift: float = 0.0, sampler: str = FROM_RECIPE
) -> tuple[Settings, list[str]]:
    """Return complete settings for a MODEL, and notes for the user. The MODEL's recipe sets what the user leaves open.

    Without a recipe, these are 4 steps, the shift that another node set on the MODEL, or 5, and `euler`.

    Args:
        model: the MODEL.
        steps: number of model calls; 0 leaves it open.
        shift: timestep shift; 0 leaves it open.
        sampler: `euler` or `renoise`; `recipe` leaves it open.
    """
    attached = attached_to(model)
    recipe = attached.recipe if attached is not None else None
    patched = _patched_shift(model)
    if recipe is None:
        wanted = Settings(_STEPS, patched or _SHIFT, _SAMPLER)
        notes = [
            f"the model carries no recipe: for unset inputs, {wanted.steps} steps, shift {wanted.shift:g} "
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
                f"the recipe sets classifier-free guidance {recipe.guidance_scale:g}, but this sampler uses none. Use "
                f"CFG Guider with SamplerCustomAdvanced instead."
            )
    if patched and patched not in (used.shift, recipe.shift if recipe is not None else None):
        notes.append(
            f"another node set the MODEL's own shift to {patched:g}, which does not affect this schedule: shift "
            f"{used.shift:g} is used. Set shift {patched:g} here if you want it, or remove the other node."
        )
    return used, notes


def _patched_shift(model: ModelPatcher) -> float | None:
    """Return the shift that a node (this pack's loader, ModelSamplingSD3) set on a MODEL; None if no node did."""
    sampling = model.object_patches.get("model_sampling")
    return getattr(sampling, "shift", None)


def settings_line(settings: Settings, sigmas: Tensor) -> str:
    """Return steps, shift, sampler and the first timesteps of the schedule as two lines of text.

    Args:
        settings: the settings.
        sigmas: the noise levels, `[steps + 1]`.
    """
    shown = ", ".join(f"{TIMESTEPS * float(sigma):.1f}".removesuffix(".0") for sigma in sigmas[:-1][:_SHOWN])
    more = ", ..." if settings.steps > _SHOWN else ""
    return f"{settings.steps} steps, shift {settings.shift:g}, {settings.sampler}\ntimesteps {shown}{more}"
