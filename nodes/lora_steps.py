"""LoRA strength per step: apply a LoRA through ComfyUI's hooks, with a different strength at each sampling step."""

import comfy.hooks
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.errors import CheckpointError, ConfigError
from ..magicdistill_core.lora_schedule import parse_strengths, strength_at
from .attachments import attached_to
from .file_hash import file_stamp
from .lora_keyframes import StepKeyframes
from .low_rank import FittedLora, fit_lora
from .reporting import report
from .run_record import note_lora
from .unmerged_lora import unmerged_hook, weights_are_fixed

_SHOWN = 12


class LoraSteps(io.ComfyNode):
    """Node `MagicDistillLoraSteps`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoraSteps",
            display_name="LoRA strength per step",
            category="MagicDistillation/conditioning",
            description="Applies a LoRA with a different strength at each sampling step. The LoRA is attached to the "
            "CONDITIONING through ComfyUI's hooks: it works with every sampler, and the MODEL itself does not change.",
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
                    tooltip="The model that will be sampled, from any loader. It determines which weights the LoRA "
                    "changes and how many steps the recipe has. Do not apply the same LoRA to this model as well: the "
                    "strengths would add up.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The conditioning for the sampler, from Portrait to video. With classifier-free guidance, "
                    "send the negative conditioning through a second node with the same settings.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="The LoRA file, from models/loras. Every file that Load few-step LoRA reads works here.",
                ),
                io.String.Input(
                    "strengths",
                    default="1, 1, 0.5, 0",
                    tooltip="One strength per step, separated by commas, each from -10 to 10 (a factor, no unit; 0 "
                    "disables the LoRA in that step). The last number also holds for all further steps. Early steps "
                    "decide motion and layout, late steps decide detail: use a lower number for the steps that the "
                    "LoRA harms.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Number of sampling steps of the full schedule, up to 1000. 0 (default) uses the recipe's "
                    "number or, without a recipe, one step per strength. If you set another number of steps in the "
                    "sampler, set the same number here.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The conditioning with the LoRA attached, for the sampler.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        # None: the text comes from another node and is not known yet.
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
                f"{len(values)} strengths for {steps} steps: the last {len(values) - steps} apply only if the sampler "
                f"makes more steps."
            )
        if attached is not None and any(name == lora_name for name, _ in attached.loras):
            notes.append(f"{lora_name} is already applied to the MODEL: the strengths add up.")
        hooks, left_out = _hooks(model, lora, StepKeyframes(values, steps))
        if left_out == len(lora.patches) + len(lora.parameters):
            raise CheckpointError(
                f"{lora_name} holds only full weight differences, which cannot change per step on this model (its "
                f"weights are quantised). Load it with Load few-step LoRA, or use a LoRA of low-rank pairs or a bf16 "
                f"model."
            )
        if left_out:
            notes.append(f"{left_out} full weight differences of {lora_name} cannot change per step and were left out.")
        first = [strength_at(values, step) for step in range(min(steps, _SHOWN))]
        shown = ", ".join(f"{value:g}" for value in first) + (", ..." if steps > _SHOWN else "")
        text = f"{lora.summary()}; {steps} steps: {shown}"
        out = note_lora(comfy.hooks.set_hooks_for_conditioning(conditioning, hooks), lora_name, values)
        return io.NodeOutput(out, ui=report(cls, text, notes))


def _hooks(model: ModelPatcher, lora: FittedLora, frames: StepKeyframes) -> tuple[comfy.hooks.HookGroup, int]:
    """Return a hook whose strength follows `frames`, and how many of the LoRA's differences cannot be applied."""
    if weights_are_fixed(model):
        hook, left_out = unmerged_hook(model, lora, frames)
    else:
        hook, left_out = comfy.hooks.WeightHook(), len(lora.parameters)
        # Pass finished weight patches: from a plain LoRA, ComfyUI would match only its own module names.
        hook.weights, hook.need_weight_init = lora.patches, False
    hook.hook_keyframe = frames
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group, left_out
