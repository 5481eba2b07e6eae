"""Read the tensors of a LoRA file in any dialect: low-rank pairs and full differences, by the file's module names.

A *branch* is the low-rank pair of one module (`branch.LowRank`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..branch import LowRank
from ..errors import CheckpointError
from .dialects import lora_part, other_kind, stated_alpha
from .modules import listing


@dataclass(frozen=True)
class ParsedLora:
    """The contents of a LoRA file, by the file's module names without prefixes.

    Attributes:
        branches: the low-rank pairs.
        differences: full differences of a `weight`, a `bias` or a `modulation`, by (module, leaf).
        unknown: names of tensors that do not belong to a LoRA.
        alpha_stated: whether the file states an alpha for every pair. Without it, alpha is the rank.
    """

    branches: dict[str, LowRank]
    differences: dict[tuple[str, str], Tensor]
    unknown: tuple[str, ...]
    alpha_stated: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that the file changes, each once."""
        return tuple(dict.fromkeys([*self.branches, *(module for module, _ in self.differences)]))


def read_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "This file"
) -> ParsedLora:
    """Read the contents of a LoRA file in any known dialect.

    The alpha of a pair is its `.alpha` tensor; else the alpha in diffusers' metadata; else its rank (scale 1).

    Args:
        state: the file's tensors by name.
        metadata: the file's text entries; None for a file without metadata.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if there are neither pairs nor full differences, half of a pair is missing, a module has two
            pairs, numbers are not finite, or the adapter is not a LoRA.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    differences: dict[tuple[str, str], Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if (kind := other_kind(key)) is not None:
            raise CheckpointError(
                f"{source} is a {kind} adapter ({key}), and this reader knows only low-rank pairs (LoRA) and full "
                f"differences. Load it with ComfyUI's Load LoRA, or use a LoRA of the same training."
            )
        match lora_part(key):
            case None:
                unknown.append(key)
            case (_, module, "down" | "up" | "alpha" as part):
                if part in pairs.setdefault(module, {}):
                    raise CheckpointError(
                        f"{source} changes {module} twice (as {key} and under another prefix or adapter name). Save "
                        f"the LoRA that you need to a separate file."
                    )
                pairs[module][part] = tensor
            case (_, module, leaf):
                differences[module, leaf] = tensor
    if not differences and not any("down" in parts or "up" in parts for parts in pairs.values()):
        found = listing(unknown) if unknown else "only alphas" if pairs else "no tensors"
        raise CheckpointError(
            f"{source} is not a LoRA file that can be read: found {found}, expected pairs named lora_A/lora_B or "
            f"lora_down/lora_up, or full differences named diff. Choose another file. Load full models with a model "
            f"loader."
        )
    for (module, leaf), difference in differences.items():
        if leaf == "weight" and {"down", "up"} & pairs.get(module, {}).keys():
            raise CheckpointError(
                f"{source} changes {module} twice (by a pair and by a full difference). Save the one that you need to "
                f"a separate file."
            )
        _check_difference(difference, f"{module} ({leaf})", source)
    halves = [name for name, parts in pairs.items() if "down" not in parts or "up" not in parts]
    if halves:
        raise CheckpointError(
            f"{source} has only one half of the pair for: {listing(halves)}. The file is damaged. Download it again."
        )
    alpha_of = stated_alpha(metadata, source)
    branches, stated = {}, True
    for name, parts in pairs.items():
        down, up = _matrices(parts["down"], parts["up"])
        _check_numbers(parts, name, source)
        rank = down.shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else alpha_of(name, rank)
        stated = stated and alpha is not None
        branches[name] = LowRank(down, up, float(rank) if alpha is None else alpha)
    return ParsedLora(branches, differences, tuple(unknown), stated)


def _check_difference(difference: Tensor, name: str, source: str) -> None:
    """Raise CheckpointError if a full difference contains values that cannot be added to a weight."""
    if not difference.is_floating_point() or not torch.isfinite(difference.float()).all():
        raise CheckpointError(
            f"{source} is damaged or of another kind: its difference for {name} has values that are not finite "
            f"floating point numbers. Download it again, or use an earlier checkpoint of its training."
        )


def _check_numbers(parts: Mapping[str, Tensor], name: str, source: str) -> None:
    """Raise CheckpointError if a pair has a wrong shape or dtype, or contains values that are not finite."""
    down, up = _matrices(parts["down"], parts["up"])
    shapes = f"down {list(down.shape)}, up {list(up.shape)}"
    wrong = None
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        wrong = f"{shapes}, expected [rank, in] and [out, rank] of a linear layer"
    elif "alpha" in parts and parts["alpha"].numel() != 1:
        wrong = f"an alpha of shape {list(parts['alpha'].shape)}, expected one number"
    elif not (down.is_floating_point() and up.is_floating_point()):
        wrong = f"{down.dtype} and {up.dtype}, expected floating point numbers"
    elif not all(torch.isfinite(part.float()).all() for part in parts.values()):
        wrong = "values that are not finite (NaN or infinity)"
    if wrong is not None:
        raise CheckpointError(
            f"{source} is damaged or of another kind: its pair for {name} has {wrong}. Download it again, or use an "
            f"earlier checkpoint of its training."
        )


def _matrices(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return a pair as matrices. A convolution whose `up` has kernel size 1 equals a linear layer on its patches."""
    if down.ndim == up.ndim > 2 and down.shape[0] == up.shape[1] and up[0, 0].numel() == 1:
        return down.flatten(1), up.flatten(1)
    return down, up


def parse_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "This file"
) -> dict[str, LowRank]:
    """Return the branches of a file that contains only pairs, by module name without prefix.

    Args:
        state: see `read_lora`.
        metadata: see `read_lora`.
        source: see `read_lora`.

    Raises:
        CheckpointError: as `read_lora`; also if the file contains other tensors.
    """
    parsed = read_lora(state, metadata, source)
    others = [*parsed.unknown, *(f"{module}: full difference of its {leaf}" for module, leaf in parsed.differences)]
    if others:
        raise CheckpointError(
            f"{source} contains more than low-rank pairs: {len(others)} of {len(state)} tensors belong to no pair "
            f"({listing(others)}). Expected only pairs named lora_A/lora_B or lora_down/lora_up. Choose such a file."
        )
    return parsed.branches
