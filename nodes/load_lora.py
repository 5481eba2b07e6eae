"""Load few-step LoRA: apply a LoRA with any trainer's key names to a MODEL, together with the LoRA's recipe."""

from dataclasses import replace

import folder_paths
from comfy.model_base import HunyuanVideo
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.families import family_named
from ..magicdistill_core.families.base import Family
from ..magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from ..magicdistill_core.recipe import Recipe
from .attachments import Attached, attach, attached_to, check_captions_fit, check_prompt_fits, known_family
from .file_hash import file_stamp
from .low_rank import apply_lora, fit_lora
from .reporting import recipe_line, recipe_notes, report
from .token_replace import apply_release


class LoadLora(io.ComfyNode):
    """Node `MagicDistillLoadLora`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoadLora",
            display_name="Load few-step LoRA",
            category="MagicDistillation/loaders",
            description="Applies a LoRA to a HunyuanVideo or Wan 2.1 model from any loader. It reads the key names of "
            "all common trainers and reports how many modules matched. If the LoRA carries a recipe (steps, shift, "
            "sampler), the recipe is attached to the MODEL, and the sampler needs no settings.",
            search_aliases=[
                "magicdistill",
                "lora loader",
                "load lora",
                "distill lora",
                "lightning lora",
                "lightx2v",
                "4 step lora",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that the LoRA was trained on, from Load few-step model, a stock loader or "
                    "a GGUF loader; its weights may be bf16, fp8 or int8. To apply several LoRAs, chain several of "
                    "these nodes.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="The LoRA file, from models/loras, with the key names of MagicDistillation, diffusers, "
                    "PEFT, kohya/musubi, diffusion-pipe or ComfyUI; q, k and v may be fused or split. The fake LoRA "
                    "of a distillation is refused: load it with Real/fake LoRA weights.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How strongly the LoRA acts: a factor from -4 to 4 (no unit), multiplied with the file's "
                    "own scale (alpha). 1 (default) is the value of training, negative values reverse the effect. "
                    "0 turns the LoRA off: the model keeps its weights and its own recipe. Lower it if a style LoRA is "
                    "too strong.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with the LoRA applied. If the LoRA has a recipe, its settings and shift too."
                )
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("loras", lora_name)

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        if strength == 0:
            # As in ComfyUI's own loader, the file may belong to another model. So a workflow with a LoRA takes a
            # complete few-step model too.
            return io.NodeOutput(model, ui=report(cls, f"strength 0: {lora_name} is off, the model is unchanged", []))
        lora = fit_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        recipe = lora.file.recipe
        if recipe is not None and recipe.kind == "fake_lora":
            raise CheckpointError(
                f"{lora_name} is the fake branch of a distillation. It scores videos and cannot generate them. "
                f"Expected a generator LoRA: choose another file here, or load this one with the node Real/fake LoRA "
                f"weights."
            )
        family = _family(model, recipe, lora_name)
        notes = lora.warnings(model) + recipe_notes(recipe, lora_name)
        out = apply_lora(model, lora, strength)
        if recipe is not None:
            out = ModelSamplingSD3().patch(out, recipe.shift)[0]
        base = attached_to(model)
        if base is None and family is not None:
            base = Attached(None, family, None, None)
            if family is TOKEN_REPLACE:
                config = model.model.model_config.unet_config
                apply_release(out, config["depth_single_blocks"], config["guidance_embed"])
        if base is not None:
            prompt = lora.file.null_prompt or base.null_prompt
            if lora.file.null_prompt is not None:
                check_prompt_fits(model, lora.file.null_prompt, lora_name)
            check_captions_fit(model, lora.file.captions, lora_name)
            captions = lora.file.captions or base.captions
            base = base.with_lora(lora_name, strength, {**lora.patches, **lora.parameters})
            attach(out, replace(base, recipe=recipe or base.recipe, null_prompt=prompt, captions=captions))
        if recipe is not None and recipe.teacher_loras:
            wanted = " and ".join(f"{each.name} at {each.weight:g}" for each in recipe.teacher_loras)
            notes.append(
                f"{lora_name} was trained on its base with {wanted}. Load these LoRAs too, or the video differs from "
                f"those of the training."
            )
        text = f"{lora.summary()}; strength {strength:g}"
        if recipe is not None:
            text += f"\n{recipe_line(recipe)}"
        elif base is None or base.recipe is None:
            notes.append(f"neither {lora_name} nor the model carries a recipe: the sampler uses default settings.")
        return io.NodeOutput(out, ui=report(cls, text, notes))


def _family(model: ModelPatcher, recipe: Recipe | None, lora_name: str) -> Family | None:
    """Return the family of the MODEL. If the MODEL does not decide it, the LoRA's recipe may.

    Raises:
        CheckpointError: if the recipe is for a different family than the MODEL.
    """
    family = known_family(model)
    if recipe is None:
        return family
    wanted = family_named(recipe.family, recipe.i2v_mode)
    if family is None and isinstance(model.model, HunyuanVideo) and wanted is TOKEN_REPLACE:
        return wanted
    if family is not wanted:
        title = "not known to take a start image" if family is None else f"{family.architecture.title}: {family.title}"
        raise CheckpointError(
            f"{lora_name} was made for {recipe.family}, start image {recipe.i2v_mode}, but the model is {title}. Load "
            f"the base that the LoRA was trained on."
        )
    return family
