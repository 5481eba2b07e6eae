"""Make networks and inputs of random numbers, directly on the device that uses them."""

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import NetworkShape, concat_condition
from train.networks.network import build_network

from .sizes import Clip

_SPREAD = 0.02


def random_network(
    shape: NetworkShape, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> nn.Module:
    """Make a transformer with random weights, frozen and in eval mode.

    It is made on the device in its final dtype, so no second copy takes memory.

    Args:
        shape: the sizes of the transformer.
        device: where it is made.
        dtype: of its weights.
        generator: a generator on `device`.
    """
    with init_empty_weights():
        network = build_network(shape)
    network = network.to(dtype).to_empty(device=device)
    fill_randomly(network, generator)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def fill_randomly(module: nn.Module, generator: torch.Generator) -> None:
    """Fill a module in place: weights from a normal distribution of standard deviation 0.02, norms 1, biases 0."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, _SPREAD, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def random_prompt(
    shape: NetworkShape, text_tokens: int, device: torch.device, generator: torch.Generator
) -> NullPrompt:
    """Make text conditioning of random numbers in float32."""
    text = torch.randn(1, text_tokens, shape.text_dim, device=device, generator=generator)
    return NullPrompt(text, torch.randn(1, shape.pooled_dim, device=device, generator=generator))


def random_clip(
    clip: Clip, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make a noisy latent `[1, 16, T, H, W]` and the condition that is concatenated to it, `[1, 17, T, H, W]`."""
    x = torch.randn(clip.latent, device=device, dtype=dtype, generator=generator)
    image = torch.randn(x[:, :, :1].shape, device=device, dtype=dtype, generator=generator)
    return x, concat_condition(image, x.shape[2])
