"""HunyuanVideo's transformer in diffusers, built and called for each of its image-to-video modes."""

from functools import partial
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor, nn

from magicdistill_core.families.base import Condition, Family, NullPrompt
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

from .base import NetworkKind

# All linear layers of the blocks, but not the embedders, modulations and the output layer.
LORA_TARGETS = (
    r".*transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)


class UnmaskedAttention(HunyuanVideoAttnProcessor2_0):
    """Attention of every token to every token.

    diffusers' transformer always builds an attention mask from the prompt's mask. With any mask, even one that hides
    nothing, PyTorch cannot use its flash kernels, and the other kernels become slower. A `NullPrompt` has no padding,
    so no mask is needed. PyTorch chooses among the kernels without mask (cuDNN's on Hopper), unless `sdpa_kernel`
    around the call selects one.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute attention as diffusers' processor does, without a mask.

        Args:
            attn: the attention layer.
            hidden_states: video tokens `[B, tokens, hidden]`.
            encoder_hidden_states: text tokens `[B, text tokens, hidden]`; None in a block that receives one joint
                sequence.
            attention_mask: ignored.
            image_rotary_emb: cosines and sines of the positions of the video tokens.

        Returns:
            The new video tokens and text tokens.
        """
        return super().__call__(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


def _build(shape: NetworkShape, family: Family) -> HunyuanVideoTransformer3DModel:
    network = HunyuanVideoTransformer3DModel(
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
    for block in _blocks(network):
        block.attn.set_processor(UnmaskedAttention())
    return network


def _blocks(network: Any) -> list[Any]:
    return [*network.transformer_blocks, *network.single_transformer_blocks]


def _built(network: nn.Module, family: Family) -> bool:
    if not isinstance(network, HunyuanVideoTransformer3DModel):
        return False
    return bool(network.config.image_condition_type == family.diffusers_mode)


def network_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: NullPrompt, guidance: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the keyword arguments of one call of a concat network (see `families.base.Inputs`).

    Args:
        x: noisy frames `[B, 16, T, H, W]`.
        sigma: noise levels `[B]`.
        condition: the concatenated channels `[B, 17, T, H, W]`.
        prompt: text conditioning, repeated over the batch.
        guidance: guidance scales `[B]` for a network with a guidance embedding, else None.
    """
    assert isinstance(condition, Tensor)
    return _inputs(torch.cat([x, condition.to(x)], dim=1), sigma, prompt, guidance)


def _token_replace_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: NullPrompt, guidance: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the arguments of a token-replace network.

    Args:
        x: noisy frames `[B, 16, T - 1, H, W]`, without frame 0.
        sigma: noise levels `[B]`.
        condition: the clean latent of frame 0, `[B, 16, 1, H, W]`. The network modulates its tokens with noise level 0.
        prompt: text conditioning, repeated over the batch.
        guidance: guidance scales `[B]` for a network with a guidance embedding, else None.
    """
    assert isinstance(condition, Tensor)
    return _inputs(torch.cat([condition.to(x), x], dim=2), sigma, prompt, guidance)


def _text_inputs(
    x: Tensor, sigma: Tensor, condition: Condition, prompt: NullPrompt, guidance: Tensor | None = None
) -> dict[str, Tensor]:
    return _inputs(x, sigma, prompt, guidance)


def _inputs(hidden: Tensor, sigma: Tensor, prompt: NullPrompt, guidance: Tensor | None) -> dict[str, Tensor]:
    batch = hidden.shape[0]
    text = prompt.text_states.to(hidden).expand(batch, -1, -1)
    assert prompt.pooled is not None
    inputs = {
        "hidden_states": hidden,
        # In float32 for every dtype of the network, because bf16 cannot represent 937.5.
        "timestep": TIMESTEPS * sigma.to(hidden.device, torch.float32),
        "encoder_hidden_states": text,
        # diffusers requires a mask; `UnmaskedAttention` ignores it.
        "encoder_attention_mask": torch.ones(text.shape[:2], device=hidden.device, dtype=torch.bool),
        "pooled_projections": prompt.pooled.to(hidden).expand(batch, -1),
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
        lora_targets=LORA_TARGETS,
    )
    for family, inputs in (
        (CONCAT, network_inputs),
        (TOKEN_REPLACE, _token_replace_inputs),
        (TEXT_ONLY, _text_inputs),
    )
)
