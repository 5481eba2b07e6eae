"""The few-step sampler in two parts for SamplerCustomAdvanced: the schedule as SIGMAS, the sampler as SAMPLER."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.flow import few_step_sigmas
from .native_sampler import few_step_sampler
from .release_edges import edge_notes
from .reporting import report
from .sampling_settings import sampler_input, settings_for, settings_line, shift_input, steps_input


class FewStepSigmas(io.ComfyNode):
    """Node `MagicDistillSigmas`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSigmas",
            display_name="Few-step sigmas",
            category="MagicDistillation/sampling",
            description="Outputs the schedule that a few-step model was distilled for, as SIGMAS for "
            "SamplerCustomAdvanced. Combine it with Few-step sampler (SAMPLER) or a sampler of KSamplerSelect.",
            search_aliases=["magicdistill", "scheduler", "flow schedule", "timesteps", "4 step sigmas"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample, from Load few-step model. Its recipe determines the schedule.",
                ),
                steps_input(),
                shift_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="The noise levels from 1 to 0, steps + 1 numbers.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, steps: int, shift: float) -> io.NodeOutput:
        settings, notes = settings_for(model, steps, shift)
        sigmas = few_step_sigmas(settings.steps, settings.shift)
        return io.NodeOutput(sigmas, ui=report(cls, settings_line(settings, sigmas), notes + edge_notes(model)))


class FewStepSamplerSelect(io.ComfyNode):
    """Node `MagicDistillSamplerSelect`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSamplerSelect",
            display_name="Few-step sampler (SAMPLER)",
            category="MagicDistillation/sampling",
            description="Outputs the sampler that a few-step model was distilled for, as SAMPLER for "
            "SamplerCustomAdvanced. The renoise sampler uses the seed of the noise node.",
            search_aliases=["magicdistill", "ksampler select", "renoise", "euler flow", "dmd sampler"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to sample, from Load few-step model. Its recipe names the sampler."
                ),
                sampler_input(),
            ],
            outputs=[io.Sampler.Output(tooltip="The sampler, for SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, sampler: str) -> io.NodeOutput:
        settings, notes = settings_for(model, sampler=sampler)
        return io.NodeOutput(few_step_sampler(settings.sampler), ui=report(cls, settings.sampler, notes))
