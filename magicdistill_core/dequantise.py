"""Convert quantised weights back to floating point: `W = scale * q`, once, when a file is read.

Networks of PyTorch can then be built from int8 and fp8 files as from any other file. The rounding errors of the file
remain. ComfyUI uses the numbers of the file itself, and rounds the inputs of int8 layers too.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import CheckpointError
from .int8 import FORMAT, VALUES_AT_A_TIME
from .layouts.modules import listing
from .null_prompt import NULL_POOLED_KEY, NULL_TEXT_KEY
from .quantised_files import DESCRIPTION, describe_quantised, refuse_other_tools
from .soundness import check_number_types
from .wrappers import QUANTISATION_MARKS, QUANTISED, is_quantised

logger = logging.getLogger(__name__)

_FORMATS = {FORMAT: torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_ADVICE = "Use the bf16, fp16 or fp32 release of the same model."


def dequantised(state: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Return the tensors of a model file with all weights in floating point, and without scales.

    Quantised weights get the dtype that most of the file's other weights have; bfloat16 if all weights have 8 bits. A
    weight whose scales ComfyUI cannot apply is rounded to int8 first, as in ComfyUI (see `describe_quantised`).

    Args:
        state: the tensors of the transformer by name, without a prefix. For tensors on the device `meta`, only shapes
            and dtypes are converted.
        metadata: the file's text entries; ComfyUI's description of the layers is read from them.
        source: the file's name for messages.

    Returns:
        New tensors on the device of the file's tensors. A file without quantised weights is returned as it is.

    Raises:
        CheckpointError: if a weight is quantised in a format other than int8 or fp8 with one scale per weight, per row
            or per block of a row, or if its scale or its description is missing or damaged.
    """
    if not is_quantised(state):
        return dict(state)
    dtype = _dtype_of_the_rest(state)
    if any(tensor.is_meta for tensor in state.values()):
        refuse_other_tools(state, source)
        return {
            key: torch.empty_like(tensor, dtype=dtype) if tensor.dtype in QUANTISED else tensor
            for key, tensor in state.items()
            if not key.endswith(QUANTISATION_MARKS)
        }
    described = describe_quantised(state, metadata, source)
    check_number_types(described.state, source)
    out: dict[str, Tensor] = {}
    kinds: Counter[str] = Counter()
    for key, tensor in described.state.items():
        if key.endswith(QUANTISATION_MARKS):
            continue
        if tensor.dtype not in QUANTISED:
            out[key] = tensor
            continue
        original = state[key]
        kinds[str(original.dtype).removeprefix("torch.")] += 1
        out[key] = _product(tensor, _scale(key, described.state, source), dtype).to(original.device)
    if kinds:
        counted = ", ".join(f"{count} weights in {kind}" for kind, count in kinds.items())
        again = f", {described.converted} of them after rounding to int8" if described.converted else ""
        target = str(dtype).removeprefix("torch.")
        logger.info("%s: %s were converted to %s%s; their rounding errors remain", source, counted, target, again)
    return out


def _dtype_of_the_rest(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the most frequent dtype of the weights that are not quantised; bfloat16 if there are none."""
    counts: Counter[torch.dtype] = Counter()
    for key, tensor in state.items():
        is_weight = key not in (NULL_TEXT_KEY, NULL_POOLED_KEY) and not key.endswith(QUANTISATION_MARKS)
        if is_weight and tensor.dtype not in QUANTISED:
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _scale(key: str, state: Mapping[str, Tensor], source: str) -> Tensor | None:
    """Return the scale of a quantised weight, `[1, 1]` or `[rows, 1]`; None for fp8 without a scale."""
    weight, layer = state[key], key.removesuffix(".weight")
    text = state.get(f"{layer}{DESCRIPTION}")
    if text is None:
        return None
    try:
        description = dict(json.loads(bytes(text.tolist())))
        rotated = description.get("convrot") or dict(description.get("params", {})).get("convrot")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: the description of the quantised layer {layer} is damaged. Download the file again. {_ADVICE}"
        ) from error
    smoothed = f"{layer}.pre_quant_scale" in state
    name = f"{description.get('format')}{' with rotation' * bool(rotated)}{' with smoothing' * smoothed}"
    if _FORMATS.get(name) != weight.dtype:
        raise CheckpointError(
            f"{source} stores {layer} in ComfyUI's format {name}, which only ComfyUI can compute with. Expected "
            f"{listing(list(_FORMATS))}. {_ADVICE}"
        )
    scale = state.get(f"{layer}.weight_scale")
    if scale is None or weight.ndim != 2 or scale.numel() not in (1, weight.shape[0]):
        found = "no scale" if scale is None else f"scales of the shape {list(scale.shape)}"
        raise CheckpointError(
            f"{source} holds {found} for {key} of the shape {list(weight.shape)}. Expected a matrix with one "
            f"scale or one per row. The file is damaged: download it again. {_ADVICE}"
        )
    return scale.float().reshape(-1, 1)


def _product(quantised: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return `scale * quantised` in a dtype, computed in float32 for a few rows at a time."""
    if scale is None:
        return quantised.to(dtype)
    out = torch.empty(quantised.shape, dtype=dtype, device=quantised.device)
    rows = max(1, VALUES_AT_A_TIME // max(1, quantised.shape[1]))
    for start in range(0, len(quantised), rows):
        piece = slice(start, start + rows)
        out[piece] = quantised[piece].float() * (scale[piece] if len(scale) > 1 else scale)
    return out
