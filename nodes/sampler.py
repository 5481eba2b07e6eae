"""Few-step flow sampler: run the core's samplers inside ComfyUI's native sampling path."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.flow import few_step_sigmas
from .other_changes import other_changes
from .previews import prepare_callback
from .release_edges import dropped_note
from .reporting import report
from .run_record import changes_note, run_record
from .sample_latent import sample_latent
from .sampling_checks import embedded_guidance
from .sampling_settings import sampler_input, settings_for, settings_line, shift_input, steps_input


class FewStepSampler(io.ComfyNode):
    """Node `MagicDistillSampler`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSampler",
            display_name="Few-step flow sampler",
            category="MagicDistillation/sampling",
            description="Samples a few-step model with exactly the schedule that it was distilled for. Settings at 0 "
            "or 'recipe' come from the loaded file. You can set other values: the node uses them and notes the "
            "difference.",
            search_aliases=["magicdistill", "4 step sampler", "euler flow", "ksampler", "renoise", "dmd sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from Load few-step model or Load few-step LoRA."),
                io.Conditioning.Input(
                    "conditioning", tooltip="The start image and the prompt, from Portrait to video."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent from Portrait to video. It determines the size and the number of videos; for "
                    "token-replace models it contains the start image.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Whole number from 0 to 2^64 - 1 that determines the noise. The same seed repeats the same "
                    "video; another seed makes another take of the same portrait. Default: 0.",
                ),
                steps_input(),
                shift_input(),
                sampler_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The sampled video, for VAE Decode."),
                io.String.Output(
                    display_name="record",
                    tooltip="How the video was made, as JSON: model file and its sha256, LoRAs, seed, schedule, and "
                    "what other nodes changed. Connect it to Save portrait video.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
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
        guidance, guidance_notes = embedded_guidance(model, conditioning)
        sigmas = few_step_sigmas(settings.steps, settings.shift)
        callback = prepare_callback(model, settings.steps)
        out = sample_latent(model, conditioning, latent, seed, settings, callback)
        changes = other_changes(model, conditioning, latent)
        record = run_record(model, conditioning, settings, sigmas, seed, guidance, changes)
        notes += guidance_notes + changes_note(changes) + dropped_note(model)
        return io.NodeOutput(out, record, ui=report(cls, settings_line(settings, sigmas), notes))
