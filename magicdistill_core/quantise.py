"""int8 weights in ComfyUI's own quantised format: half of a bf16 file and half of its memory, for one rounding.

Only weights are rounded, and each output row has a scale of its own: `W ~ scale[row] * q`, `q` in -127..127. Networks
compute with the rounded weights in their usual precision. What is rounded are the linears of the transformer blocks;
norms, embedders and the last layer, which together are small, stay as they are.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint, load_checkpoint
from .errors import CheckpointError
from .layouts.modules import LayoutMap
from .null_prompt import null_prompt_tensors
from .streamed import Space, streamed_file

FORMAT = "int8_tensorwise"
"""ComfyUI's name of the format; the scale may be one for all rows or, as here, one a row."""
QUANTISATION_KEY = "_quantization_metadata"
"""Where a file's metadata say which layers are quantised, and how."""

_LEVELS = 127
# ComfyUI would also round what goes into such a layer to int8, which is faster on some GPUs and a second error.
_LAYER = {"format": FORMAT, "full_precision_matrix_mult": True}
_BLOCK_MODULE = re.compile(r"\w*blocks\.\{i\}\.")
_SMALLEST_SCALE = 1e-30
_VALUES_AT_A_TIME = 1 << 24

Progress = Callable[[int, int], None]
"""Called with the layers done and their number."""


@dataclass(frozen=True)
class Quantised:
    """What a quantisation did.

    `errors` has each layer's relative error `|W - W'| / |W|` (Frobenius norms), `error` that of all of them together.
    """

    errors: dict[str, float]
    error: float
    bytes_before: int
    bytes_after: int

    def summary(self) -> str:
        """The result in a line."""
        worst = max(self.errors, key=self.errors.__getitem__)
        return (
            f"{len(self.errors)} layers in int8: {self.bytes_before / 1e6:,.1f} MB became "
            f"{self.bytes_after / 1e6:,.1f} MB ({self.bytes_after / self.bytes_before:.0%}); weights off by "
            f"{self.error:.2%} (at most {self.errors[worst]:.2%}, {worst})"
        )


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix `[rows, columns]` as int8 with one float32 scale a row `[rows, 1]`; both are new tensors.

    Works in pieces, so that its float32 copies stay small.
    """
    quantised = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], 1)
    rows = max(1, _VALUES_AT_A_TIME // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        piece = weight[start : start + rows].float()
        scale = (piece.abs().amax(dim=1, keepdim=True) / _LEVELS).clamp_(min=_SMALLEST_SCALE)
        quantised[start : start + rows] = (piece / scale).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
        scales[start : start + rows] = scale
    return quantised, scales


def quantised_layers(layout: LayoutMap, state: Mapping[str, Tensor]) -> list[str]:
    """The modules of a file-layout state whose weights are worth an int8: the matrices inside the blocks."""
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
    """Write a transformer with its blocks' matrices in int8, which ComfyUI's stock loader reads; tensor by tensor.

    The recipe and the null prompt are kept. Of a checkpoint that was loaded from a safetensors file in the file layout
    (its tensors are mapped, not read) no more than one layer is in memory at a time.

    Args:
        dtype: of the weights that stay; None keeps each tensor's own. The null prompt always stays as it is.

    Raises:
        CheckpointError: if a weight is no finite number; the file is then not written.
        Exception: what `progress` raises, in order to give up; the file is then not written.
    """
    layers = quantised_layers(checkpoint.architecture.layout, checkpoint.state)
    weights = {f"{name}.weight" for name in layers}
    kept = {key: value for key, value in checkpoint.state.items() if key not in weights}
    prompt = null_prompt_tensors(checkpoint.null_prompt)
    spaces = {key: Space(dtype or value.dtype, tuple(value.shape)) for key, value in kept.items()}
    spaces |= {key: Space.of(value) for key, value in prompt.items()}
    for key in weights:
        shape = tuple(checkpoint.state[key].shape)
        spaces |= {key: Space(torch.int8, shape), f"{key}_scale": Space(torch.float32, (shape[0], 1))}
    described = {"format_version": "1.0", "layers": dict.fromkeys(layers, _LAYER)}
    metadata = {"format": "pt"} if checkpoint.recipe is None else checkpoint.recipe.to_metadata()
    errors: dict[str, float] = {}
    lost = total = 0.0
    with streamed_file(path, spaces, metadata | {QUANTISATION_KEY: json.dumps(described)}) as file:
        for key, value in (kept | prompt).items():
            file.write(key, value.to(spaces[key].dtype))
        for number, name in enumerate(layers):
            weight = checkpoint.state[f"{name}.weight"]
            quantised, scale = quantise_rows(weight)
            difference, size = _squares(weight, quantised, scale)
            if not torch.isfinite(torch.tensor(size)):
                raise CheckpointError(
                    f"{checkpoint.source} has values in {name}.weight that are no finite numbers. It is damaged or "
                    f"its training diverged: use another checkpoint."
                )
            file.write(f"{name}.weight", quantised)
            file.write(f"{name}.weight_scale", scale)
            errors[name] = (difference / size) ** 0.5 if size else 0.0
            lost, total = lost + difference, total + size
            if progress is not None:
                progress(number + 1, len(layers))
    before = sum(Space.of(value).bytes for value in (checkpoint.state | prompt).values())
    after = sum(space.bytes for space in spaces.values())
    return Quantised(errors, (lost / total) ** 0.5 if total else 0.0, before, after)


def _squares(weight: Tensor, quantised: Tensor, scale: Tensor) -> tuple[float, float]:
    """Sums of squares of the rounding error and of the weight itself."""
    rows = max(1, _VALUES_AT_A_TIME // max(1, weight.shape[1]))
    difference = size = 0.0
    pieces = zip(weight.split(rows), quantised.split(rows), scale.split(rows), strict=True)
    for exact, rounded, row_scale in pieces:
        piece = exact.float()
        difference += float((piece - rounded * row_scale).square_().sum(dtype=torch.float64))
        size += float(piece.square().sum(dtype=torch.float64))
    return difference, size


def quantise_file(source: str | Path, path: str | Path, progress: Progress | None = None) -> Quantised:
    """Write the int8 twin of a checkpoint file, whatever spelling its names have; see `save_quantised`.

    Raises:
        CheckpointError: if the source cannot be read safely, is quantised already, a LoRA, or no complete transformer
            of a known family.
    """
    return save_quantised(path, load_checkpoint(source), progress=progress)
