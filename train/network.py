"""The trainer's network: diffusers' HunyuanVideo transformer, filled from a checkpoint in the file layout."""

from dataclasses import replace

import torch
from accelerate import init_empty_weights
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.hunyuan_video import (
    HEAD_DIM,
    LATENT_CHANNELS,
    PATCH,
    ROPE_AXES,
    ROPE_THETA,
    NetworkShape,
    NullPrompt,
)
from magicdistill_core.flow import TIMESTEPS, Velocity
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import file_to_diffusers


class UnmaskedAttention(HunyuanVideoAttnProcessor2_0):
    """Attention of every token to every token.

    diffusers' transformer always makes a mask out of the prompt's, and any mask, even one that hides nothing, keeps
    PyTorch from its flash kernels and costs the others time. A `NullPrompt` has no padding: there is nothing to hide.
    Which of the unmasked kernels runs is PyTorch's choice (cuDNN's on Hopper), or that of `sdpa_kernel` around a call.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        return super().__call__(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


def build_network(shape: NetworkShape) -> HunyuanVideoTransformer3DModel:
    """A randomly initialised transformer of the given sizes, for prompts without padding."""
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
        image_condition_type=None,
    )
    for block in (*network.transformer_blocks, *network.single_transformer_blocks):
        block.attn.set_processor(UnmaskedAttention())
    return network


def load_network(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> HunyuanVideoTransformer3DModel:
    """The transformer with a checkpoint's weights, in eval mode; never holds the weights twice.

    The tensors are copied, so that training the network leaves `checkpoint` as it was.
    """
    with init_empty_weights():
        network = build_network(checkpoint.shape)
    weights = file_to_diffusers(HUNYUAN_VIDEO, checkpoint.state, checkpoint.shape.hidden)
    copies = {key: value.to(device=device, dtype=dtype, copy=True).contiguous() for key, value in weights.items()}
    network.load_state_dict(copies, assign=True)
    return network.eval()


def prompt_on(prompt: NullPrompt, device: torch.device) -> NullPrompt:
    """The prompt on a device."""
    return replace(prompt, text_states=prompt.text_states.to(device), pooled=prompt.pooled.to(device))


def network_inputs(x: Tensor, sigma: Tensor, condition: Tensor, prompt: NullPrompt) -> dict[str, Tensor]:
    """The keyword arguments of one call of the transformer.

    Args:
        x: noisy latent `[B, 16, T, H, W]`.
        sigma: `[B]`.
        condition: the concatenated channels `[B, 17, T, H, W]`.
        prompt: text conditioning, repeated over the batch.
    """
    batch = x.shape[0]
    text = prompt.text_states.to(x).expand(batch, -1, -1)
    return {
        "hidden_states": torch.cat([x, condition.to(x)], dim=1),
        # In float32 whatever the network computes in: bf16 would round 937.5 away.
        "timestep": TIMESTEPS * sigma.to(x.device, torch.float32),
        "encoder_hidden_states": text,
        # diffusers demands one; see `UnmaskedAttention`.
        "encoder_attention_mask": torch.ones(text.shape[:2], device=x.device, dtype=torch.bool),
        "pooled_projections": prompt.pooled.to(x).expand(batch, -1),
    }


def network_velocity(network: torch.nn.Module, condition: Tensor, prompt: NullPrompt) -> Velocity:
    """The network as a velocity of `(x, sigma)` for one batch's conditioning."""
    # Once, and not from the host at every call.
    prompt = prompt_on(prompt, condition.device)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return network(**network_inputs(x, sigma, condition, prompt), return_dict=False)[0]

    return velocity
