"""Convert the branches of a LoRA between diffusers' split modules and the fused ones of the file layout.

A *branch* is the low-rank pair of one module (`branch.LowRank`). The layouts are described in `modules`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..branch import LowRank, split, stack
from ..errors import CheckpointError
from .dialects import dotted, pieces_of
from .lora_tensors import ParsedLora
from .modules import LayoutMap, Module, fill, listing, part_rows, swap_halves

_MLP_RATIO = 4


@dataclass(frozen=True)
class PlacedLora:
    """A LoRA's contents by the names of the file layout.

    Attributes:
        branches: low-rank pairs by module, with q, k and v fused as in the file layout.
        differences: full differences by tensor.
        origins: for each key of `branches` and `differences`, the module names in the LoRA's file that it comes from.
        unknown: modules of the LoRA's file that the family does not have.
        misfits: modules of the LoRA's file that do not fit the fused module, with the reason.
    """

    branches: dict[str, LowRank] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)


def known_modules(layout: LayoutMap, names: Iterable[str]) -> int:
    """Return how many of the module names the family has, in either layout and any dialect.

    Args:
        layout: the family's map.
        names: module names of a LoRA, without prefixes.
    """
    return sum(_diffusers_names(layout, name) is not None or file_name(layout, name) is not None for name in names)


def file_name(layout: LayoutMap, name: str) -> str | None:
    """Return a module's canonical name in the file layout; None if the map does not contain it.

    Args:
        layout: the family's map.
        name: the module's name without prefix: canonical, an alias, or with underscores instead of dots.
    """
    canonical = layout.canonical(f"{dotted(layout, name)}.weight").removesuffix(".weight")
    return canonical if layout.file_module(canonical) is not None else None


def _diffusers_names(layout: LayoutMap, name: str) -> tuple[str, ...] | None:
    """Return the diffusers modules of a name, several for a fused projection; None for other names."""
    name = dotted(layout, name)
    return (name,) if layout.diffusers_module(name) is not None else pieces_of(layout, name)


def to_file_layout(layout: LayoutMap, branches: Mapping[str, LowRank], hidden: int) -> dict[str, LowRank]:
    """Convert branches of either layout to branches of the file layout's modules. Split q, k, v are fused exactly.

    Args:
        layout: the family's map.
        branches: by module name of either layout, without prefix.
        hidden: hidden size of the network, which determines the rows of parts without a branch.

    Returns:
        The branches by canonical module name of the file layout.

    Raises:
        CheckpointError: if the family does not have some modules, or a branch does not fit. It lists them.
    """
    placed = place_lora(layout, ParsedLora(dict(branches), {}, (), True), hidden)
    if placed.unknown:
        raise CheckpointError(
            f"{len(placed.unknown)} of {len(branches)} LoRA modules do not exist in this family: "
            f"{listing(placed.unknown)}. The LoRA belongs to another model. Choose a LoRA for this model."
        )
    if placed.misfits:
        raise CheckpointError(next(iter(placed.misfits.values())))
    return placed.branches


def place_lora(layout: LayoutMap, lora: ParsedLora, hidden: int) -> PlacedLora:
    """Rename a LoRA's contents to the file layout, and collect the modules that are unknown or do not fit.

    Args:
        layout: the family's map.
        lora: the contents of the LoRA file.
        hidden: hidden size of the network, which determines the rows of parts without a branch.

    Raises:
        CheckpointError: if two modules of the LoRA are the same module of the family.
    """
    placed = PlacedLora()
    parts: dict[str, dict[int, tuple[str, LowRank]]] = {}
    modules: dict[str, Module] = {}
    for name, branch in lora.branches.items():
        if (whole := file_name(layout, name)) is not None:
            _put(placed, whole, branch, (name,))
            continue
        pieces = _diffusers_names(layout, name)
        if pieces is None:
            placed.unknown.append(name)
            continue
        if branch.up.shape[0] % len(pieces):
            placed.misfits[name] = f"{name} has {branch.up.shape[0]} rows for {len(pieces)} parts."
            continue
        rows = [branch.up.shape[0] // len(pieces)] * len(pieces)
        for piece, own in zip(pieces, split(branch, rows), strict=True):
            hit = layout.diffusers_module(piece)
            assert hit is not None
            module, number, block = hit
            target = fill(module.file, block)
            modules[target] = module
            if number in parts.setdefault(target, {}):
                raise _twice(parts[target][number][0], name)
            parts[target][number] = (name, own)
    for target, numbered in parts.items():
        names = tuple(dict.fromkeys(name for name, _ in numbered.values()))
        try:
            branch = _fused(modules[target], {number: branch for number, (_, branch) in numbered.items()}, hidden)
        except CheckpointError as error:
            placed.misfits.update(dict.fromkeys(names, str(error)))
        else:
            _put(placed, target, branch, names)
    _place_differences(layout, lora, placed, hidden)
    return placed


def _put(placed: PlacedLora, target: str, branch: LowRank, names: tuple[str, ...]) -> None:
    if target in placed.branches:
        raise _twice(placed.origins[target][0], names[0])
    placed.branches[target] = branch
    placed.origins[target] = names


def _twice(first: str, second: str) -> CheckpointError:
    return CheckpointError(
        f"The LoRA changes the same weights as {first} and as {second}. Expected every module once. Save the LoRA that "
        f"you need to a separate file."
    )


def _fused(module: Module, parts: dict[int, LowRank], hidden: int) -> LowRank:
    """Fuse the branches of the diffusers parts into the branch of the file module."""
    first = parts[min(parts)]
    if len(module.parts) == 1:
        return LowRank(first.down, swap_halves(first.up), first.alpha) if module.swap_halves else first
    rows = _rows(len(module.parts), hidden)
    if len(parts) == len(rows) and all(part.down is first.down for part in parts.values()):
        # The parts of one fused projection share `down`. Joining their `up` rows keeps the rank.
        up = torch.cat([parts[number].up for number in range(len(rows))])
        if up.shape[0] == sum(rows):
            return LowRank(first.down, up, first.alpha)
    return stack([parts.get(number) for number in range(len(module.parts))], rows)


def _place_differences(layout: LayoutMap, lora: ParsedLora, placed: PlacedLora, hidden: int) -> None:
    parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
    modules: dict[str, Module] = {}
    for (name, leaf), difference in lora.differences.items():
        whole, title = file_name(layout, name), f"{name} ({leaf})"
        pieces = () if whole is not None else _diffusers_names(layout, name) or ()
        key = f"{name if whole is None else whole}.{leaf}"
        if not pieces:
            if layout.knows(key):
                placed.differences[key], placed.origins[key] = difference, (title,)
            else:
                placed.unknown.append(title)
            continue
        for piece, rows in zip(pieces, difference.chunk(len(pieces)), strict=False):
            hit = layout.diffusers_module(piece)
            assert hit is not None
            module, number, block = hit
            key = f"{fill(module.file, block)}.{leaf}"
            modules[key] = module
            parts.setdefault(key, {})[number] = (title, swap_halves(rows) if module.swap_halves else rows)
    for key, numbered in parts.items():
        titles = tuple(dict.fromkeys(title for title, _ in numbered.values()))
        joined = _joined({number: rows for number, (_, rows) in numbered.items()}, len(modules[key].parts), hidden)
        if joined is None:
            placed.misfits.update(
                dict.fromkeys(titles, f"The parts of {key} do not have the rows of the fused module.")
            )
        else:
            placed.differences[key], placed.origins[key] = joined, titles


def _joined(parts: Mapping[int, Tensor], count: int, hidden: int) -> Tensor | None:
    """Join the differences of a fused module's parts, with zeros for missing parts; None if the rows do not fit."""
    if count == 1:
        return parts[0]
    rows = _rows(count, hidden)
    if any(len(part) != rows[number] for number, part in parts.items()):
        return None
    first = next(iter(parts.values()))
    return torch.cat([parts[n] if n in parts else first.new_zeros(rows[n], *first.shape[1:]) for n in range(count)])


