"""Extract a LoRA from two complete models: the low-rank part of what a training changed.

It makes one LoRA on the first teacher of a generator that was trained in several stages, and a LoRA of a training of
all weights. A *recipe* is the sampling settings and the origin of the weights.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from magicdistill_core.branch import LowRank, merge
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.layouts.modules import listing
from magicdistill_core.lora_file import save_lora
from magicdistill_core.quantise import quantised_layers
from magicdistill_core.recipe import Recipe
from magicdistill_core.writable import check_output_file

from ..distributed import available_device
from .velocity_error import velocity_error

# A LoRA that loses more of the change than this gets a warning.
CAUTION = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extracted:
    """The result of an extraction.

    Attributes:
        rank: largest rank of a matrix.
        errors: relative error `|D - L| / |D|` (Frobenius norms) of each changed matrix, by module name. D is the change
            of the weights, L the LoRA as stored.
        error: the same for all changed matrices together.
        left_out: changed tensors that a LoRA cannot store: norms, biases, embedders, the last layer.
        left_out_share: their share of the squared change of all tensors.
        velocity: the relative error of the change of the velocities (see `velocity_error`); None if not measured.
    """

    rank: int
    errors: dict[str, float]
    error: float
    left_out: list[str]
    left_out_share: float
    velocity: float | None

    def summary(self) -> str:
        """Return the number of matrices and the errors as one line of text."""
        worst = max(self.errors, key=self.errors.__getitem__)
        text = (
            f"{len(self.errors)} matrices of rank {self.rank} at most; the change of the weights is off by "
            f"{self.error:.2%} (at most {self.errors[worst]:.2%}, {worst})"
        )
        return text if self.velocity is None else f"{text}; the change of the velocities is off by {self.velocity:.2%}"


def extract_lora(
    tuned: Path,
    base: Path,
    out: Path,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    energy: float | None = None,
    dataset: Path | None = None,
) -> Extracted:
    """Write a LoRA that turns one model into another, by a truncated singular value decomposition of each matrix.

    Before it is rounded to `dtype`, no other LoRA of this rank is closer to the change of the matrices of the blocks.
    Recipe, null prompt and captions are those of the tuned model; the recipe also has the errors. The decompositions
    run on the GPU if there is one.

    Args:
        tuned: model file or diffusers folder of the trained model, with a recipe.
        base: model file or diffusers folder of the model on which the LoRA is used.
        out: the file to write.
        rank: largest rank of a matrix; None is no limit.
        dtype: data type of the stored matrices; None is that of the tuned weights.
        energy: share of the squared change of each matrix that its rank must keep, above 0 and up to 1; None keeps
            `rank` singular values of each.
        dataset: a prepared dataset, on whose samples the error of the velocities is measured; None does not measure it.

    Returns:
        The errors, and what is left out. Warnings say the latter, and that the errors are large.

    Raises:
        ConfigError: if neither a rank nor an energy is given, or the energy is no share.
        CheckpointError: if a file is unusable, the tuned model has no recipe, the two differ in their architecture or
            sizes, a weight is not a finite number, or no matrix of the blocks differs.
        OutputError: if `out` cannot be written.
    """
    if rank is None and energy is None:
        raise ConfigError("Neither a rank nor an energy is given. Give one of them, such as rank 64 or energy 0.99.")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"The energy is {energy:g}, expected a share above 0 and up to 1. Use 0.99, for example.")
    check_output_file(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"The LoRA's file name is {out.name}. Expected a name that ends in .safetensors.")
    after, before = load_checkpoint(tuned), load_checkpoint(base)
    recipe = _lora_recipe(after, before, base)
    matrices = {f"{name}.weight" for name in quantised_layers(after.architecture.layout, after.state)}
    branches: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    left_out: list[str] = []
    lost = changed = outside = 0.0
    for key, weight in after.state.items():
        change = weight.float() - before.state[key].float()
        size = _square(change)
        if not torch.isfinite(torch.tensor(size)):
            raise CheckpointError(
                f"{key} has values that are not finite numbers, in {after.source} or in {before.source}. One of the "
                f"files is damaged, or its training diverged. Use another file."
            )
        if size == 0:
            continue
        if key not in matrices:
            left_out.append(key)
            outside += size
            continue
        name = key.removesuffix(".weight")
        branches[name] = _truncated(change, rank, energy, dtype or weight.dtype)
        missed = _square(change - branches[name].delta(1.0))
        errors[name] = (missed / size) ** 0.5
        lost, changed = lost + missed, changed + size
    if not branches:
        raise CheckpointError(
            f"No matrix in the blocks of {after.source} differs from {before.source}, so there is nothing to extract. "
            f"Name the trained model first, and the model that it was trained from as the base."
        )
    error, velocity = (lost / changed) ** 0.5, None
    if dataset is not None:
        approximation = replace(before, state=merge(before.state, branches, 1.0), null_prompt=after.null_prompt)
        velocity = velocity_error(approximation, after, before, recipe, dataset)
    recipe = recipe.model_copy(update={"lora_error": round(error, 6), "lora_velocity_error": velocity})
    save_lora(out, branches, recipe, after.null_prompt, after.captions)
    share = outside / (outside + changed)
    largest = max(branch.rank for branch in branches.values())
    _caution(error if velocity is None else velocity, "weights" if velocity is None else "velocities", largest)
    if left_out:
        logger.warning(
            "%d changed tensors are not in the LoRA, because they are no matrices of the blocks: %s. They have %.2f %% "
            "of the squared change",
            len(left_out),
            listing(left_out, 3),
            100 * share,
        )
    return Extracted(largest, errors, error, left_out, share, velocity)


def _caution(error: float, what: str, rank: int) -> None:
    if error > CAUTION:
        logger.warning(
            "The LoRA loses %.0f %% of the change of the %s, so its videos may differ visibly from those of the "
            "trained model. Use a higher --rank (now %d) or --energy, and compare samples",
            100 * error,
            what,
            rank,
        )


def _lora_recipe(after: Checkpoint, before: Checkpoint, base: Path) -> Recipe:
    """Return the recipe of the LoRA.

    Raises:
        CheckpointError: if the two models do not fit together, or the tuned one has no recipe of a complete model.
    """
    shapes = [{key: tuple(value.shape) for key, value in model.state.items()} for model in (after, before)]
    if differing := sorted(key for key in {*shapes[0], *shapes[1]} if shapes[0].get(key) != shapes[1].get(key)):
        first = differing[0]
        raise CheckpointError(
            f"{after.source} and {before.source} are no versions of one model: {len(differing)} tensors differ in "
            f"their sizes, such as {first} ({shapes[0].get(first, 'missing')} and {shapes[1].get(first, 'missing')}). "
            f"Name the model that the training started from as the base."
        )
    recipe = after.recipe
    if recipe is None or recipe.kind not in ("teacher", "generator"):
        found = "no recipe" if recipe is None else f"a recipe of kind {recipe.kind}"
        raise CheckpointError(
            f"{after.source} has {found}, expected that of a teacher or generator. Use a model file that `magicdistill "
            f"export` wrote."
        )
    return recipe.model_copy(
        update={
            "kind": f"{recipe.kind}_lora",
            "base_hash": weights_sha256(base),
            "base_kind": "folder" if base.is_dir() else None,
        }
    )


def _truncated(change: Tensor, rank: int | None, energy: float | None, dtype: torch.dtype) -> LowRank:
    """Return the closest matrix of a rank, with the singular values shared equally between both factors."""
    left, values, right = torch.linalg.svd(change.to(available_device()), full_matrices=False)
    kept = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        squares = values.double().square().cumsum(0)
        # Rounding must not ask for more than all of them.
        kept = min(kept, int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) + 1)
    root = values[:kept].sqrt()
    down, up = root[:, None] * right[:kept], left[:, :kept] * root
    return LowRank(down.to("cpu", dtype).contiguous(), up.to("cpu", dtype).contiguous(), alpha=float(kept))


def _square(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))
