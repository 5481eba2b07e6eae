"""Load few-step model: load a diffusion model with ComfyUI's own loader, and keep its recipe and null prompt."""

import re
from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from torch import Tensor

from ..magicdistill_core.captions import is_caption
from ..magicdistill_core.checkpoint import Checkpoint, parse_checkpoint, transformer_tensors
from ..magicdistill_core.errors import CheckpointError, ImageModeError
from ..magicdistill_core.families.base import NullPrompt
from ..magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from ..magicdistill_core.files import enough_memory
from ..magicdistill_core.int8 import QUANTISATION_KEY
from ..magicdistill_core.null_prompt import NULL_POOLED_KEY, NULL_TEXT_KEY
from ..magicdistill_core.quantised_files import describe_quantised
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.safetensors_file import read_metadata
from ..magicdistill_core.soundness import check_number_types
from ..magicdistill_core.wrappers import QUANTISATION_MARKS, is_pickle_name, read_pickle
from .attachments import Attached, attach, attached_to, check_captions_fit, check_prompt_fits
from .file_hash import background_hash, file_stamp
from .reporting import recipe_line, recipe_notes, report
from .token_replace import apply_release

_FROM_FILE = "from the file"
_DTYPES: dict[str, dict] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_model(
    path: str, model_options: dict, start_image_mode: str | None = None, disable_dynamic: bool = False
) -> ModelPatcher:
    """Load a file of a known family as a MODEL, set its recipe's shift and attach the file's own facts.

    Args:
        path: a safetensors file, plain or quantised in ComfyUI's formats, or a pickle that contains only tensors.
        model_options: passed on to ComfyUI's loader; `{"dtype": ...}` sets the dtype of the weights, `{}` keeps the
            file's.
        start_image_mode: how the start image enters (`concat` or `token_replace`), for weights that do not decide it;
            None takes it from the file.
        disable_dynamic: passed on to ComfyUI's loader; True disables its dynamic memory management.

    Raises:
        CheckpointError: if the file cannot be read safely, is damaged, is a LoRA, is of another family, takes no
            start image, or contradicts `start_image_mode`.
    """
    name = Path(path).name
    state, metadata = _read(path)
    recipe = Recipe.from_metadata(metadata, name)
    described = describe_quantised(transformer_tensors(state, name), metadata, name)
    state = described.state
    metadata = {key: text for key, text in metadata.items() if key != QUANTISATION_KEY}  # now in the tensors
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(QUANTISATION_MARKS)}
    # ComfyUI finds a quantised weight's scale by its key name, so such a file keeps its own key names.
    own_names = len(plain) < len(state)
    checkpoint = _teacher(parse_checkpoint(plain, recipe, name), start_image_mode)
    check_number_types(state, name)
    family = checkpoint.family()  # before loading: ComfyUI's loader empties the state dict that it receives
    shape = checkpoint.shape
    size = _size(checkpoint, described.converted)
    weights = checkpoint.state
    if own_names:
        texts = (NULL_TEXT_KEY, NULL_POOLED_KEY)
        weights = {key: tensor for key, tensor in state.items() if key not in texts and not is_caption(key)}
    try:
        model = comfy.sd.load_diffusion_model_state_dict(
            weights, model_options=model_options, metadata=metadata, disable_dynamic=disable_dynamic
        )
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{name} looks like a {family.architecture.title} transformer, but its parts do not fit together "
            f"({_misfit(error)}). The file is damaged or badly converted: copy, download or export it again."
        ) from error
    if model is None:
        raise CheckpointError(
            f"{name} looks like a {family.architecture.title} transformer, but this ComfyUI does not recognise it. "
            f"Update ComfyUI, or export the checkpoint again."
        )
    if recipe is not None:
        model = ModelSamplingSD3().patch(model, recipe.shift)[0]
    if family is TOKEN_REPLACE:
        apply_release(model, shape.single_blocks, shape.guidance_embed)
    null_prompt = checkpoint.null_prompt
    if null_prompt is not None:
        check_prompt_fits(model, null_prompt, name)
        null_prompt = _copy(null_prompt)
    check_captions_fit(model, checkpoint.captions, name)
    captions = {caption: _copy(prompt) for caption, prompt in checkpoint.captions.items()}
    file_hash = background_hash(Path(path))
    held = next((name for name, options in _DTYPES.items() if options == model_options), None)
    attached = Attached(Path(path), family, recipe, null_prompt, size, file_hash, weight_dtype=held, captions=captions)
    attach(model, attached)
    # ComfyUI loads the file again for a second GPU, or when hooks need weights that are not shared.
    model.cached_patcher_init = (load_model, (path, model_options, start_image_mode))
    return model


