"""Load few-step model: a diffusion model through ComfyUI's own loader, with its recipe and null prompt."""

from dataclasses import replace
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from ..magicdistill_core.checkpoint import (
    NULL_POOLED_KEY,
    NULL_TEXT_KEY,
    load_lora,
    parse_checkpoint,
    read_metadata,
)
from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.families.base import NullPrompt
from ..magicdistill_core.families.hunyuan_video import ARCHITECTURE, TOKEN_REPLACE
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.wrappers import QUANTISATION_MARKS
from .attached import Attached, attach, attached_to, file_stamp, report
from .file_hash import background_hash
from .low_rank import apply_branches
from .token_replace import apply_release

_NO_LORA = "none"
_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_model(path: str, model_options: dict, disable_dynamic: bool = False) -> ModelPatcher:
    """A file of the family as a MODEL with its recipe's shift, carrying what the file says of itself.

    Raises:
        CheckpointError: if the file is no safetensors, damaged, a LoRA, of another family, or takes no start image.
    """
    name = Path(path).name
    recipe = Recipe.from_metadata(read_metadata(path), name)
    state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(QUANTISATION_MARKS)}
    # ComfyUI finds a quantised weight's scale by name, so such a file keeps its own spelling.
    own_names = len(plain) < len(state)
    checkpoint = parse_checkpoint(plain, recipe, name, allow_quantised=True).teacher()
    if checkpoint.architecture is not ARCHITECTURE:
        raise CheckpointError(
            f"{name} holds a {checkpoint.architecture.title} transformer, and this node loads HunyuanVideo. Use "
            f"ComfyUI's Load Diffusion Model and its nodes for that model, with the steps and shift of the recipe."
        )
    family = checkpoint.family()  # asked now: ComfyUI's loader empties the state that it is given
    weights = checkpoint.state
    if own_names:
        weights = {key: tensor for key, tensor in state.items() if key not in (NULL_TEXT_KEY, NULL_POOLED_KEY)}
    model = comfy.sd.load_diffusion_model_state_dict(
        weights, model_options=model_options, metadata=metadata, disable_dynamic=disable_dynamic
    )
    if model is None:
        raise CheckpointError(
            f"{name} looks like a HunyuanVideo-I2V transformer, yet this ComfyUI does not recognise it. Update "
            f"ComfyUI, or export the checkpoint again."
        )
    if recipe is not None:
        model = ModelSamplingSD3().patch(model, recipe.shift)[0]
    if family is TOKEN_REPLACE:
        apply_release(model, checkpoint.shape.single_blocks, checkpoint.shape.guidance_embed)
    null_prompt = checkpoint.null_prompt
    if null_prompt is not None:
        # Not views of the file: it may be unmapped or replaced while the MODEL lives.
        pooled = None if null_prompt.pooled is None else null_prompt.pooled.clone()
        null_prompt = NullPrompt(null_prompt.text_states.clone(), pooled)
    attach(model, Attached(Path(path), family, recipe, null_prompt, background_hash(Path(path))))
    # ComfyUI loads anew from the file for a second GPU, or where hooks need unshared weights.
    model.cached_patcher_init = (load_model, (path, model_options))
    return model


class LoadModel(io.ComfyNode):
    """Node `MagicDistillLoadModel`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoadModel",
            display_name="Load few-step model",
            category="MagicDistillation/loaders",
            description="Loads a HunyuanVideo-I2V diffusion model (concat or token-replace) through ComfyUI's own "
            "loader. Its recipe (steps, shift, sampler, size) and its null prompt travel with the MODEL, so that the "
            "nodes behind it need no settings and no text encoder.",
            search_aliases=["magicdistill", "load distilled", "hunyuan i2v loader", "few step", "magic 1-for-1"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="File in models/diffusion_models (.safetensors). Files exported by MagicDistillation carry "
                    "a recipe; other HunyuanVideo-I2V files of the concat kind (33 input channels) load too, without. "
                    "Token-replace files (16 channels) need one, or they could be text-to-video.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[_NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=_NO_LORA,
                    tooltip="Generator LoRA on top of the file, for distillations that were exported as base + LoRA. "
                    "Its recipe then replaces the file's. Leave at none for a full checkpoint.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the weights are held in memory. default keeps the file's type; fp8 halves the memory "
                    "of a bf16 file and costs some quality. Change it when the model does not fit.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with its recipe and its recipe's shift.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str, lora_name: str, weight_dtype: str) -> tuple[tuple[int, int], ...]:
        return file_stamp("diffusion_models", unet_name), file_stamp("loras", lora_name)

    @classmethod
    def execute(cls, unet_name: str, lora_name: str, weight_dtype: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        model = load_model(path, _DTYPES[weight_dtype])
        if lora_name != _NO_LORA:
            model = _with_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        recipe = attached_to(model).recipe
        if recipe is None:
            return io.NodeOutput(
                model, ui=report(cls, "Loaded.", [f"{unet_name} carries no recipe: settings are assumed."])
            )
        text = (
            f"{recipe.kind}: {recipe.steps} steps, shift {recipe.shift:g}, {recipe.sampler}\n"
            f"{recipe.width} x {recipe.height}, {recipe.frames} frames, {recipe.fps:g} fps"
        )
        return io.NodeOutput(model, ui=report(cls, text, []))


def _with_lora(model: ModelPatcher, path: str) -> ModelPatcher:
    lora = load_lora(path, model.model.model_config.unet_config["hidden_size"])
    if lora.recipe is not None and lora.recipe.kind == "fake_lora":
        raise CheckpointError(
            f"{lora.source} is the fake branch of a distillation, which is no generator. Expected a generator LoRA: "
            f"choose another file here, or use the node Real/fake LoRA weights for this one."
        )
    model = apply_branches(model, lora, 1.0)
    if lora.recipe is not None:
        base = attached_to(model)
        model = ModelSamplingSD3().patch(model, lora.recipe.shift)[0]
        attach(model, replace(base, recipe=lora.recipe))
    return model
