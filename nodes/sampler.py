"""Few-step flow sampler: the core's samplers inside ComfyUI's native sampling path."""

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_base import HunyuanVideoI2V
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.flow import (
    TIMESTEPS,
    SamplerState,
    few_step_sigmas,
    sample_euler,
    sample_renoise,
    seeded_noise,
    x0_to_velocity,
)
from ..magicdistill_core.recipe import Recipe
from .attached import attached_to, report

# What a file without a recipe is assumed to be: the schedule of MagicDistillation and Magic 1-For-1.
_STEPS, _SHIFT, _SAMPLER = 4, 5.0, "euler"
_FROM_RECIPE = "recipe"


class FewStepSampler(io.ComfyNode):
    """Node `MagicDistillSampler`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSampler",
            display_name="Few-step flow sampler",
            category="MagicDistillation/sampling",
            description="Samples a few-step model with exactly the schedule it was distilled for. Settings at 0 or "
            "'recipe' come from the loaded file; others are tried as given, and said to differ.",
            search_aliases=["magicdistill", "4 step sampler", "euler flow", "ksampler", "renoise", "dmd sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from Load few-step model."),
                io.Conditioning.Input("conditioning", tooltip="From Portrait to video: start image and prompt."),
                io.Latent.Input(
                    "latent", tooltip="From Portrait to video: gives size and batch; its content is not used."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Whole number, 0 to 2^64 - 1: which noise. Change it for another take of the same "
                    "portrait.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Model calls, 1 to 1000; 0 takes the recipe's. Few-step models lose quality on more steps "
                    "as well as on fewer; change it to compare, or for a teacher (28).",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Timestep shift, no unit, usually 1 to 17; 0 takes the recipe's. Higher spends more steps "
                    "on coarse motion. Change it only together with a model that was trained for it.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=[_FROM_RECIPE, "euler", "renoise"],
                    default=_FROM_RECIPE,
                    tooltip="recipe: as distilled. euler: deterministic flow. renoise: predicts the clean video and "
                    "noises it afresh at every step. Change it to compare.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The sampled video, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: list[list],
        latent: dict,
        seed: int,
        steps: int,
        shift: float,
        sampler: str,
    ) -> io.NodeOutput:
        attached = attached_to(model)
        steps, shift, sampler, notes = _settings(
            attached.recipe if attached is not None else None, steps, shift, sampler
        )
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        _check_start_image(model, conditioning, latent, samples)
        sigmas = few_step_sigmas(steps, shift)
        guider = Guider_Basic(model)
        guider.set_conds(conditioning)
        samples = guider.sample(
            Noise_RandomNoise(seed).generate_noise(latent | {"samples": samples}),
            samples,
            KSAMPLER(_sampler_function(sampler, seed)),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        timesteps = ", ".join(f"{TIMESTEPS * float(sigma):.1f}".removesuffix(".0") for sigma in sigmas[:-1][:8])
        said = f"{steps} steps, shift {shift:g}, {sampler}\ntimesteps {timesteps}{', ...' if steps > 8 else ''}"
        out = latent | {"samples": samples.to(comfy.model_management.intermediate_device())}
        return io.NodeOutput(out, ui=report(cls, said, notes))


def _settings(recipe: Recipe | None, steps: int, shift: float, sampler: str) -> tuple[int, float, str, list[str]]:
    """The settings to sample with, and what is to be said about them."""
    wanted = (recipe.steps, recipe.shift, recipe.sampler) if recipe is not None else (_STEPS, _SHIFT, _SAMPLER)
    used = (steps or wanted[0], shift or wanted[1], wanted[2] if sampler == _FROM_RECIPE else sampler)
    if recipe is None:
        return *used, [
            f"the model carries no recipe: where nothing is set, {_STEPS} steps, shift {_SHIFT:g} and {_SAMPLER} "
            f"are assumed."
        ]
    notes = [
        f"{name} is {got}, but the model was made for {want}."
        for name, got, want in zip(("steps", "shift", "sampler"), used, wanted, strict=True)
        if got != want
    ]
    if recipe.guidance_scale != 1:
        notes.append(
            f"the recipe asks for guidance {recipe.guidance_scale:g}; this sampler uses none. Use CFG Guider with "
            f"SamplerCustomAdvanced for it."
        )
    return *used, notes


def _sampler_function(name: str, seed: int):
    """One of the core's samplers, called as ComfyUI calls a sampler."""

    def magicdistill_sampler(
        model: torch.nn.Module, x: Tensor, sigmas: Tensor, extra_args: dict, callback, disable: bool
    ) -> Tensor:
        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            # ComfyUI's models answer with the clean estimate.
            return x0_to_velocity(x, model(x, sigma, **extra_args), sigma)

        def seen(state: SamplerState) -> None:
            callback({"i": state.step, "x": state.x, "denoised": state.x0, "sigma": state.sigma})
            progress.update()

        with comfy.utils.model_trange(len(sigmas) - 1, disable=disable) as progress:
            if name == "renoise":
                return sample_renoise(velocity, x, sigmas, seeded_noise(seed), seen)
            return sample_euler(velocity, x, sigmas, seen)

    return magicdistill_sampler


def _check_start_image(model: ModelPatcher, conditioning: list[list], latent: dict, samples: Tensor) -> None:
    """Refuse what ComfyUI would silently replace by zeros or rescale.

    Raises:
        VideoError: if an image-to-video model gets no start image, or one of another size than the latent.
    """
    attached = attached_to(model)
    if attached is not None and attached.family.kept_frames:
        if latent.get("noise_mask") is None or any("guiding_frame_index" not in values for _, values in conditioning):
            raise VideoError(
                "This model keeps the start image in the latent's first frame, and CONDITIONING or LATENT do not say "
                "so. Connect both outputs of Portrait to video."
            )
        return
    if not isinstance(model.model, HunyuanVideoI2V):
        return
    for _, values in conditioning:
        image = values.get("concat_latent_image")
        if image is None:
            raise VideoError(
                "The conditioning carries no start image, which this image-to-video model needs. Connect the "
                "CONDITIONING of Portrait to video."
            )
        if image.shape[-2:] != samples.shape[-2:]:
            raise VideoError(
                f"The start image was encoded to {list(image.shape[-2:])} latent pixels, but the latent has "
                f"{list(samples.shape[-2:])}. Connect CONDITIONING and LATENT of the same Portrait to video node."
            )
