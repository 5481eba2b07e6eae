"""Context parallelism (Ulysses, arXiv 2309.14509): several processes share the video tokens of one sample.

Each process of a *context group* holds a *shard*: equally many consecutive video tokens, the last shards filled up with
zeros. Text tokens are on every process. Only attention needs all tokens. Around it the processes exchange shards of all
heads for all tokens of some heads, and back. The padding is removed before attention, which therefore needs no mask.

Gradients. All processes of a group compute the same loss. Every exchange sends gradients back exactly as it sent the
values, so they are those of the sum of all these losses: the processes' gradients of a weight add up to `size` times
the gradient of one loss. Their mean over all processes, which DeepSpeed computes, is the gradient of the loss. The
gradient of an input of the network is the mean over its group (see `cut`).
"""

from math import gcd
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.errors import ConfigError

from ..distributed import ContextGroup


def check_degree(degree: int, processes: int, heads: int, teacher: str) -> None:
    """Refuse a number of processes per sample that divides the processes or the attention heads with a remainder.

    Args:
        degree: processes that share one sample, the setting `context_parallel`.
        processes: number of processes of the run.
        heads: attention heads of the teacher.
        teacher: the teacher's name for the error message.

    Raises:
        ConfigError: if `degree` does not divide `processes` or `heads`.
    """
    if processes % degree == 0 and heads % degree == 0:
        return
    common = gcd(processes, heads)
    possible = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
    fault = f"the run has {processes} processes" if processes % degree else f"{teacher} has {heads} attention heads"
    raise ConfigError(
        f"context_parallel is {degree}, but {fault}, which {degree} does not divide. {processes} processes and {heads} "
        f"heads allow {possible}. Set context_parallel to one of these, or start another number of processes."
    )


def cut(x: Tensor, group: ContextGroup | None) -> Tensor:
    """Return this process's shard `[B, shard, C]` of the video tokens.

    Backward, every process receives the gradient of the complete sequence: the mean over the group of the losses'
    gradients. So whatever the tokens were computed from has the same gradient on all processes.

    Args:
        x: the video tokens `[B, tokens, C]`, equal on all processes of the group.
        group: the processes that share them; None returns `x`.
    """
    if group is None:
        return x
    shard: Tensor = _Cut.apply(x, group)
    return shard


def gather(shard: Tensor, tokens: int, group: ContextGroup | None) -> Tensor:
    """Return the complete sequence `[B, tokens, C]` on every process of the group. Gradients are summed.

    Args:
        shard: this process's shard `[B, shard, C]`.
        tokens: number of video tokens, without padding.
        group: the processes that share them; None returns `shard`.
    """
    return shard if group is None else _gathered(shard, group).movedim(0, 1).flatten(1, 2)[:, :tokens]


def mean_over_tokens(shard: Tensor, tokens: int, group: ContextGroup | None) -> Tensor:
    """Return the mean `[B, C]` over all video tokens of the sample, on every process of the group.

    Args:
        shard: this process's shard `[B, shard, C]`.
        tokens: number of video tokens, without padding.
        group: the processes that share them; None if `shard` has all tokens.
    """
    if group is None:
        return shard.mean(dim=1)
    own = first_of(tokens, shard.shape[1], group)
    return _gathered(shard[:, :own].sum(dim=1), group).sum(dim=0) / tokens


def first_of(count: int, shard: int, group: ContextGroup | None) -> int:
    """Return how many of the first `count` video tokens are in this process's shard.

    Args:
        count: a number of tokens, counted from the first one of the sample.
        shard: number of tokens in a shard, padding included.
        group: the processes that share the tokens; None if there is one shard.
    """
    return count if group is None else min(max(count - group.rank * shard, 0), shard)


def shard_length(tokens: int, group: ContextGroup) -> int:
    """Return the number of tokens in a shard, padding included."""
    return -(-tokens // group.size)


def _gathered(x: Tensor, group: ContextGroup) -> Tensor:
    """Return the tensors of all processes of the group, `[size, *x.shape]`; gradients are summed over them."""
    return exchange(x.expand(group.size, *x.shape), group)


def exchange(x: Tensor, group: ContextGroup) -> Tensor:
    """Send the n-th row of a tensor to process n of the group; return what process n sent as the n-th row.

    Args:
        x: `[size, ...]`, of the same shape on all processes.
        group: the processes.
    """
    received: Tensor = _Exchange.apply(x, group)
    return received


def _all_to_all(x: Tensor, group: ContextGroup) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    if group.processes is not None:
        dist.all_to_all_single(received, x, group=group.processes)
    return received


class _Exchange(torch.autograd.Function):
    """An all-to-all exchange, which is its own transpose."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: ContextGroup) -> Tensor:
        context.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, context.group), None


class _Cut(torch.autograd.Function):
    """This process's shard of a sequence; backward, the mean over the group's gradients of the complete sequence."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: ContextGroup) -> Tensor:
        context.group, context.tokens = group, x.shape[1]
        shard = shard_length(x.shape[1], group)
        own = x[:, group.rank * shard : (group.rank + 1) * shard]
        return F.pad(own, (0, 0, 0, shard - own.shape[1])) if own.shape[1] < shard else own.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.no_grad():
            return gather(gradient / context.group.size, context.tokens, context.group), None
