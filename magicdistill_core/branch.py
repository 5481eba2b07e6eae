"""The low-rank branch of a network and its weight (MagicDistillation, Eq. 5 and 6).

A branch zeta is a LoRA on a frozen network with the weights theta. With the branch weight a, the network computes with
`theta + a * zeta`. The trainer uses one branch for two roles: at weight 1 the network is the fake score, at weight 0.25
the real score. The LoRA node applies the exported branch at any weight. Both compute the factor with `branch_scale`, so
equal weights produce equal models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CheckpointError

A_STRONG = 1.0
A_WEAK = 0.25


def branch_scale(weight: float, alpha: float, rank: int) -> float:
    """Return the factor of `up @ down`: `weight * alpha / rank`.

    Args:
        weight: the branch weight a; 0 disables the branch.
        alpha: the LoRA's alpha; a LoRA without one uses its rank.
        rank: the LoRA's rank.
    """
    return weight * alpha / rank


@dataclass(frozen=True)
class LowRank:
    """The branch of one linear layer: `zeta = alpha / rank * up @ down`.

    Attributes:
        down: `[rank, in]`.
        up: `[out, rank]`.
        alpha: the LoRA's alpha.

    Raises:
        CheckpointError: if the shapes of `down` and `up` do not fit together.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.up.ndim != 2 or self.down.shape[0] != self.up.shape[1]:
            raise CheckpointError(
                f"A LoRA pair has shapes down {list(self.down.shape)} and up {list(self.up.shape)}, expected "
                f"[rank, in] and [out, rank] of a linear layer. The file is damaged or of another kind. Download it "
                f"again, or use another file."
            )

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        """The factor of `up @ down` at branch weight 1: `alpha / rank`."""
        return branch_scale(1.0, self.alpha, self.rank)

    def delta(self, weight: float) -> Tensor:
        """Return `weight * zeta`, the change of the layer's weight matrix: `[out, in]` in float32.

        Args:
            weight: the branch weight a; 0 returns zeros.
        """
        return branch_scale(weight, self.alpha, self.rank) * (self.up.float() @ self.down.float())


def merge(
    state: Mapping[str, Tensor], branches: Mapping[str, LowRank], weight: float, source: str = "the LoRA"
) -> dict[str, Tensor]:
    """Return a new state dict with `theta + weight * zeta`.

    Sums are computed in float32 and stored in the dtype of the base weight. Tensors without a branch are shared with
    `state`, not copied.

    Args:
        state: the base model's weights, theta.
        branches: the branches by module name; the weight of module `name` is `state["<name>.weight"]`.
        weight: the branch weight a; 0 returns weights equal to the base.
        source: the LoRA's name for error messages.

    Raises:
        CheckpointError: if `state` has no weight for a branch, or a weight of another shape.
    """
    out = dict(state)
    for name, branch in branches.items():
        key = f"{name}.weight"
        base = state.get(key)
        expected = (branch.up.shape[0], branch.down.shape[1])
        if base is None or tuple(base.shape) != expected:
            found = "has no such module" if base is None else f"has shape {list(base.shape)} there"
            raise CheckpointError(
                f"{source} changes {name} with shape {list(expected)}, but the base model {found}. The LoRA belongs to "
                f"another model. Use the base that its recipe names."
            )
        out[key] = (base.float() + branch.delta(weight).to(base.device)).to(base.dtype)
    return out


def stack(parts: list[LowRank | None], rows: list[int]) -> LowRank:
    """Build the branch of a fused module from the branches of its parts, without approximation.

    The `down` matrices are stacked; the `up` matrices form a block diagonal.

    Args:
        parts: one branch per part in row order; None for a part without a branch. At least one is not None.
        rows: number of rows of each part.

    Returns:
        A branch whose rank is the sum of the parts' ranks. Its `alpha / rank` is the first nonzero one of the parts.
        Where another part has a different `alpha / rank`, the ratio of the two is multiplied into `up`.

    Raises:
        CheckpointError: if a branch and its part differ in the number of rows.
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
                    f"A part of the LoRA has {part.up.shape[0]} rows, expected {height} as in the fused module. The "
                    f"LoRA belongs to a model of another width. Use the base that its recipe names."
                )
            ratio = part.factor / factor if factor else 1.0
            up[row : row + height, column : column + part.rank] = part.up if ratio == 1 else part.up * ratio
            column += part.rank
        row += height
    return LowRank(torch.cat([part.down for part in given]), up, alpha=factor * rank)


def split(branch: LowRank, rows: list[int]) -> list[LowRank]:
    """Split the branch of a fused module into one branch per part, without approximation.

    Each part gets its rows of `up`. All parts share `down` and alpha.

    Args:
        branch: the branch of the fused module.
        rows: number of rows of each part, in order; their sum is the number of rows of `branch.up`.

    Returns:
        One branch per part, in the order of `rows`; `up` of each is a view.
    """
    return [LowRank(branch.down, up, branch.alpha) for up in branch.up.split(rows)]
