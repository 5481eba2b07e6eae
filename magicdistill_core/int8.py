"""ComfyUI's int8 format: its names, and the rounding of a matrix to int8 with one scale per row."""

import torch
from torch import Tensor

FORMAT = "int8_tensorwise"
"""ComfyUI's name of the format. It allows one scale for all rows, or one scale per row."""
QUANTISATION_KEY = "_quantization_metadata"
"""The metadata key that states which layers of a file are quantised, and in which format."""
VALUES_AT_A_TIME = 1 << 24
"""How many values of a matrix are computed with at a time, which keeps float32 copies small."""

_LEVELS = 127
_SMALLEST_SCALE = 1e-30


def quantise_rows(weight: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8 with one scale per row: `weight ~ scale[row] * q`.

    It works on a few rows at a time, which keeps the float32 copies small.

    Args:
        weight: `[rows, columns]`, of any floating point dtype.
        factor: if the matrix is `factor * weight`, its factor: `[rows, 1]` or `[rows, columns]`; None for 1.

    Returns:
        The int8 matrix q `[rows, columns]` and the float32 scales `[rows, 1]`, both new tensors on the CPU.
    """
    quantised = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], 1)
    rows = max(1, VALUES_AT_A_TIME // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        piece = weight[start : start + rows].float()
        if factor is not None:
            piece = piece * factor[start : start + rows]
        scale = (piece.abs().amax(dim=1, keepdim=True) / _LEVELS).clamp_(min=_SMALLEST_SCALE)
        quantised[start : start + rows] = (piece / scale).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
        scales[start : start + rows] = scale
    return quantised, scales
