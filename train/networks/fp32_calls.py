"""Calls of a bf16 network that compute in fp32, to measure what bf16 rounds away.

The weights stay in bf16. Each operation converts its weights when it needs them, so only one layer's weights exist in
fp32 at a time: also under ZeRO-3, which gathers them per layer, and also for a 13B network. The activations are fp32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Operations that need one data type for all of their inputs. All others convert bf16 to fp32 themselves where the two
# meet. Attention is among them for networks with bf16 keys of a cached text.
_ONE_TYPE = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.layer_norm,
    F.group_norm,
    F.rms_norm,
    F.scaled_dot_product_attention,
    torch.layer_norm,
    torch.group_norm,
    torch.rms_norm,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.matmul,
    torch.mm,
    Tensor.__matmul__,
    Tensor.addmm,
    Tensor.baddbmm,
    Tensor.bmm,
    Tensor.matmul,
    Tensor.mm,
}
# Conversions of activations to the data type of the weights.
_CONVERSIONS = {Tensor.to, Tensor.type_as, Tensor.bfloat16}


class _Fp32Mode(TorchFunctionMode):
    """Converts bf16 inputs of operations to fp32, and keeps fp32 tensors from being converted to bf16."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ONE_TYPE:
            return func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        result = func(*args, **kwargs)
        if func in _CONVERSIONS and args[0].dtype == torch.float32 and result.dtype == torch.bfloat16:
            return args[0].to(result.device)
        return result


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


@contextmanager
def fp32_calls() -> Iterator[None]:
    """Compute all network calls inside the context in fp32, with the bf16 weights that the networks have.

    No gradients are computed. An fp32 call takes longer than a bf16 call, because it uses neither the tensor cores nor
    the fastest kernels of attention.
    """
    with torch.no_grad(), _Fp32Mode():
        yield
