"""LoRA strength per step: a LoRA by ComfyUI's hooks, strong at some steps of the sampling and weak at others."""

import comfy.hooks
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.errors import ConfigError
from ..magicdistill_core.lora_schedule import parse_strengths, strength_at
from .attachments import attached_to
from .file_hash import file_stamp
from .lora_beside import beside_hook, weights_are_fixed
from .lora_keyframes import StepKeyframes
from .low_rank import FittedLora, fit_lora
from .reporting import report
from .run_record import note_lora

_SHOWN = 12


class LoraSteps(io.ComfyNode):
    """Node `MagicDistillLoraSteps`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoraSteps",
            display_name="LoRA strength per step",
            category="MagicDistillation/conditioning",
            description="Ties a LoRA to a CONDITIONING, with a strength for every step of the sampling, through "
            "ComfyUI's own hooks: every sampler honours it, and the MODEL stays as it is.",
            search_aliases=[
                "magicdistill",
                "lora schedule",
                "scheduled lora",
                "lora keyframes",
                "lora per step",
                "hook lora",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that will be sampled, from any loader: tells which weights the LoRA changes "
                    "and how many steps its recipe has. Do not put the same LoRA on it as well.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The conditioning for the sampler, from Portrait to video. With guidance, run the "
                    "negative one through a node of its own with the same settings.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="File in models/loras, of any dialect that Load few-step LoRA reads. Change it for another "
                    "style or motion.",
                ),
                io.String.Input(
                    "strengths",
                    default="1, 1, 0.5, 0",
                    tooltip="One number for each step, -10 to 10, no unit, with commas between; the last is repeated. "
                    "Early steps decide on motion and layout, late ones on detail: lower the ones where the LoRA "
                    "harms.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Steps of the sampling, 1 to 1000; 0 takes the recipe's, or without one as many as there "
                    "are strengths. Set it when the sampler is set to another number of steps than the recipe.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The conditioning with the LoRA tied to it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        # None comes from another node.
        try:
            if strengths is not None:
                parse_strengths(strengths)
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("loras", lora_name)

    @classmethod
    def execute(
        cls, model: ModelPatcher, conditioning: list[list], lora_name: str, strengths: str, steps: int
    ) -> io.NodeOutput:
        values = parse_strengths(strengths)
        lora = fit_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        attached = attached_to(model)
        recipe = attached.recipe if attached is not None else None
        steps = steps or (recipe.steps if recipe is not None else len(values))
        notes = lora.warnings(model)
        if len(values) > steps:
            notes.append(
                f"{len(values)} strengths for {steps} steps: the last {len(values) - steps} hold only in a sampling of "
                f"more steps."
            )
        if attached is not None and any(name == lora_name for name, _ in attached.loras):
            notes.append(f"{lora_name} is on the MODEL already, so that its strengths add up.")
        hooks, left_out = _hooks(model, lora, StepKeyframes(values, steps))
        if left_out:
            notes.append(f"{left_out} whole differences of {lora_name} cannot follow steps and are left out.")
        first = [strength_at(values, step) for step in range(min(steps, _SHOWN))]
        shown = ", ".join(f"{value:g}" for value in first) + (", ..." if steps > _SHOWN else "")
        said = f"{lora.said()}; {steps} steps: {shown}"
        out = note_lora(comfy.hooks.set_hooks_for_conditioning(conditioning, hooks), lora_name, values)
        return io.NodeOutput(out, ui=report(cls, said, notes))


def _hooks(model: ModelPatcher, lora: FittedLora, frames: StepKeyframes) -> tuple[comfy.hooks.HookGroup, int]:
    """A hook whose strength follows `frames`, and how many differences of the LoRA it has to leave out."""
    if weights_are_fixed(model):
        hook, left_out = beside_hook(model, lora, frames)
    else:
        hook, left_out = comfy.hooks.WeightHook(), len(lora.parameters)
        # As patches of the model's weights: ComfyUI would look for its own names of modules otherwise.
        hook.weights, hook.need_weight_init = lora.patches, False
    hook.hook_keyframe = frames
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group, left_out
