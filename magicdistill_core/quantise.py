"""Quantise a transformer to int8 in ComfyUI's own format: about half the size of a bf16 file, and half its memory.

Only weights are rounded. Each output row has its own scale: `W ~ scale[row] * q`, with `q` in -127..127. The trainer
computes with the rounded weights in its usual precision. The linear layers of the transformer blocks are rounded.
Norms, embedders and the last layer keep their dtypes, because together they are small.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .captions import caption_tensors
from .checkpoint import Checkpoint, load_checkpoint
from .errors import CheckpointError
from .int8 import FORMAT, QUANTISATION_KEY, VALUES_AT_A_TIME, quantise_rows
from .layouts.modules import LayoutMap
from .null_prompt import null_prompt_tensors
from .streamed import Space, streamed_file

# The flag asks ComfyUI not to round the layer's input too. ComfyUI 0.30 rounds it all the same, row by row, unless a
# LoRA is on the layer: it ignores the flag if the layer computes in the dtype that its dequantised weight would have.
_LAYER = {"format": FORMAT, "full_precision_matrix_mult": True}
_BLOCK_MODULE = re.compile(r"\w*blocks\.\{i\}\.")

Progress = Callable[[int, int], None]
"""A callback: `(layers done, number of layers)`."""


@dataclass(frozen=True)
class Quantised:
    """The result of a quantisation.

    Attributes:
        errors: each layer's relative error `|W - W'| / |W|` (Frobenius norms), by module name.
        error: the relative error of all quantised weights together.
        bytes_before: size of the tensors before quantisation.
        bytes_after: size of the tensors in the written file.
    """

    errors: dict[str, float]
    error: float
    bytes_before: int
    bytes_after: int

    def summary(self) -> str:
        """Return the number of layers, the sizes and the errors as one line of text."""
        worst = max(self.errors, key=self.errors.__getitem__)
        return (
            f"{len(self.errors)} layers in int8: {self.bytes_before / 1e6:,.1f} MB became "
            f"{self.bytes_after / 1e6:,.1f} MB ({self.bytes_after / self.bytes_before:.0%}); weights off by "
            f"{self.error:.2%} (at most {self.errors[worst]:.2%}, {worst})"
        )


def quantised_layers(layout: LayoutMap, state: Mapping[str, Tensor]) -> list[str]:
    """List the modules whose weights are quantised: those with a matrix inside the transformer blocks.

    Args:
        layout: the architecture's map of names.
        state: the weights in the file layout.

    Returns:
        Module names in the file layout, without `.weight`, in the order of `state`.
    """
    names = []
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        found = layout.file_module(name)
        if leaf == "weight" and tensor.ndim == 2 and found is not None and _BLOCK_MODULE.match(found[0].file):
            names.append(name)
    return names


def save_quantised(
    path: str | Path, checkpoint: Checkpoint, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> Quantised:
    """Write a transformer with the matrices of its blocks in int8. ComfyUI's stock loader can read the file.

    Recipe, null prompt and captions are kept. Tensors are written one by one. The tensors of a safetensors file in the
    file layout are mapped and not read in advance, so at most one layer is in memory at a time.

    Args:
        path: the file to write; an existing file is replaced.
        checkpoint: the transformer, not quantised.
        dtype: dtype of the weights that are not quantised; None keeps the dtype of each tensor. The null prompt and
            the captions always keep their dtypes.
        progress: called after each quantised layer; None for no callback. It may raise an exception to cancel.

    Returns:
        The rounding errors and the sizes.

    Raises:
        CheckpointError: if a weight is not a finite number, or the disk has not enough room. No file is written.
        Exception: any exception from `progress`. No file is written.
    """
    layers = quantised_layers(checkpoint.architecture.layout, checkpoint.state)
    weights = {f"{name}.weight" for name in layers}
    kept = {key: value for key, value in checkpoint.state.items() if key not in weights}
    texts = null_prompt_tensors(checkpoint.null_prompt) | caption_tensors(checkpoint.captions)
    spaces = {key: Space(dtype or value.dtype, tuple(value.shape)) for key, value in kept.items()}
    spaces |= {key: Space.of(value) for key, value in texts.items()}
    for key in weights:
        shape = tuple(checkpoint.state[key].shape)
        spaces |= {key: Space(torch.int8, shape), f"{key}_scale": Space(torch.float32, (shape[0], 1))}
    described = {"format_version": "1.0", "layers": dict.fromkeys(layers, _LAYER)}
    metadata = {"format": "pt"} if checkpoint.recipe is None else checkpoint.recipe.to_metadata()
    errors: dict[str, float] = {}
    lost = total = 0.0
    with streamed_file(path, spaces, metadata | {QUANTISATION_KEY: json.dumps(described)}) as file:
        for key, value in (kept | texts).items():
            file.write(key, value.to(spaces[key].dtype))
        for number, name in enumerate(layers):
            weight = checkpoint.state[f"{name}.weight"]
            quantised, scale = quantise_rows(weight)
            difference, size = _squares(weight, quantised, scale)
            if not torch.isfinite(torch.tensor(size)):
                raise CheckpointError(
                    f"{checkpoint.source} has values in {name}.weight that are not finite numbers. The file is damaged "
                    f"or its training diverged. Use another file."
                )
            file.write(f"{name}.weight", quantised)
            file.write(f"{name}.weight_scale", scale)
            errors[name] = (difference / size) ** 0.5 if size else 0.0
            lost, total = lost + difference, total + size
            if progress is not None:
                progress(number + 1, len(layers))
    before = sum(Space.of(value).bytes for value in (checkpoint.state | texts).values())
    after = sum(space.bytes for space in spaces.values())
    return Quantised(errors, (lost / total) ** 0.5 if total else 0.0, before, after)


def _squares(weight: Tensor, quantised: Tensor, scale: Tensor) -> tuple[float, float]:
    """Return the sum of squares of the rounding error, and the sum of squares of the weight."""
    rows = max(1, VALUES_AT_A_TIME // max(1, weight.shape[1]))
    difference = size = 0.0
    pieces = zip(weight.split(rows), quantised.split(rows), scale.split(rows), strict=True)
    for exact, rounded, row_scale in pieces:
        piece = exact.float()
        difference += float((piece - rounded * row_scale).square_().sum(dtype=torch.float64))
        size += float(piece.square().sum(dtype=torch.float64))
    return difference, size


def quantise_file(source: str | Path, path: str | Path, progress: Progress | None = None) -> Quantised:
    """Read a model file in any known naming scheme and write its int8 version; see `save_quantised`.

    Args:
        source: the model file or diffusers folder.
        path: the file to write.
        progress: see `save_quantised`.

    Returns:
        The rounding errors and the sizes.

    Raises:
        CheckpointError: if the source cannot be read safely, is already quantised, is a LoRA, or is not a complete
            transformer of a known family; see `save_quantised` for the others.
    """
    return save_quantised(path, load_checkpoint(source, allow_quantised=False), progress=progress)
