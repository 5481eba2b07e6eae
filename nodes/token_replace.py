"""Token replacement as the release computes it: only the start frame's tokens are modulated as clean, without guidance.

ComfyUI's network (0.30) differs in two ways. In its single blocks the text comes before the video, but the start
frame's tokens are counted from the beginning of the sequence, so text tokens are modulated instead. And the guidance
embedding also reaches the start frame.
"""

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

Dims = list[tuple[int, int | None, int]]
_CLEAN, _NOISY = 0, 1
_GUIDANCE = "diffusion_model.guidance_in"


def apply_release(model: ModelPatcher, single_blocks: int, guidance_embed: bool) -> None:
    """Patch a MODEL in place so that its velocities equal those of the release and of the trainer.

    Args:
        model: a token-replace HunyuanVideo MODEL.
        single_blocks: number of its single blocks.
        guidance_embed: whether its network has a guidance embedding.
    """
    for number in range(single_blocks):
        model.set_model_patch_replace(_single_block, "dit", "single_block", number)
    if guidance_embed:
        _patch_guidance(model)
        model.add_callback(CallbacksMP.ON_CLONE, _patch_guidance_of_clone)


def _patch_guidance(model: ModelPatcher) -> None:
    embed = model.model.get_submodule(_GUIDANCE)
    model.add_object_patch(f"{_GUIDANCE}.forward", _for_generated_frames(embed))


def _patch_guidance_of_clone(model: ModelPatcher, clone: ModelPatcher) -> None:
    # With compiling, hooks or several GPUs a clone gets its own network but inherits this network's patches.
    if clone.model is not model.model:
        _patch_guidance(clone)


def _single_block(args: dict, extra: dict) -> dict:
    return extra["original_block"](args | {"modulation_dims": _shifted_past_text(args)})


def _shifted_past_text(args: dict) -> Dims | None:
    """Return the modulation ranges, moved to after the text if ComfyUI placed them at the beginning of the sequence."""
    dims: Dims | None = args["modulation_dims"]
    text_tokens = args["transformer_options"]["img_slice"][0]
    if dims is None or not text_tokens or dims[0][2] != _CLEAN:
        return dims
    frame_tokens = dims[0][1]
    assert frame_tokens is not None
    start = text_tokens + frame_tokens
    return [(0, text_tokens, _NOISY), (text_tokens, start, _CLEAN), (start, None, _NOISY)]


def _for_generated_frames(embed: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a guidance embedding `[B, 2, C]` for clean and for noisy tokens; it is zero for the clean tokens."""

    def forward(features: Tensor) -> Tensor:
        # Call the class's forward: the module's own attribute `forward` is this function.
        generated = type(embed).forward(embed, features)
        return torch.stack([torch.zeros_like(generated), generated], dim=1)

    return forward
