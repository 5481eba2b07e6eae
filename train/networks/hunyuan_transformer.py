"""HunyuanVideo's transformer from diffusers, with an attention mask only for prompts with padding.

Several processes can share the video tokens (see `context_parallel`).
"""

from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from einops import rearrange
from torch import Tensor, nn

from ..distributed import ContextGroup
from .context_parallel import cut, first_of, gather


class Features(NamedTuple):
    """The inputs of a single block.

    Attributes:
        video: video tokens after the last double block, `[B, tokens, hidden]`; those of this process's shard.
        text: text tokens after the last double block, `[B, text tokens, hidden]`.
        context: modulation, attention mask and positions, in the order of a block's other arguments.
        tokens: number of video tokens of the sample.
    """

    video: Tensor
    text: Tensor
    context: tuple[Any, ...]
    tokens: int


class HunyuanVideoTransformer3DModel(diffusers.HunyuanVideoTransformer3DModel):
    """diffusers' transformer, whose blocks receive an attention mask only if a prompt has padding.

    diffusers' own forward gives every block a mask. With any mask, even one that hides nothing, PyTorch cannot use its
    flash kernels, and the other kernels become slower. Without a mask, PyTorch chooses among all kernels (cuDNN's on
    Hopper), unless `sdpa_kernel` around the call selects one.

    The mask is an argument of the blocks and no state of the network, so recomputed activations see the mask of their
    forward. The class has the name of its base, because diffusers stores the name with the weights.

    Attributes:
        group: the processes that share the video tokens of a sample; None if every process has samples of its own.
    """

    group: ContextGroup | None = None

    def features(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Features:
        """Run the network up to its last double block, and return the inputs of the first single block.

        Args:
            hidden_states: the input channels `[B, C, T, H, W]`.
            timestep: timesteps `[B]`, 1000 times the noise level.
            encoder_hidden_states: text states `[B, L, text_dim]`.
            encoder_attention_mask: `[B, L]`, False for padding, which follows a prompt's own tokens. None if no prompt
                has padding.
            pooled_projections: pooled text `[B, pooled_dim]`.
            guidance: guidance scales `[B]` times 1000, for a network with a guidance embedding; else None.
        """
        rotary = self.rope(hidden_states)
        time, token_replace = self.time_text_embed(timestep, pooled_projections, guidance)
        patch = self.config.patch_size
        first_frame_tokens = (hidden_states.shape[3] // patch) * (hidden_states.shape[4] // patch)
        shown = encoder_attention_mask
        if shown is None:
            shown = torch.ones(encoder_hidden_states.shape[:2], device=hidden_states.device, dtype=torch.bool)
        text = self.context_embedder(encoder_hidden_states, timestep, shown)
        video = self.x_embedder(hidden_states)
        tokens = video.shape[1]
        mask = None
        if encoder_attention_mask is not None:
            seen = encoder_attention_mask.new_ones(video.shape[:2], dtype=torch.bool)
            # [B, 1, 1, tokens]: the keys that every query of a sample may attend to.
            mask = torch.cat([seen, encoder_attention_mask.bool()], dim=1)[:, None, None]
        video = cut(video, self.group)
        clean = first_of(first_frame_tokens, video.shape[1], self.group)
        context = (time, mask, rotary, token_replace, clean)
        for block in self.transformer_blocks:
            video, text = self._run(block, video, text, context)
        return Features(video, text, context, tokens)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        guidance: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Compute the velocity `[B, 16, T, H, W]` of all frames.

        Args:
            hidden_states: see `features`.
            timestep: see `features`.
            encoder_hidden_states: see `features`.
            encoder_attention_mask: see `features`.
            pooled_projections: see `features`.
            guidance: see `features`.
            attention_kwargs: not supported; must be None or empty.
            return_dict: return diffusers' output object instead of a tuple.
        """
        assert not attention_kwargs
        video, text, context, tokens = self.features(
            hidden_states, timestep, encoder_hidden_states, encoder_attention_mask, pooled_projections, guidance
        )
        for block in self.single_transformer_blocks:
            video, text = self._run(block, video, text, context)
        patches = gather(self.proj_out(self.norm_out(video, context[0])), tokens, self.group)
        time, space = self.config.patch_size_t, self.config.patch_size
        frames, rows, columns = (
            size // width for size, width in zip(hidden_states.shape[2:], (time, space, space), strict=True)
        )
        sample = rearrange(
            patches,
            "b (t h w) (c i j k) -> b c (t i) (h j) (w k)",
            **{"t": frames, "h": rows, "w": columns, "i": time, "j": space, "k": space},
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(self, block: nn.Module, video: Tensor, text: Tensor, context: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Run a block, with recomputed activations if they are enabled."""
        result: tuple[Tensor, Tensor]
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            result = self._gradient_checkpointing_func(block, video, text, *context)
        else:
            result = block(video, text, *context)
        return result