def _rows(count: int, hidden: int) -> list[int]:
    """Return the rows of the parts of a fused module: q, k and v, and an MLP if there are four."""
    return ([hidden] * 3 + [_MLP_RATIO * hidden])[:count]


def to_diffusers_layout(layout: LayoutMap, branches: Mapping[str, LowRank], hidden: int) -> dict[str, LowRank]:
    """Convert branches of the file layout exactly to branches of diffusers' modules. The inverse of `to_file_layout`.

    Args:
        layout: the family's map.
        branches: by canonical module name of the file layout.
        hidden: hidden size of the network, which determines where fused rows are split.

    Returns:
        The branches by module name of diffusers' layout.

    Raises:
        CheckpointError: if the family does not have a module, or its rows cannot be split.
    """
    out = {}
    for name, branch in branches.items():
        hit = layout.file_module(name)
        if hit is None:
            raise CheckpointError(f"LoRA module {name} does not exist in this family. Choose a LoRA for this model.")
        module, block = hit
        if len(module.parts) == 1:
            up = swap_halves(branch.up) if module.swap_halves else branch.up
            out[fill(module.parts[0], block)] = LowRank(branch.down, up, branch.alpha)
            continue
        pieces = split(branch, part_rows(module, branch.up.shape[0], hidden))
        out.update({fill(part, block): piece for part, piece in zip(module.parts, pieces, strict=True)})
    return out


def lora_state(branches: Mapping[str, LowRank], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """Return a LoRA file's tensors: `<prefix><module>.lora_A.weight`, `.lora_B.weight` and `.alpha`.

    Alpha is always written, because readers assume different defaults.

    Args:
        branches: by module name, in the layout that the reader expects.
        prefix: ComfyUI's stock loader reads file-layout names with the prefix `diffusion_model.`. diffusers expects its
            own names with the prefix `transformer.`.
    """
    state = {}
    for name, branch in branches.items():
        state[f"{prefix}{name}.lora_A.weight"] = branch.down.contiguous()
        state[f"{prefix}{name}.lora_B.weight"] = branch.up.contiguous()
        state[f"{prefix}{name}.alpha"] = torch.tensor(branch.alpha)
    return state
