"""Few-step flow sampler: the core's samplers inside ComfyUI's native sampling path."""

import comfy.model_management
import comfy.sample
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise

from ..magicdistill_core.flow import few_step_sigmas
from .native_sampler import few_step_sampler
from .previews import prepare_callback
from .reporting import report
from .run_record import run_record
from .sampling_checks import check_start_image, embedded_guidance
from .sampling_settings import said_of, sampler_input, settings_for, shift_input, steps_input


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
                    "latent",
                    tooltip="From Portrait to video: gives size and batch, and for token-replace models the start "
                    "image.",
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
                steps_input(),
                shift_input(),
                sampler_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The sampled video, for VAE Decode."),
                io.String.Output(
                    display_name="record",
                    tooltip="What made the video, as JSON (checkpoint and its sha256, LoRAs, seed, schedule): connect "
                    "it to Save portrait video.",
                ),
            ],
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
        settings, notes = settings_for(model, steps, shift, sampler)
        guidance, said_of_guidance = embedded_guidance(model, conditioning)
        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        check_start_image(model, conditioning, latent, samples)
        sigmas = few_step_sigmas(settings.steps, settings.shift)
        guider = Guider_Basic(model)
        guider.set_conds(conditioning)
        samples = guider.sample(
            Noise_RandomNoise(seed).generate_noise(latent | {"samples": samples}),
            samples,
            few_step_sampler(settings.sampler),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=prepare_callback(model, settings.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        out = latent | {"samples": samples.to(comfy.model_management.intermediate_device())}
        record = run_record(model, conditioning, settings, sigmas, seed, guidance)
        return io.NodeOutput(out, record, ui=report(cls, said_of(settings, sigmas), notes + said_of_guidance))
