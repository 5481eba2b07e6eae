"""Quantised model files of other tools: describe their weights as ComfyUI's loader expects it.

A quantised weight is stored as numbers of 8 bits and a scale: `W = scale * q`. ComfyUI multiplies a weight by its scale
only if the file describes the layer, in its metadata or in a tensor `<layer>.comfy_quant`. It ignores all other scales,
and the network then computes noise. Many tools write scales without a description: LightX2V's converter, musubi-tuner,
and Kijai's files with the names `scale_weight` and `scaled_fp8`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .int8 import FORMAT, QUANTISATION_KEY, quantise_rows
from .layouts.modules import listing
from .wrappers import QUANTISATION_MARKS

DESCRIPTION = ".comfy_quant"
"""The end of the name of a tensor that describes a quantised layer to ComfyUI."""

_FLAG = "scaled_fp8"
# `weight_scale_inv` of DeepSeek and others is the inverse of the quantiser's factor: it too is multiplied.
_SCALES = (".weight_scale", ".scale_weight", ".weight_scale_inv")
_INPUT_SCALES = (".input_scale", ".scale_input")
_FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
# Parts of tensor names by which other quantisers are recognised. ComfyUI's loader reads none of these formats.
_OTHER_TOOLS = {
    "bitsandbytes": (".absmax", ".quant_map", ".quant_state.", ".SCB"),
    "quanto": ("._data", "._scale"),
    "torchao": ("_qdata", "_zero_point"),
    "nunchaku": (".wscales", ".smooth_factor"),
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"),
    "compressed-tensors": (".weight_packed",),
}
_ADVICE = (
    "Use a release of the model for ComfyUI, or its bf16 file. For a small file, convert the bf16 file with Quantise "
    "to int8."
)


@dataclass(frozen=True)
class Described:
    """The tensors of a model file, with a description of every quantised layer.

    Attributes:
        state: the tensors by name. Every quantised layer has a `comfy_quant`, the scale is called `weight_scale`.
        converted: the number of layers that were rounded again, to int8 with one scale per row, because ComfyUI has
            no format for their scales.
    """

    state: dict[str, Tensor]
    converted: int = 0


def describe_quantised(state: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Described:
    """Describe the quantised layers of a file, so that ComfyUI applies every scale.

    Args:
        state: the tensors of the transformer by name, without a prefix.
        metadata: the file's text entries; the description that ComfyUI itself writes is read from them.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if the file was quantised in a format that ComfyUI cannot compute with, if a scale has no
            meaning here, or if the description in the metadata is damaged.
    """
    refuse_other_tools(state, source)
    out = dict(state)
    for name, layer in _layers(metadata, source).items():
        out[f"{_known_layer(name, state)}{DESCRIPTION}"] = _description(layer)
    stated = {key.removesuffix(DESCRIPTION) for key in out if key.endswith(DESCRIPTION)}
    flag = out.pop(_FLAG, None)
    # Kijai's and ComfyUI's old files state by the flag's length whether the inputs are rounded too.
    fast = flag is not None and flag.numel() != 2
    found: dict[str, str] = {}
    for key in state:
        suffix = next((suffix for suffix in _SCALES if key.endswith(suffix)), None)
        if suffix is None or (layer := key.removesuffix(suffix)) in stated:
            continue
        if layer in found:
            raise CheckpointError(f"{source} holds two scales for {layer}: {found[layer]} and {key}. {_ADVICE}")
        found[layer] = key
    converted = 0
    for layer, key in found.items():
        scale, weight = out.pop(key), out.get(f"{layer}.weight")
        described = _described_layer(weight, scale, fast)
        if described is None:
            shape = "no weight" if weight is None else f"a weight of {list(weight.shape)} in {_name(weight.dtype)}"
            raise CheckpointError(
                f"{source} holds scales that ComfyUI cannot apply: {key} has the shape {list(scale.shape)}, for "
                f"{shape}. Expected one scale per weight or per row of a matrix in fp8 or int8. {_ADVICE}"
            )
        inputs = next((tensor for end in _INPUT_SCALES if (tensor := out.pop(f"{layer}{end}", None)) is not None), None)
        if fast and inputs is not None and inputs.numel() == 1 and float(inputs) != 1:
            described[".input_scale"] = inputs.float()
        out |= {f"{layer}{leaf}": tensor for leaf, tensor in described.items()}
        converted += weight is not None and described[".weight"].dtype != weight.dtype
    layers = stated | found.keys()
    lost = [key for key in out if key.endswith(QUANTISATION_MARKS) and key.rpartition(".")[0] not in layers]
    if lost:
        raise CheckpointError(
            f"{source} holds {len(lost)} scales of an unknown quantiser ({listing(lost, 3)}), which ComfyUI would "
            f"ignore. {_ADVICE}"
        )
    return Described(out, converted)


def refuse_other_tools(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse the tensors of quantisers whose formats ComfyUI's loaders do not read, by their names.

    Args:
        state: the tensors of the file, by name.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if there are such tensors.
    """
    for tool, marks in _OTHER_TOOLS.items():
        keys = [key for key in state if any(mark in key for mark in marks)]
        if keys:
            raise CheckpointError(
                f"{source} was quantised by {tool} ({listing(keys, 2)}), whose format ComfyUI's model loaders do not "
                f"read. {_ADVICE}"
            )


def _layers(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return ComfyUI's description of each layer from a file's metadata, by layer name."""
    text = metadata.get(QUANTISATION_KEY)
    if text is None:
        return {}
    try:
        return dict(json.loads(text)["layers"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source} holds quantised weights, and their description in its metadata ({QUANTISATION_KEY}) is damaged. "
            f"Download the file again. {_ADVICE}"
        ) from error


def _known_layer(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the layer's name without the prefix of the file that `state` no longer has."""
    short = name
    while short and f"{short}.weight" not in state:
        short = short.partition(".")[2]
    return short or name


def _description(layer: object) -> Tensor:
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


def _described_layer(weight: Tensor | None, scale: Tensor, fast: bool) -> dict[str, Tensor] | None:
    """Return the tensors of a layer by their ends in ComfyUI's names; None if it has no format for them."""
    if weight is None or not scale.is_floating_point() or scale.element_size() < 2:
        return None
    if weight.is_floating_point() and weight.dtype not in _FP8:
        # A layer that the quantiser left out, in a file that has a scale for every layer.
        return {".weight": weight} if bool((scale == 1).all()) else None
    if weight.ndim != 2:
        return None
    rows, columns = weight.shape
    if scale.numel() == 1:
        scale, whole = scale.float().reshape(()), True
    elif scale.shape in ((rows,), (rows, 1)):
        scale, whole = scale.float().reshape(rows, 1), False
    elif scale.ndim == 3 and scale.shape[0] == rows and scale.shape[2] == 1 and columns % scale.shape[1] == 0:
        # musubi-tuner: one scale for each block of a row.
        scale, whole = scale[..., 0].float().repeat_interleave(columns // scale.shape[1], dim=1), False
    else:
        return None
    plain = {} if fast else {"full_precision_matrix_mult": True}
    if weight.dtype in _FP8 and whole:
        described = {"format": _FP8[weight.dtype]} | plain
    elif weight.dtype in _FP8:
        weight, scale = quantise_rows(weight, scale)
        described = {"format": FORMAT, "full_precision_matrix_mult": True}
    elif weight.dtype == torch.int8 and scale.numel() in (1, rows):
        described = {"format": FORMAT} | plain
    else:
        return None
    return {".weight": weight, ".weight_scale": scale, DESCRIPTION: _description(described)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
