"""LoRA files: their branches, and the way of these between diffusers' split and the file's fused modules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..branch import LowRank, split, stack
from ..errors import CheckpointError
from .dialects import dotted, lora_part, other_kind, pieces_of, stated_alpha
from .modules import LayoutMap, Module, fill, listing, part_rows, swap_halves

_MLP_RATIO = 4


@dataclass(frozen=True)
class ParsedLora:
    """What a LoRA file holds, by the module names of the file without their prefixes.

    Attributes:
        branches: the pairs.
        differences: (module, leaf) -> a whole difference, of a `weight`, a `bias` or a `modulation`.
        unknown: names of tensors that are no part of a LoRA.
        alpha_stated: whether the file says an alpha for every pair; where it does not, alpha is the rank.
    """

    branches: dict[str, LowRank]
    differences: dict[tuple[str, str], Tensor]
    unknown: tuple[str, ...]
    alpha_stated: bool


@dataclass(frozen=True)
class PlacedLora:
    """A LoRA's contents by the names of the file layout.

    Attributes:
        branches: by module, q, k and v fused as the file layout has them.
        differences: by tensor.
        origins: for each key of `branches` and `differences`, what the LoRA's file calls the modules behind it.
        unknown: modules of the LoRA's file that the family does not have.
        misfits: modules of the LoRA's file that do not fit the fused module, and why.
    """

    branches: dict[str, LowRank] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)


def read_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "This file"
) -> ParsedLora:
    """What a LoRA file holds, whatever its dialect.

    The alpha of a pair is its `.alpha` tensor, or what diffusers' metadata says, or its rank (scale 1).

    Raises:
        CheckpointError: if there is no pair, only a half of one, or two of one module, or the adapter is of another
            kind than LoRA.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    differences: dict[tuple[str, str], Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if (kind := other_kind(key)) is not None:
            raise CheckpointError(
                f"{source} is a {kind} adapter ({key}), and this reader knows pairs of low rank only (LoRA). Load it "
                f"with ComfyUI's Load LoRA, or use a LoRA of the same training."
            )
        match lora_part(key):
            case None:
                unknown.append(key)
            case (_, module, "down" | "up" | "alpha" as part):
                if part in pairs.setdefault(module, {}):
                    raise CheckpointError(
                        f"{source} changes {module} twice (as {key} and under another prefix or adapter name). Save "
                        f"the LoRA that is meant to a file of its own."
                    )
                pairs[module][part] = tensor
            case (_, module, leaf):
                differences[module, leaf] = tensor
    if not pairs or not any("down" in parts or "up" in parts for parts in pairs.values()):
        beside = listing(unknown) if unknown else "nothing beside them" if state else "the file is empty"
        raise CheckpointError(
            f"{source} is not a LoRA file that can be read: {len(unknown)} of {len(state)} tensors are no LoRA parts "
            f"({beside}). Expected pairs named lora_A/lora_B or lora_down/lora_up: choose another file, and load whole "
            f"models with a model loader."
        )
    halves = [name for name, parts in pairs.items() if "down" not in parts or "up" not in parts]
    if halves:
        raise CheckpointError(
            f"{source} has only one half of the pair for: {listing(halves)}. It is damaged: download it again."
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


def _check_numbers(parts: Mapping[str, Tensor], name: str, source: str) -> None:
    """Refuse a pair that would give no weights: of another shape, or of anything but finite numbers."""
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
        wrong = "values that are no finite numbers (NaN or infinite)"
    if wrong is not None:
        raise CheckpointError(
            f"{source} is damaged or of another kind: its pair for {name} has {wrong}. Download it again, or use a "
            f"checkpoint of its training from before it broke."
        )


def _matrices(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """A pair of a convolution as that of the linear layer it is on its patches: `up` has a kernel of one."""
    if down.ndim == up.ndim > 2 and down.shape[0] == up.shape[1] and up[0, 0].numel() == 1:
        return down.flatten(1), up.flatten(1)
    return down, up


def parse_lora(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, source: str = "This file"
) -> dict[str, LowRank]:
    """The branches of a file that holds pairs and nothing else, by bare module name.

    Raises:
        CheckpointError: as `read_lora`; or if there is anything beside the pairs.
    """
    parsed = read_lora(state, metadata, source)
    beside = [*parsed.unknown, *(f"{module}: a difference of its {leaf}" for module, leaf in parsed.differences)]
    if beside:
        raise CheckpointError(
            f"{source} is not a LoRA of pairs alone: {len(beside)} of {len(state)} tensors are no LoRA parts "
            f"({listing(beside)}). Expected pairs named lora_A/lora_B or lora_down/lora_up."
        )
    return parsed.branches


def known_modules(layout: LayoutMap, names: Iterable[str]) -> int:
    """How many of these module names the family has, in either layout and any dialect."""
    return sum(_diffusers_names(layout, name) is not None or file_name(layout, name) is not None for name in names)


def file_name(layout: LayoutMap, name: str) -> str | None:
    """A module's name in the file layout if it is one of its spellings; None for other names."""
    canonical = layout.canonical(f"{dotted(layout, name)}.weight").removesuffix(".weight")
    return canonical if layout.file_module(canonical) is not None else None


def _diffusers_names(layout: LayoutMap, name: str) -> tuple[str, ...] | None:
    """The diffusers modules that a name stands for, several if it is a fused projection; None for other names."""
    name = dotted(layout, name)
    return (name,) if layout.diffusers_module(name) is not None else pieces_of(layout, name)


def to_file_layout(layout: LayoutMap, branches: Mapping[str, LowRank], hidden: int) -> dict[str, LowRank]:
    """Branches named in either layout to branches of the file layout's modules; split q, k, v are fused exactly.

    Args:
        hidden: hidden size of the network, which gives the rows of parts that have no branch.

    Raises:
        CheckpointError: listing modules that the family does not have, or saying what does not fit.
    """
    placed = place_lora(layout, ParsedLora(dict(branches), {}, (), True), hidden)
    if placed.unknown:
        raise CheckpointError(
            f"{len(placed.unknown)} of {len(branches)} LoRA modules do not exist in this family: "
            f"{listing(placed.unknown)}. The LoRA belongs to another model."
        )
    if placed.misfits:
        raise CheckpointError(next(iter(placed.misfits.values())))
    return placed.branches


def place_lora(layout: LayoutMap, lora: ParsedLora, hidden: int) -> PlacedLora:
    """A LoRA's contents in the names of the file layout, with what has no place there.

    Args:
        hidden: as for `to_file_layout`.

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
    for target, given in parts.items():
        names = tuple(dict.fromkeys(name for name, _ in given.values()))
        try:
            branch = _fused(modules[target], {number: branch for number, (_, branch) in given.items()}, hidden)
        except CheckpointError as error:
            placed.misfits.update(dict.fromkeys(names, str(error)))
        else:
            _put(placed, target, branch, names)
    _place_differences(layout, lora, placed)
    return placed


def _put(placed: PlacedLora, target: str, branch: LowRank, names: tuple[str, ...]) -> None:
    if target in placed.branches:
        raise _twice(placed.origins[target][0], names[0])
    placed.branches[target] = branch
    placed.origins[target] = names


def _twice(first: str, second: str) -> CheckpointError:
    return CheckpointError(
        f"The LoRA changes the same weights as {first} and as {second}. Expected every module once: save the LoRA that "
        f"is meant to a file of its own."
    )


def _fused(module: Module, parts: dict[int, LowRank], hidden: int) -> LowRank:
    """The branch of a file module from those of its diffusers parts."""
    first = parts[min(parts)]
    if len(module.parts) == 1:
        return LowRank(first.down, swap_halves(first.up), first.alpha) if module.swap_halves else first
    rows = ([hidden] * 3 + [_MLP_RATIO * hidden])[: len(module.parts)]
    if len(parts) == len(rows) and all(part.down is first.down for part in parts.values()):
        # Parts of one fused projection share their down half: put together again at the same rank.
        up = torch.cat([parts[number].up for number in range(len(rows))])
        if up.shape[0] == sum(rows):
            return LowRank(first.down, up, first.alpha)
    return stack([parts.get(number) for number in range(len(module.parts))], rows)


def _place_differences(layout: LayoutMap, lora: ParsedLora, placed: PlacedLora) -> None:
    for (name, leaf), difference in lora.differences.items():
        module, tensor = file_name(layout, name), difference
        hit = layout.diffusers_module(dotted(layout, name)) if module is None else None
        if hit is not None and len(hit[0].parts) == 1:
            module = fill(hit[0].file, hit[2])
            tensor = swap_halves(tensor) if hit[0].swap_halves else tensor
        key = f"{name if module is None else module}.{leaf}"
        if not layout.knows(key):
            placed.unknown.append(f"{name} ({leaf})")
        else:
            placed.differences[key] = tensor
            placed.origins[key] = (f"{name} ({leaf})",)


def to_diffusers_layout(layout: LayoutMap, branches: Mapping[str, LowRank], hidden: int) -> dict[str, LowRank]:
    """Branches of file-layout modules (as `to_file_layout` gives them) to branches of diffusers modules, exactly."""
    out = {}
    for name, branch in branches.items():
        hit = layout.file_module(name)
        if hit is None:
            raise CheckpointError(f"LoRA module {name} does not exist in this family.")
        module, block = hit
        if len(module.parts) == 1:
            up = swap_halves(branch.up) if module.swap_halves else branch.up
            out[fill(module.parts[0], block)] = LowRank(branch.down, up, branch.alpha)
            continue
        pieces = split(branch, part_rows(module, branch.up.shape[0], hidden))
        out.update({fill(part, block): piece for part, piece in zip(module.parts, pieces, strict=True)})
    return out


def lora_state(branches: Mapping[str, LowRank], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """A LoRA file's tensors: `<prefix><module>.lora_A.weight`, `.lora_B.weight` and `.alpha`.

    ComfyUI's stock loader reads file-layout names under `diffusion_model.`; diffusers wants its own under
    `transformer.`. Alpha is always written, so that no reader has to assume one.
    """
    state = {}
    for name, branch in branches.items():
        state[f"{prefix}{name}.lora_A.weight"] = branch.down.contiguous()
        state[f"{prefix}{name}.lora_B.weight"] = branch.up.contiguous()
        state[f"{prefix}{name}.alpha"] = torch.tensor(branch.alpha)
    return state
