"""The text conditioning of a batch: one prompt for all samples, or one per sample with padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdistill_core.families.base import Condition, NullPrompt


@dataclass(frozen=True)
class PromptBatch:
    """One prompt per sample.

    Attributes:
        text_states: `[B, L, text_dim]`, with zeros after the tokens of prompts that are shorter than L.
        shown: `[B, L]`, False for padding; None if no prompt has padding.
        pooled: `[B, pooled_dim]`, or None for a family without pooled text.
    """

    text_states: Tensor
    shown: Tensor | None
    pooled: Tensor | None

    def to(self, device: torch.device | str) -> "PromptBatch":
        """Return the prompts on a device, as a new object."""
        shown, pooled = (None if part is None else part.to(device) for part in (self.shown, self.pooled))
        return PromptBatch(self.text_states.to(device), shown, pooled)


# The text conditioning of a call: one prompt for all samples, or one per sample.
Prompts = NullPrompt | PromptBatch


@dataclass(frozen=True)
class Captioned:
    """The conditioning of samples with prompts of their own.

    Attributes:
        condition: the family's conditioning on the start images.
        prompts: the prompts of the samples.
        negatives: the prompts of unconditional calls; None uses the network's negative prompt.
    """

    condition: Condition
    prompts: PromptBatch
    negatives: PromptBatch | None = None


# What a call is conditioned on: the start images alone, with the network's own prompt, or also prompts per sample.
Conditioning = Condition | Captioned


def stack_prompts(prompts: Sequence[NullPrompt]) -> PromptBatch:
    """Join prompts of different lengths into a batch in float32. Prompts of equal lengths get no mask.

    Args:
        prompts: one prompt per sample, all for the same family.
    """
    lengths = [prompt.text_states.shape[1] for prompt in prompts]
    longest = max(lengths)
    padded = [
        F.pad(prompt.text_states.float(), (0, 0, 0, longest - length))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    shown = None
    if min(lengths) < longest:
        shown = torch.arange(longest) < torch.tensor(lengths)[:, None]
    pooled = [prompt.pooled.float() for prompt in prompts if prompt.pooled is not None]
    return PromptBatch(torch.cat(padded), shown, torch.cat(pooled) if pooled else None)


def expanded(prompts: Prompts, like: Tensor, tokens: int | None = None) -> PromptBatch:
    """Return one prompt per sample on the device and in the dtype of a tensor.

    A single prompt is repeated, without copying it.

    Args:
        prompts: one prompt, or one per sample.
        like: a tensor of the network's inputs; its first axis is the batch.
        tokens: pad all prompts with zeros to this number of tokens; None pads nothing.
    """
    text = prompts.text_states.to(like)
    if tokens is not None:
        text = F.pad(text, (0, 0, 0, tokens - text.shape[1]))
    pooled = None if prompts.pooled is None else prompts.pooled.to(like)
    if isinstance(prompts, PromptBatch):
        return PromptBatch(text, None if prompts.shown is None else prompts.shown.to(like.device), pooled)
    batch = like.shape[0]
    return PromptBatch(text.expand(batch, -1, -1), None, None if pooled is None else pooled.expand(batch, -1))


def prompt_on(prompt: NullPrompt, device: torch.device) -> NullPrompt:
    """Return a prompt with its tensors on a device."""
    pooled = None if prompt.pooled is None else prompt.pooled.to(device)
    return replace(prompt, text_states=prompt.text_states.to(device), pooled=pooled)
