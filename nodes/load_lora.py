"""Load few-step LoRA: a LoRA of any dialect on a MODEL, whose recipe then is the LoRA's."""

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
from .attachments import Attached, attach, attached_to, check_prompt_fits, known_family
from .file_hash import file_stamp
from .low_rank import apply_lora, fit_lora
from .reporting import recipe_said, report
from .token_replace import apply_release


class LoadLora(io.ComfyNode):
    """Node `MagicDistillLoadLora`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoadLora",
            display_name="Load few-step LoRA",
            category="MagicDistillation/loaders",
            description="Puts a LoRA on a HunyuanVideo or Wan 2.1 model of any loader, whatever names its trainer "
            "gave it, and says how much of it matched. A LoRA that carries a recipe (steps, shift, sampler) hands it "
            "to the MODEL, so that the nodes behind need no settings.",
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
                    tooltip="The base that the LoRA was trained on: from Load few-step model, a stock loader or a GGUF "
                    "loader; bf16, fp8 or int8. Chain this node for several LoRAs.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="File in models/loras. Names as MagicDistillation, diffusers, PEFT, kohya/musubi, "
                    "diffusion-pipe or ComfyUI write them; q, k and v fused or split. Change it for another "
                    "distillation or style.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Factor on the LoRA, -4 to 4, no unit; the file's alpha comes on top. 1 is what a few-step "
                    "LoRA was trained for. Lower it for a style LoRA that is too strong.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRA, its recipe and its recipe's shift.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("loras", lora_name)

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        lora = fit_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        recipe = lora.file.recipe
        if recipe is not None and recipe.kind == "fake_lora":
            raise CheckpointError(
                f"{lora_name} is the fake branch of a distillation, which scores videos and makes none. Expected a "
                f"generator LoRA: choose another file here, or use the node Real/fake LoRA weights for this one."
            )
        family = _family(model, recipe, lora_name)
        notes = lora.warnings(model)
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
            loras = (*base.loras, (lora_name, strength))
            prompt = lora.file.null_prompt or base.null_prompt
            if lora.file.null_prompt is not None:
                check_prompt_fits(model, lora.file.null_prompt, lora_name)
            attach(out, replace(base, recipe=recipe or base.recipe, null_prompt=prompt, loras=loras))
        said = f"{lora.said()}; strength {strength:g}"
        if recipe is not None:
            said += f"\n{recipe_said(recipe)}"
        elif base is None or base.recipe is None:
            notes.append(f"{lora_name} carries no recipe, nor does the model: settings are assumed.")
        return io.NodeOutput(out, ui=report(cls, said, notes))


def _family(model: ModelPatcher, recipe: Recipe | None, lora_name: str) -> Family | None:
    """The family of the MODEL, which the LoRA's recipe may settle where the MODEL leaves it open.

    Raises:
        CheckpointError: if the recipe is for another family than the MODEL's.
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
