"""The tailored discriminator (MagicDistillation, Sec. 3.4).

Its input is the output of the frozen teacher's double blocks. Its own weights are a trained copy of the teacher's first
single block, and a linear layer that maps the pooled tokens to one logit.
"""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magicdistill_core.errors import ConfigError


class Features(NamedTuple):
    """The inputs of a single block.

    Attributes:
        video: video tokens after the last double block, `[B, tokens, hidden]`.
        text: text tokens after the last double block, `[B, text tokens, hidden]`.
        context: modulation and positions, in the order of a block's other arguments.
    """

    video: Tensor
    text: Tensor
    context: tuple[Any, ...]


def double_block_features(transformer: Any, inputs: dict[str, Tensor]) -> Features:
    """Run the transformer up to its last double block, and return the inputs of the first single block.

    Args:
        transformer: diffusers' HunyuanVideo transformer.
        inputs: the keyword arguments of the transformer's forward, from `call_inputs`.
    """
    x, timestep = inputs["hidden_states"], inputs["timestep"]
    rotary = transformer.rope(x)
    time, token_replace = transformer.time_text_embed(timestep, inputs["pooled_projections"], inputs.get("guidance"))
    first_frame_tokens = (x.shape[3] // transformer.config.patch_size) * (x.shape[4] // transformer.config.patch_size)
    text = transformer.context_embedder(inputs["encoder_hidden_states"], timestep, inputs["encoder_attention_mask"])
    video = transformer.x_embedder(x)
    recompute = torch.is_grad_enabled() and transformer.gradient_checkpointing
    # No attention mask: the prompts have no padding (see `families.hunyuan_video.UnmaskedAttention`).
    context = (time, None, rotary, token_replace, first_frame_tokens)
    for block in transformer.transformer_blocks:
        if recompute:
            video, text = transformer._gradient_checkpointing_func(block, video, text, *context)
        else:
            video, text = block(video, text, *context)
    return Features(video, text, context)


class Discriminator(nn.Module):
    """A network that maps features to one logit per sample, through its own single block."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, seed: int, *, recompute: bool = False) -> None:
        """Copy the first single block. The discriminator shares no weights with `transformer`.

        Args:
            transformer: diffusers' transformer of the frozen teacher, without low-rank branches.
            seed: seed of the linear layer's first weights.
            recompute: store only the features for the backward, and recompute the discriminator's activations.

        Raises:
            ConfigError: if the teacher has no single blocks.
        """
        super().__init__()
        blocks: Any = getattr(transformer, "single_transformer_blocks", ())
        if not len(blocks):
            raise ConfigError(
                "The discriminator needs a copy of the teacher's first single block, and this teacher has no single "
                "blocks. Use a method without a discriminator, such as w2s or dmd."
            )
        self.recompute = recompute
        self.block = copy.deepcopy(blocks[0]).requires_grad_()
        weight = self.block.proj_out.weight
        hidden = weight.shape[0]
        initial = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed)) / hidden**0.5
        self.head = nn.Linear(hidden, 1, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(initial)
            self.head.bias.zero_()

    def forward(self, features: Features) -> Tensor:
        """Compute the logits `[B]` in float32: high for data, low for the generator's samples.

        Args:
            features: the teacher's features, from `double_block_features`.
        """
        if not self.recompute:
            return self._logits(features)
        # The block draws no random numbers, so no random state has to be preserved.
        logits: Tensor = checkpoint(self._logits, features, use_reentrant=False, preserve_rng_state=False)
        return logits

    def _logits(self, features: Features) -> Tensor:
        video, _ = self.block(features.video, features.text, *features.context)
        # The residual stream of a large teacher has a few huge channels, which would dominate the mean.
        pooled = F.layer_norm(video, video.shape[-1:]).mean(dim=1)
        logit: Tensor = self.head(pooled)[:, 0]
        return logit.float()
