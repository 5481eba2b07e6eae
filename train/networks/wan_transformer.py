"""Wan 2.1's transformer from diffusers, whose video tokens several processes can share (see `context_parallel`)."""

from typing import Any

import diffusers
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from einops import rearrange
from torch import Tensor

from ..distributed import ContextGroup
from .context_parallel import cut, gather


class WanTransformer3DModel(diffusers.WanTransformer3DModel):
    """diffusers' transformer with one noise level per sample.

    The class has the name of its base, because diffusers stores the name with the weights.

    Attributes:
        group: the processes that share the video tokens of a sample; None if every process has samples of its own.
    """

    group: ContextGroup | None = None

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute the velocity `[B, 16, T, H, W]`.

        Args:
            hidden_states: the input channels `[B, C, T, H, W]`.
            timestep: timesteps `[B]`, 1000 times the noise level.
            encoder_hidden_states: text states `[B, 512, text_dim]`.
            encoder_hidden_states_image: features of the start image, `[B, 257, 1280]`.
            return_dict: return diffusers' output object instead of a tuple.
            attention_kwargs: not supported; must be None or empty.
        """
        assert not attention_kwargs
        sizes = [size // width for size, width in zip(hidden_states.shape[2:], self.config.patch_size, strict=True)]
        rotary = self.rope(hidden_states)
        video = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        tokens = video.shape[1]
        time, modulation, text, image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        modulation = modulation.unflatten(1, (6, -1))
        text = text if image is None else torch.cat([image, text], dim=1)
        video = cut(video, self.group)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video = self._gradient_checkpointing_func(block, video, text, modulation, rotary)
            else:
                video = block(video, text, modulation, rotary)
        shift, scale = (self.scale_shift_table.to(time.device) + time.unsqueeze(1)).chunk(2, dim=1)
        video = (self.norm_out(video.float()) * (1 + scale) + shift).type_as(video)
        patches = gather(self.proj_out(video), tokens, self.group)
        frames, rows, columns = sizes
        time_width, row_width, column_width = self.config.patch_size
        sample = rearrange(
            patches,
            "b (t h w) (i j k c) -> b c (t i) (h j) (w k)",
            **{"t": frames, "h": rows, "w": columns, "i": time_width, "j": row_width, "k": column_width},
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
