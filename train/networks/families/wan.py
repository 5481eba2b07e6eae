"""Wan 2.1's transformer in diffusers, built and called for image-to-video."""

from typing import Any

import torch
from torch import Tensor, nn

from magicdistill_core.families.base import Condition
from magicdistill_core.families.wan import (
    FEATURE_SHAPE,
    HEAD_DIM,
    IMAGE_CHANNELS,
    IMAGE_TO_VIDEO,
    TEXT_TOKENS,
    WanShape,
)
from magicdistill_core.flow import TIMESTEPS
from magicdistill_core.geometry import LATENT_CHANNELS, PATCH

from ...distributed import ContextGroup
from ..prompts import Prompts, expanded
from ..shared_attention import WanSharedAttention
from ..wan_transformer import WanTransformer3DModel
from .base import NetworkKind

_LORA_TARGETS = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|add_[kv]_proj|to_out\.0)|ffn\.net\.(0\.proj|2))"


def _build(shape: WanShape) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, PATCH, PATCH),
        num_attention_heads=shape.heads,
        attention_head_dim=HEAD_DIM,
        in_channels=shape.in_channels,
        out_channels=LATENT_CHANNELS,
        text_dim=shape.text_dim,
        freq_dim=shape.frequencies,
        ffn_dim=shape.mlp,
        num_layers=shape.blocks,
        image_dim=FEATURE_SHAPE[1],
        added_kv_proj_dim=shape.hidden,
    )


def _built(network: nn.Module) -> bool:
    return isinstance(network, WanTransformer3DModel) and network.config.in_channels == IMAGE_CHANNELS


def _blocks(network: Any) -> list[Any]:
    return list(network.blocks)


def _share(network: Any, group: ContextGroup) -> None:
    network.group = group
    for block in network.blocks:
        block.attn1.set_processor(WanSharedAttention(group))


def _inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: Prompts, guidance: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the keyword arguments of one call (see `families.base.Inputs`).

    Args:
        x: noisy frames `[B, 16, T, H, W]`.
        sigma: noise levels `[B]`.
        condition: mask and image `[B, 20, T, H, W]`, and CLIP features `[B, 257, 1280]`.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        guidance: ignored, because the network has no guidance embedding.
    """
    assert isinstance(condition, tuple)
    channels, features = condition
    # diffusers always treats the last 512 tokens as text, so prompts are padded with zeros. The network was trained so,
    # and sees the padding.
    text = expanded(prompt, x, TEXT_TOKENS).text_states
    return {
        "hidden_states": torch.cat([x, channels.to(x)], dim=1),
        # In float32 for every dtype of the network, because bf16 cannot represent 937.5.
        "timestep": TIMESTEPS * sigma.to(x.device, torch.float32),
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": features.to(x),
    }


KINDS = (
    NetworkKind(
        IMAGE_TO_VIDEO,
        build=_build,
        built=_built,
        inputs=_inputs,
        blocks=_blocks,
        share=_share,
        lora_targets=_LORA_TARGETS,
    ),
)
