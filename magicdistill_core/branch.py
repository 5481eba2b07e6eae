"""The low-rank branch zeta and its weight a: v_a = theta + a * zeta (MagicDistillation, Eq. 5 and 6).

The trainer runs one branch at weight 1 as the fake score and at weight 0.25 as the real score; the LoRA node applies
the same file at any weight. Both take their factor from `branch_scale`, so equal weights mean equal models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CheckpointError

A_STRONG = 1.0
A_WEAK = 0.25


def branch_scale(weight: float, alpha: float, rank: int) -> float:
    """The factor before `up @ down`: `weight * alpha / rank`."""
    return weight * alpha / rank


@dataclass(frozen=True)
class LowRank:
    """One module's branch: `zeta = alpha / rank * up @ down`, with `down` `[rank, in]` and `up` `[out, rank]`."""

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.up.ndim != 2 or self.down.shape[0] != self.up.shape[1]:
            raise CheckpointError(
                f"A LoRA pair has shapes down {list(self.down.shape)} and up {list(self.up.shape)}, expected "
                f"[rank, in] and [out, rank] of a linear layer. The file is damaged or of another kind: download it "
                f"again, or use another."
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        """`alpha / rank`: the scale at weight 1."""
        return branch_scale(1.0, self.alpha, self.rank)

    def delta(self, weight: float) -> Tensor:
        """The change of the module's weight matrix at branch weight `weight`, `[out, in]` in float32."""
        return branch_scale(weight, self.alpha, self.rank) * (self.up.float() @ self.down.float())


def merge(
    state: Mapping[str, Tensor], branches: Mapping[str, LowRank], weight: float, source: str = "the LoRA"
) -> dict[str, Tensor]:
    """A new state dict with `theta + weight * zeta`, summed in float32 and kept in each tensor's dtype.

    Raises:
        CheckpointError: if a branch has no module in `state`, or another shape than it.
    """
    out = dict(state)
    for name, branch in branches.items():
        key = f"{name}.weight"
        base = state.get(key)
        expected = (branch.up.shape[0], branch.down.shape[1])
        if base is None or tuple(base.shape) != expected:
            found = "is absent from the base" if base is None else f"has shape {list(base.shape)} in the base"
            raise CheckpointError(
                f"{source} changes {name} with shape {list(expected)}, which {found}. It belongs to another model: "
                f"use the base that its recipe names."
            )
        out[key] = (base.float() + branch.delta(weight).to(base.device)).to(base.dtype)
    return out


def stack(parts: list[LowRank | None], rows: list[int]) -> LowRank:
    """The branch of a fused module from the branches of its parts, exactly: downs stacked, ups block-diagonal.

    Args:
        parts: one branch a part in row order; None where a part has none. At least one is given.
        rows: rows of each part.

    Returns:
        A branch whose rank is the sum of the parts' ranks; its alpha keeps a common `alpha / rank`. Where the parts
        differ in that, the ratio to the first that is not 0 is folded into `up`.
    """
    given = [part for part in parts if part is not None]
    factor = next((part.factor for part in given if part.factor), 0.0)
    rank = sum(part.rank for part in given)
    up = given[0].up.new_zeros(sum(rows), rank)
    row = column = 0
    for part, height in zip(parts, rows, strict=True):
        if part is not None:
            if part.up.shape[0] != height:
                raise CheckpointError(
                    f"A LoRA part has {part.up.shape[0]} rows where the fused module has {height}. It belongs to a "
                    f"model of another width."
                )
            ratio = part.factor / factor if factor else 1.0
            up[row : row + height, column : column + part.rank] = part.up if ratio == 1 else part.up * ratio
            column += part.rank
        row += height
    return LowRank(torch.cat([part.down for part in given]), up, alpha=factor * rank)


def split(branch: LowRank, rows: list[int]) -> list[LowRank]:
    """The branches of a fused module's parts: all share `down`, `up` is cut by rows. Exact at the same rank."""
    return [LowRank(branch.down, up, branch.alpha) for up in branch.up.split(rows)]
