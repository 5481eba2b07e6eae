"""The trainer's network: a family's transformer from diffusers, with weights from a checkpoint.

A call of the network returns the velocity of the noisy frames.
"""

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import Condition, Family, map_condition
from magicdistill_core.families.hunyuan_video import CONCAT, EMBEDDED_GUIDANCE
from magicdistill_core.flow import Velocity
from magicdistill_core.layouts.modules import file_to_diffusers

from .families import kind_for, kind_of
from .prompts import PromptBatch, Prompts, prompt_on


def build_network(shape: Any, family: Family = CONCAT) -> Any:
    """Build a diffusers transformer with random weights.

    Args:
        shape: the sizes of the transformer, in the class of its family (`NetworkShape` or `WanShape`).
        family: the family, which must have as many input channels as `shape`.
    """
    assert shape.in_channels == family.in_channels
    return kind_for(family).build(shape)


def load_network(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """Build a diffusers transformer with the weights of a checkpoint, in eval mode.

    The tensors are copied once, so training the network does not change `checkpoint`. No random weights are allocated.

    Args:
        checkpoint: the weights, whose family must be known.
        dtype: data type of the network's weights.
        device: device of the network.

    Raises:
        CheckpointError: if the family of the checkpoint is ambiguous (see `Checkpoint.resolved`).
    """
    with init_empty_weights():
        network = build_network(checkpoint.shape, checkpoint.family())
    weights = file_to_diffusers(checkpoint.architecture.layout, checkpoint.state, checkpoint.shape.hidden)
    copies = {key: value.to(device=device, dtype=dtype, copy=True).contiguous() for key, value in weights.items()}
    network.load_state_dict(copies, assign=True)
    # Buffers that no file contains, such as Wan's rotary tables, were created on the CPU.
    return network.to(device).eval()


def has_guidance_embedding(network: nn.Module) -> bool:
    """Return whether the guidance scale is an input of a diffusers transformer."""
    return bool(getattr(network.config, "guidance_embeds", False))


def call_inputs(
    network: nn.Module,
    x: Tensor,
    sigma: Tensor,
    condition: Condition,
    prompt: Prompts,
    guidance: Tensor | float = EMBEDDED_GUIDANCE,
) -> dict[str, Any]:
    """Return the keyword arguments of one call of a network of any family.

    Args:
        network: diffusers' transformer, from `build_network` or `load_network`.
        x: noisy frames `[B, 16, T, H, W]`, without the frames that the start image sets.
        sigma: noise levels `[B]`.
        condition: the family's conditioning on the start images.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        guidance: guidance scale for a network with a guidance embedding: one number, or `[B]`. Other networks ignore
            it.
    """
    scales = None
    if has_guidance_embedding(network):
        scales = torch.as_tensor(guidance, dtype=torch.float32, device=x.device).expand(x.shape[0])
    return kind_of(network).inputs(x, sigma, condition, prompt, scales)


def network_velocity(
    network: nn.Module, condition: Condition, prompt: Prompts, guidance: float = EMBEDDED_GUIDANCE
) -> Velocity:
    """Return a function `(x, sigma) -> velocity` that calls the network with the conditioning of one batch.

    The function takes noisy frames `[B, 16, T, H, W]` in the network's dtype and noise levels `[B]`. It returns a
    velocity shaped as `x`.

    Args:
        network: diffusers' transformer, from `load_network`.
        condition: the family's conditioning on the batch's start images.
        prompt: text conditioning: one prompt for all samples, or one per sample.
        guidance: guidance scale for a network with a guidance embedding; other networks ignore it.
    """
    device = next(network.parameters()).device
    # Moved once here, instead of from the host at every call.
    prompt = prompt.to(device) if isinstance(prompt, PromptBatch) else prompt_on(prompt, device)
    condition = map_condition(lambda tensor: tensor.to(device), condition)
    kind = kind_of(network)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        inputs = call_inputs(network, x, sigma, condition, prompt, guidance)
        return kind.output(network(**inputs, return_dict=False)[0])

    return velocity
