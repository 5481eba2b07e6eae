"""The frozen linear layers of a network in int8: half the memory of bf16, expanded at each use."""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdistill_core.errors import ConfigError
from magicdistill_core.families.base import NullPrompt, StartImage
from magicdistill_core.int8 import quantise_rows

from ..data.dataset_index import IMAGE_FEATURES, IMAGE_LATENTS, LATENTS, sample_shapes
from .families import kind_of
from .network import network_velocity

logger = logging.getLogger(__name__)

# Relative errors above which a base is refused. With random weights of 13B a velocity measured 0.03
# (docs/performance.md).
_LARGEST_VELOCITY_ERROR = 0.1
_LARGEST_GRADIENT_ERROR = 0.2
# Frames, height and width of the sample on which the errors are measured.
_PROBE = (9, 128, 128)


class _Product(torch.autograd.Function):
    """`x @ weight.T + bias` with a weight in int8. Backward, the weight is expanded again instead of being stored."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight, scale)
        return F.linear(x, _expanded(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = context.saved_tensors
        (gradient,) = gradients
        return gradient @ _expanded(weight, scale, gradient.dtype), None, None, None


def _expanded(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight.float() * scale).to(dtype)


class Int8Linear(nn.Linear):
    """A frozen linear layer with int8 weights and one scale per row. It passes gradients to its input only."""

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        """Round a layer's weights.

        Args:
            layer: the layer, also on `meta`. Its bias is shared.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        if weight.is_meta:
            rounded, scale = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight), 1).float()
        else:
            rounded, scale = (part.to(weight.device) for part in quantise_rows(weight))
        # Buffers: DeepSpeed expects all parameters of a network in one type.
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x @ weight.T + bias` in the type of `x`.

        Args:
            x: `[..., in_features]`.
        """
        result: Tensor = _Product.apply(x, self.weight, self.scale, self.bias)
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        scale = self.scale
        super()._apply(fn, recurse)
        # A network that is cast to bf16 keeps its scales in fp32.
        self.scale = scale.to(self.weight.device)
        return self


def quantise_base(transformer: Any, prompt: NullPrompt) -> None:
    """Replace the linear layers of the blocks by int8 ones, and log the errors that this makes.

    The errors are those of the velocity of one small noisy sample, and of its gradient for the sample. Call this before
    branches are added.

    Args:
        transformer: diffusers' transformer; it is changed. On `meta` no error is computed.
        prompt: a prompt of the network.

    Raises:
        ConfigError: if an error is too large for a training.
    """
    meta = next(transformer.parameters()).is_meta
    before = None if meta else _probe(transformer, prompt)
    for block in kind_of(transformer).blocks(transformer):
        for name, layer in [(n, m) for n, m in block.named_modules() if type(m) is nn.Linear]:
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, Int8Linear(layer))
    if before is None:
        return
    velocity, gradient = (_error(new, old) for new, old in zip(_probe(transformer, prompt), before, strict=True))
    logger.info(
        "The frozen base is in int8: its velocity is off by %.2f %%, its gradient by %.2f %%",
        100 * velocity,
        100 * gradient,
    )
    if not (velocity <= _LARGEST_VELOCITY_ERROR and gradient <= _LARGEST_GRADIENT_ERROR):
        raise ConfigError(
            f"With a base in int8 (model.base_int8), the velocity is off by {velocity:.1%} and its gradient by "
            f"{gradient:.1%}; at most {_LARGEST_VELOCITY_ERROR:.0%} and {_LARGEST_GRADIENT_ERROR:.0%} are allowed. "
            "Set model.base_int8=false."
        )


def _probe(transformer: Any, prompt: NullPrompt) -> tuple[Tensor, Tensor]:
    """Return the velocity of a fixed noisy sample, and the gradient of its product with fixed noise, on the CPU."""
    parameter = next(transformer.parameters())
    kind = kind_of(transformer)

    def noise(seed: int, *shape: int) -> Tensor:
        drawn = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(parameter.device, parameter.dtype)

    shapes = sample_shapes(kind.family.architecture.name, *_PROBE)
    features = noise(4, *shapes[IMAGE_FEATURES]) if IMAGE_FEATURES in shapes else None
    condition = kind.family.condition(StartImage(noise(3, *shapes[IMAGE_LATENTS]), features), shapes[LATENTS][1])
    x = kind.family.free(noise(1, *shapes[LATENTS])).requires_grad_()
    with torch.enable_grad():
        velocity = kind.output(network_velocity(transformer, condition, prompt)(x, x.new_full((1,), 0.8)))
        direction = noise(2, *velocity.shape[1:])
        (gradient,) = torch.autograd.grad((velocity.float() * direction.float()).sum(), x)
    return velocity.detach().float().cpu(), gradient.float().cpu()


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
