"""The tailored discriminator (MagicDistillation, Sec. 3.4).

Its input is the output of the frozen teacher's double blocks. Its own weights are a trained copy of the teacher's first
single block, and a linear layer that maps the pooled tokens to one logit.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magicdistill_core.errors import ConfigError

from .context_parallel import mean_over_tokens
from .hunyuan_transformer import Features, HunyuanVideoTransformer3DModel


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
        self.group = transformer.group
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
            features: the teacher's features, from `HunyuanVideoTransformer3DModel.features`.
        """
        if not self.recompute:
            return self._logits(features)
        # The block draws no random numbers, so no random state has to be preserved.
        logits: Tensor = checkpoint(self._logits, features, use_reentrant=False, preserve_rng_state=False)
        return logits

    def _logits(self, features: Features) -> Tensor:
        video, _ = self.block(features.video, features.text, *features.context)
        # The residual stream of a large teacher has a few huge channels, which would dominate the mean.
        pooled = mean_over_tokens(F.layer_norm(video, video.shape[-1:]), features.tokens, self.group)
        logit: Tensor = self.head(pooled)[:, 0]
        return logit.float()
