"""Whether a device computes in bf16 faster than in fp32."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator

from ..distributed import available_device


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16.

    A CPU without them computes bf16 products one by one: a matrix product then takes up to 70 times as long as in fp32
    (AMD EPYC with AVX2, PyTorch 2.11).

    Args:
        device: the device of the computation.
    """
    if device.type != "cpu":
        return True
    # oneDNN has its kernels for bf16 from AVX-512 on. PyTorch asks it in the same way before it compiles a model.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _resolved(value: Any) -> Any:
    if value == "auto":
        return "bf16" if bf16_is_fast(available_device()) else "fp32"
    return value


# The setting `auto` becomes the precision in which this machine is fast.
FastPrecision = Annotated[Literal["bf16", "fp32"], BeforeValidator(_resolved)]