def _copy(prompt: NullPrompt) -> NullPrompt:
    """Copy a prompt, because the memory-mapped file may be replaced while the MODEL is in use."""
    return NullPrompt(prompt.text_states.clone(), None if prompt.pooled is None else prompt.pooled.clone())


def _misfit(error: Exception) -> str:
    """Describe briefly why ComfyUI's loader failed, without the text of PyTorch's error."""
    found = re.search(r"size mismatch for ([\w.]+)", str(error))
    if found:
        return f"the size of {found[1]} contradicts the other tensors"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return f"ComfyUI's loader stopped with a {type(error).__name__}, see its log"


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file."""
    if is_pickle_name(Path(path)):
        return read_pickle(Path(path)), {}
    read_metadata(path)  # before ComfyUI reads the file: our reader explains what is wrong with it
    with enough_memory(Path(path)):
        state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    return state, metadata or {}


def _teacher(checkpoint: Checkpoint, start_image_mode: str | None) -> Checkpoint:
    """Return the checkpoint with a decided image-to-video mode."""
    try:
        return checkpoint.teacher(start_image_mode)
    except ImageModeError as error:
        raise CheckpointError(f"{error} (In this node i2v_mode is the input start_image_mode.)") from error


def _size(checkpoint: Checkpoint, converted: int) -> str:
    """Return number and types of the weights, such as `13.0 B parameters, bfloat16`, the most frequent type first.

    Args:
        checkpoint: the transformer.
        converted: the number of its layers that were rounded from fp8 to int8.
    """
    counts: Counter[str] = Counter()
    for tensor in checkpoint.state.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    total = counts.total()
    amount = f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.1f} M"
    # Every quantised file keeps norms and other small tensors in high precision: not worth mentioning.
    types = [name for name, count in counts.most_common() if count >= 0.005 * total]
    rounded = f" ({converted} layers rounded from fp8 to int8)" if converted else ""
    return f"{amount} parameters, {' + '.join(types)}{rounded}"


class LoadModel(io.ComfyNode):
    """Node `MagicDistillLoadModel`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoadModel",
            display_name="Load few-step model",
            category="MagicDistillation/loaders",
            description="Loads an image-to-video model (HunyuanVideo-I2V concat or token-replace, Magic 1-For-1, Wan "
            "2.1 I2V). The file's recipe (steps, shift, sampler, size) and its null prompt stay attached to the MODEL, "
            "so the following nodes need no settings and no text encoder.",
            search_aliases=[
                "magicdistill",
                "load distilled",
                "load diffusion model",
                "unet loader",
                "hunyuan i2v loader",
                "wan i2v loader",
                "few step",
                "magic 1-for-1",
            ],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="The model file, from models/diffusion_models: .safetensors in bf16, fp16, fp32, fp8 or "
                    "int8 (ComfyUI's formats), or .pt/.pth that contains only tensors. Files exported by "
                    "MagicDistillation carry a recipe. For other files the sampler assumes 4 steps, shift 5 and "
                    "euler.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="Number type of the weights in GPU memory. default keeps the type of the file. The fp8 "
                    "types need half the memory of a bf16 file and cost some quality: choose one if the model does "
                    "not fit. fp8_e4m3fn_fast also computes in fp8, which is faster on NVIDIA GPUs that can (RTX 40 "
                    "and newer).",
                ),
                io.Combo.Input(
                    "start_image_mode",
                    options=[_FROM_FILE, "concat", "token_replace"],
                    default=_FROM_FILE,
                    advanced=True,
                    tooltip="How the start image enters the model. Keep 'from the file' (default), unless the file is "
                    "a HunyuanVideo with 16 input channels and no recipe. Such a file can also be text-to-video: "
                    "choose token_replace if it is HunyuanVideo-I2V v2. A choice that contradicts the file is an "
                    "error.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with its recipe; its shift is set from the recipe.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("diffusion_models", unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str, start_image_mode: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        mode = None if start_image_mode == _FROM_FILE else start_image_mode
        model = load_model(path, _DTYPES[weight_dtype], mode)
        attached = attached_to(model)
        assert attached is not None
        held = "" if weight_dtype == "default" else f" held as {weight_dtype}"
        family = attached.family
        known = f", {len(attached.captions)} captions" if attached.captions else ""
        text = f"{family.architecture.title} image-to-video ({family.i2v_mode}), {attached.size}{held}{known}; "
        if attached.recipe is None:
            return io.NodeOutput(
                model,
                ui=report(
                    cls, f"{text}no recipe", [f"{unet_name} carries no recipe: the sampler uses default settings."]
                ),
            )
        notes = recipe_notes(attached.recipe, unet_name)
        return io.NodeOutput(model, ui=report(cls, text + recipe_line(attached.recipe), notes))
