"""Load few-step model: a diffusion model through ComfyUI's own loader, with its recipe and null prompt."""

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

from ..magicdistill_core.checkpoint import Checkpoint, parse_checkpoint
from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.families.base import NullPrompt
from ..magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from ..magicdistill_core.files import enough_memory
from ..magicdistill_core.null_prompt import NULL_POOLED_KEY, NULL_TEXT_KEY
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.safetensors_file import read_metadata
from ..magicdistill_core.soundness import check_number_types
from ..magicdistill_core.wrappers import QUANTISATION_MARKS, is_pickle_name, read_pickle
from .attachments import Attached, attach, attached_to, check_prompt_fits
from .file_hash import background_hash, file_stamp
from .reporting import recipe_said, report
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
    """A file of a known family as a MODEL with its recipe's shift, carrying what the file says of itself.

    Args:
        path: safetensors, plain or quantised in ComfyUI's formats, or a pickle of nothing but tensors.
        model_options: as ComfyUI's loader takes them.
        start_image_mode: how the start image enters, for weights that leave it open.
        disable_dynamic: as ComfyUI's loader takes it.

    Raises:
        CheckpointError: if the file cannot be read safely, is damaged, a LoRA, of another family, takes no start
            image, or says something else than `start_image_mode`.
    """
    name = Path(path).name
    state, metadata = _read(path)
    recipe = Recipe.from_metadata(metadata, name)
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(QUANTISATION_MARKS)}
    # ComfyUI finds a quantised weight's scale by name, so such a file keeps its own spelling.
    own_names = len(plain) < len(state)
    checkpoint = _teacher(parse_checkpoint(plain, recipe, name, allow_quantised=True), start_image_mode)
    check_number_types(state, name)
    family = checkpoint.family()  # asked now: ComfyUI's loader empties the state that it is given
    shape = checkpoint.shape
    size = _size(checkpoint)
    weights = checkpoint.state
    if own_names:
        weights = {key: tensor for key, tensor in state.items() if key not in (NULL_TEXT_KEY, NULL_POOLED_KEY)}
    try:
        model = comfy.sd.load_diffusion_model_state_dict(
            weights, model_options=model_options, metadata=metadata, disable_dynamic=disable_dynamic
        )
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{name} looks like a {family.architecture.title} transformer, yet its parts do not fit together "
            f"({_misfit(error)}). It is damaged or badly converted: copy or download it again, or "
            f"export it anew."
        ) from error
    if model is None:
        raise CheckpointError(
            f"{name} looks like a {family.architecture.title} transformer, yet this ComfyUI does not recognise it. "
            f"Update ComfyUI, or export the checkpoint again."
        )
    if recipe is not None:
        model = ModelSamplingSD3().patch(model, recipe.shift)[0]
    if family is TOKEN_REPLACE:
        apply_release(model, shape.single_blocks, shape.guidance_embed)
    null_prompt = checkpoint.null_prompt
    if null_prompt is not None:
        check_prompt_fits(model, null_prompt, name)
        # Not views of the file: it may be unmapped or replaced while the MODEL lives.
        pooled = None if null_prompt.pooled is None else null_prompt.pooled.clone()
        null_prompt = NullPrompt(null_prompt.text_states.clone(), pooled)
    file_hash = background_hash(Path(path))
    attach(model, Attached(Path(path), family, recipe, null_prompt, size, file_hash))
    # ComfyUI loads anew from the file for a second GPU, or where hooks need unshared weights.
    model.cached_patcher_init = (load_model, (path, model_options, start_image_mode))
    return model


def _misfit(error: Exception) -> str:
    """What ComfyUI's loader stumbled over, in a few words."""
    text = " ".join(str(error).split())
    found = re.search(r"size mismatch for ([\w.]+)", text)
    return f"{found[1]} is of another size than the rest asks for" if found else text[:200]


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    if is_pickle_name(Path(path)):
        return read_pickle(Path(path)), {}
    read_metadata(path)  # before ComfyUI does: it says what is wrong with a file
    with enough_memory(Path(path)):
        state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    return state, metadata or {}


def _teacher(checkpoint: Checkpoint, start_image_mode: str | None) -> Checkpoint:
    """The checkpoint with its way of taking the start image settled."""
    try:
        return checkpoint.teacher(start_image_mode)
    except CheckpointError as error:
        if "i2v_mode" not in str(error):
            raise
        raise CheckpointError(f"{error} (In this node i2v_mode is the input start_image_mode.)") from error


def _size(checkpoint: Checkpoint) -> str:
    """Number and type of the weights, such as `13.0 B parameters, bfloat16`; types in order of their share."""
    counts: Counter[str] = Counter()
    for tensor in checkpoint.state.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    total = counts.total()
    amount = f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.1f} M"
    # Norms and the like stay in high precision in every quantised file: not worth a word.
    types = [name for name, count in counts.most_common() if count >= 0.005 * total]
    return f"{amount} parameters, {' + '.join(types)}"


class LoadModel(io.ComfyNode):
    """Node `MagicDistillLoadModel`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillLoadModel",
            display_name="Load few-step model",
            category="MagicDistillation/loaders",
            description="Loads an image-to-video model (HunyuanVideo-I2V concat or token-replace, Magic 1-For-1, Wan "
            "2.1 I2V) through ComfyUI's own loader. Its recipe (steps, shift, sampler, size) and its null prompt "
            "travel with the MODEL, so that the nodes behind it need no settings and no text encoder.",
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
                    tooltip="File in models/diffusion_models: .safetensors in bf16, fp16, fp32, fp8 or int8 "
                    "(ComfyUI's formats), or a .pt/.pth of nothing but tensors. Files exported by MagicDistillation "
                    "carry a recipe; others load too, without. Change it for another model.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="How the weights are held in memory. default keeps the file's type; fp8 halves the memory "
                    "of a bf16 file and costs some quality. Change it when the model does not fit.",
                ),
                io.Combo.Input(
                    "start_image_mode",
                    options=[_FROM_FILE, "concat", "token_replace"],
                    default=_FROM_FILE,
                    advanced=True,
                    tooltip="How the start image enters. Recipe and weights say it, except for HunyuanVideo files of "
                    "16 input channels without a recipe, which could be text-to-video: choose token_replace for "
                    "HunyuanVideo-I2V v2. A choice that contradicts the file is an error.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with its recipe and its recipe's shift.")],
            hidden=[io.Hidden.unique_id],
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
        text = f"{family.architecture.title} image-to-video ({family.i2v_mode}), {attached.size}{held}; "
        if attached.recipe is None:
            return io.NodeOutput(
                model,
                ui=report(cls, f"{text}no recipe", [f"{unet_name} carries no recipe: settings are assumed."]),
            )
        return io.NodeOutput(model, ui=report(cls, text + recipe_said(attached.recipe), []))
