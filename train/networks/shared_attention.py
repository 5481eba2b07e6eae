"""Attention over video tokens that several processes share: processors of diffusers' attention for each family."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ..distributed import ContextGroup
from .context_parallel import exchange

Rotary = tuple[Tensor, Tensor]
Project = Callable[[Tensor], Tensor]


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    text: int,
    mask: Tensor | None,
    rotary: Rotary,
    group: ContextGroup,
    backend: Any = None,
) -> Tensor:
    """Compute self-attention over the video tokens of all processes of a group, and the text tokens.

    Args:
        query: `[B, shard + text, heads, D]`: this process's shard, then all text tokens, before rotary positions.
        key: shaped as `query`.
        value: shaped as `query`.
        text: number of text tokens.
        mask: attention mask that broadcasts to `[B, heads, tokens + text, tokens + text]`; None attends to all.
        rotary: cosines and sines of the rotary positions, `[tokens, D]` each, for all video tokens.
        group: the processes that share the video tokens; their number divides the heads.
        backend: diffusers' attention back-end; None is the usual one.

    Returns:
        The result, shaped as `query`.
    """
    size, shard, tokens = group.size, query.shape[1] - text, rotary[0].shape[0]
    # One exchange for all three.
    video, prompt = torch.cat([query, key, value]).split([shard, text], dim=1)
    received = exchange(video.unflatten(2, (size, -1)).movedim(2, 0), group)
    videos = received.movedim(0, 1).flatten(1, 2)[:, :tokens].chunk(3)
    prompts = prompt.unflatten(2, (size, -1))[:, :, group.rank].chunk(3)
    positioned = (*(apply_rotary_emb(x, rotary, sequence_dim=1) for x in videos[:2]), videos[2])
    own = (torch.cat(parts, dim=1) for parts in zip(positioned, prompts, strict=True))
    result: Tensor = dispatch_attention_fn(*own, attn_mask=mask, backend=backend)
    video, prompt = result.to(query.dtype).split([tokens, text], dim=1)
    shards = F.pad(video, (0, 0, 0, 0, 0, size * shard - tokens)).unflatten(1, (size, -1)).movedim(1, 0)
    # Every process receives its own shard and all text tokens of these heads.
    received = exchange(torch.cat([shards, prompt.expand(size, -1, -1, -1, -1)], dim=2), group)
    return received.movedim(0, 2).flatten(2, 3)


class HunyuanVideoSharedAttention:
    """The attention of HunyuanVideo's blocks for a context group: a processor of diffusers' `Attention`.

    The arguments of a call are those of diffusers' own processor, but the video tokens are those of a shard.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, group: ContextGroup) -> None:
        """Store the processes that share the video tokens."""
        self.group = group

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_rotary_emb: Rotary,
    ) -> tuple[Tensor, Tensor]:
        """Return the results for this process's shard, and for the text."""
        text = encoder_hidden_states.shape[1]

        def heads(project: Project, x: Tensor, norm: Project | None = None) -> Tensor:
            split = project(x).unflatten(2, (attn.heads, -1))
            return split if norm is None else norm(split)

        if attn.add_q_proj is None:
            both = torch.cat([hidden_states, encoder_hidden_states], dim=1)
            query, key = heads(attn.to_q, both, attn.norm_q), heads(attn.to_k, both, attn.norm_k)
            value = heads(attn.to_v, both)
        else:
            own = hidden_states, encoder_hidden_states
            query, key, value = (
                torch.cat([heads(project, x, norm) for project, x, norm in zip(projects, own, norms, strict=True)], 1)
                for projects, norms in (
                    ((attn.to_q, attn.add_q_proj), (attn.norm_q, attn.norm_added_q)),
                    ((attn.to_k, attn.add_k_proj), (attn.norm_k, attn.norm_added_k)),
                    ((attn.to_v, attn.add_v_proj), (None, None)),
                )
            )
        result = shared_attention(
            query, key, value, text, attention_mask, image_rotary_emb, self.group, self._attention_backend
        )
        video, prompt = result.flatten(2, 3).split([hidden_states.shape[1], text], dim=1)
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            prompt = attn.to_add_out(prompt)
        return video, prompt


class WanSharedAttention:
    """The self-attention of Wan's blocks for a context group: a processor of diffusers' `WanAttention`.

    The arguments of a call are those of diffusers' own processor, but the video tokens are those of a shard. Attention
    to the text needs no exchange: every process has all of the text.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, group: ContextGroup) -> None:
        """Store the processes that share the video tokens."""
        self.group = group

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Rotary,
    ) -> Tensor:
        """Return the result for this process's shard."""
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        cosines, sines = (table[0, :, 0] for table in rotary_emb)
        result = shared_attention(
            query, key, value, 0, None, (cosines, sines), self.group, self._attention_backend
        ).flatten(2, 3)
        projected: Tensor = attn.to_out[1](attn.to_out[0](result))
        return projected
