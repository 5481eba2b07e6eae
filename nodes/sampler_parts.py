"""The few-step sampler in parts, for SamplerCustomAdvanced: its schedule as SIGMAS, its step as SAMPLER."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.flow import few_step_sigmas
from .native_sampler import few_step_sampler
from .reporting import report
from .sampling_settings import said_of, sampler_input, settings_for, shift_input, steps_input


class FewStepSigmas(io.ComfyNode):
    """Node `MagicDistillSigmas`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSigmas",
            display_name="Few-step sigmas",
            category="MagicDistillation/sampling",
            description="The schedule that a few-step model was distilled for, as SIGMAS for SamplerCustomAdvanced. "
            "Works with this pack's SAMPLER and with those of KSamplerSelect.",
            search_aliases=["magicdistill", "scheduler", "flow schedule", "timesteps", "4 step sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from Load few-step model: gives its schedule."),
                steps_input(),
                shift_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="steps + 1 noise levels from 1 to 0.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, steps: int, shift: float) -> io.NodeOutput:
        settings, notes = settings_for(model, steps, shift)
        sigmas = few_step_sigmas(settings.steps, settings.shift)
        return io.NodeOutput(sigmas, ui=report(cls, said_of(settings, sigmas), notes))


class FewStepSamplerSelect(io.ComfyNode):
    """Node `MagicDistillSamplerSelect`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSamplerSelect",
            display_name="Few-step sampler (SAMPLER)",
            category="MagicDistillation/sampling",
            description="The step that a few-step model was distilled for, as SAMPLER for SamplerCustomAdvanced. What "
            "renoise draws follows the seed of the noise node.",
            search_aliases=["magicdistill", "ksampler select", "renoise", "euler flow", "dmd sampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, from Load few-step model: gives its sampler."),
                sampler_input(),
            ],
            outputs=[io.Sampler.Output(tooltip="The step, for SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, sampler: str) -> io.NodeOutput:
        settings, notes = settings_for(model, sampler=sampler)
        return io.NodeOutput(few_step_sampler(settings.sampler), ui=report(cls, settings.sampler, notes))
