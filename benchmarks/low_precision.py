"""Minimal linears with fp8 and int8 weights, to measure the speed and the error of such weights in one forward."""

import copy
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.networks.families.hunyuan_video import LORA_TARGETS

FP8 = torch.float8_e4m3fn
_FP8_LARGEST = torch.finfo(FP8).max
_INT8_LARGEST = 127


def _rows(weight: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Scale each row of a matrix to a largest absolute entry of `largest`.

    Returns:
        The scaled matrix, and the divisors `[rows, 1]` in float32.
    """
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    return weight.float() / scale, scale


class _Scaled(nn.Module):
    """A linear with an 8-bit weight and one scale per row of the weight."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias


class StoredLinear(_Scaled):
    """A linear that stores its weight in 8 bits with one scale per row, and expands it at every call."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        scaled, scale = _rows(linear.weight.data, _FP8_LARGEST if dtype == FP8 else _INT8_LARGEST)
        stored = (scaled if dtype == FP8 else scaled.round()).to(dtype)
        super().__init__(stored, scale.to(linear.weight.dtype), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Fp8Linear(_Scaled):
    """A linear that multiplies in fp8, with one scale per row of the weight and one scale per token.

    It needs a GPU with fp8 matrix units (compute capability 8.9 or more). Both sizes of the weight must be multiples
    of 16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        scaled, scale = _rows(linear.weight.data, _FP8_LARGEST)
        # `torch._scaled_mm` needs one scale per column of the transposed weight.
        super().__init__(scaled.to(FP8), scale.t().contiguous(), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        # The norm reads the rows once; abs().amax() would also make a copy.
        largest = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1, keepdim=True).float().clamp(min=1e-12)
        scale = largest / _FP8_LARGEST
        stored = (rows * (1 / scale).to(rows.dtype)).to(FP8)
        out = torch._scaled_mm(
            stored, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=x.dtype, use_fast_accum=True
        )
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], -1)


def has_fp8_units(device: torch.device) -> bool:
    """Return whether the device has fp8 matrix units."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def with_linears(transformer: nn.Module, replace: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Return a copy of a transformer with the large linears of its blocks replaced.

    The copy shares all other parameters and buffers with the original.

    Args:
        transformer: stays as it is.
        replace: makes the new module from a linear.
    """
    # deepcopy copies the modules only: the memo marks parameters and buffers as already copied.
    shared = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
    twin = copy.deepcopy(transformer, shared)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS, name):
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, replace(module))
    return twin


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
