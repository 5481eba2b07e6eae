"""HunyuanVideo's transformer in diffusers, built and called for each of its image-to-video modes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from magicdistill_core.families.base import Condition, Family
from magicdistill_core.families.hunyuan_video import (
    CONCAT,
    HEAD_DIM,
    ROPE_AXES,
    ROPE_THETA,
    TEXT_ONLY,
    TOKEN_REPLACE,
    NetworkShape,
)
from magicdistill_core.flow import TIMESTEPS
from magicdistill_core.geometry import LATENT_CHANNELS, PATCH

from ...distributed import ContextGroup
from ..hunyuan_transformer import HunyuanVideoTransformer3DModel
from ..prompts import Prompts, expanded
from ..shared_attention import HunyuanVideoSharedAttention
from .base import NetworkKind

# All linear layers of the blocks, but not the embedders, modulations and the output layer.
LORA_TARGETS = (
    r".*transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


def _build(shape: NetworkShape, family: Family) -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=shape.in_channels,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=shape.heads,
        attention_head_dim=HEAD_DIM,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        num_refiner_layers=shape.refiner_blocks,
        patch_size=PATCH,
        patch_size_t=1,
        guidance_embeds=shape.guidance_embed,
        text_embed_dim=shape.text_dim,
        pooled_projection_dim=shape.pooled_dim,
        rope_theta=ROPE_THETA,
        rope_axes_dim=ROPE_AXES,
        image_condition_type=family.diffusers_mode,
    )


def _blocks(network: Any) -> list[Any]:
    return [*network.transformer_blocks, *network.single_transformer_blocks]


def _share(network: Any, group: ContextGroup) -> None:
    network.group = group
    for block in _blocks(network):
        block.attn.set_processor(HunyuanVideoSharedAttention(group))


def _built(network: nn.Module, family: Family) -> bool:
    if not isinstance(network, HunyuanVideoTransformer3DModel):
        return False
    return bool(network.config.image_condition_type == family.diffusers_mode)


def network_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: Prompts, guidance: Tensor | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of one call of a concat network (see `families.base.Inputs`).

    Args:
        x: noisy frames `[B, 16, T, H, W]`.
        sigma: noise levels `[B]`.
        condition: the concatenated channels `[B, 17, T, H, W]`.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        guidance: guidance scales `[B]` for a network with a guidance embedding, else None.
    """
    assert isinstance(condition, Tensor)
    return _inputs(torch.cat([x, condition.to(x)], dim=1), sigma, prompt, guidance)


def _token_replace_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: Prompts, guidance: Tensor | None = None
) -> dict[str, Any]:
    """Return the arguments of a token-replace network.

    Args:
        x: noisy frames `[B, 16, T - 1, H, W]`, without frame 0.
        sigma: noise levels `[B]`.
        condition: the clean latent of frame 0, `[B, 16, 1, H, W]`. The network modulates its tokens with noise level 0.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        guidance: guidance scales `[B]` for a network with a guidance embedding, else None.
    """
    assert isinstance(condition, Tensor)
    return _inputs(torch.cat([condition.to(x), x], dim=2), sigma, prompt, guidance)


def _text_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: Prompts, guidance: Tensor | None = None
) -> dict[str, Any]:
    return _inputs(x, sigma, prompt, guidance)


def _inputs(hidden: Tensor, sigma: Tensor, prompt: Prompts, guidance: Tensor | None) -> dict[str, Any]:
    text = expanded(prompt, hidden)
    assert text.pooled is not None
    inputs = {
        "hidden_states": hidden,
        # In float32 for every dtype of the network, because bf16 cannot represent 937.5.
        "timestep": TIMESTEPS * sigma.to(hidden.device, torch.float32),
        "encoder_hidden_states": text.text_states,
        "encoder_attention_mask": text.shown,
        "pooled_projections": text.pooled,
    }
    if guidance is not None:
        inputs["guidance"] = TIMESTEPS * guidance.to(hidden.device, torch.float32)
    return inputs


KINDS = tuple(
    NetworkKind(
        family,
        build=partial(_build, family=family),
        built=partial(_built, family=family),
        inputs=inputs,
        blocks=_blocks,
        share=_share,
        lora_targets=LORA_TARGETS,
    )
    for family, inputs in (
        (CONCAT, network_inputs),
        (TOKEN_REPLACE, _token_replace_inputs),
        (TEXT_ONLY, _text_inputs),
    )
)
