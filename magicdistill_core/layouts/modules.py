"""A layout map between two naming schemes, as frozen data, and the functions that apply it to weights and to LoRAs.

The *file* layout is the one of single-file checkpoints (Tencent's, which ComfyUI reads); the *diffusers* layout splits
what the file fuses. A module's tensors are `<module>.weight` and `<module>.bias`, of which rows are output features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError


@dataclass(frozen=True)
class Module:
    """One module of the file layout and the diffusers module(s) it consists of; `{i}` stands for a block number.

    With several `parts` the file's rows are the parts' rows stacked in order. `swap_halves` says that the two halves
    of the rows stand in opposite order (AdaLN [shift, scale] against [scale, shift]). RMS norms have no bias.
    """

    file: str
    parts: tuple[str, ...]
    swap_halves: bool = False
    bias: bool = True


@dataclass(frozen=True)
class LayoutMap:
    """All modules of a family, and other spellings of the file layout that are read as if they were it."""

    modules: tuple[Module, ...]
    aliases: tuple[tuple[str, str], ...] = ()  # regular expression -> replacement, applied to whole keys in order
    optional: tuple[str, ...] = ()  # file modules that some checkpoints of the family do not have
    parameters: tuple[tuple[str, str], ...] = ()  # bare parameters, which have no module: file key, diffusers key
    ignored: tuple[str, ...] = ()  # ends of diffusers keys that old releases have and no network reads
    leaves: tuple[str, ...] = ("weight", "bias")
    _by_file: dict[str, Module] = field(init=False, repr=False, compare=False)
    _by_part: dict[str, tuple[Module, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_file", {m.file: m for m in self.modules})
        object.__setattr__(self, "_by_part", {p: (m, n) for m in self.modules for n, p in enumerate(m.parts)})

    def canonical(self, key: str) -> str:
        """`key` in the file layout, whichever of the known spellings it has."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def file_module(self, name: str) -> tuple[Module, str] | None:
        """The map entry of a file-layout module and its block number ("" if it has none)."""
        template, block = _template(name)
        module = self._by_file.get(template)
        return None if module is None else (module, block)

    def file_parameter(self, key: str) -> str | None:
        """The diffusers key of a bare parameter of the file layout."""
        template, block = _template(key)
        return next((fill(other, block) for file, other in self.parameters if file == template), None)

    def diffusers_parameter(self, key: str) -> str | None:
        """The file key of a bare parameter of the diffusers layout."""
        template, block = _template(key)
        return next((fill(file, block) for file, other in self.parameters if other == template), None)

    def knows(self, key: str) -> bool:
        """Whether a tensor of the file layout belongs to the family."""
        name, _, leaf = key.rpartition(".")
        known = self.file_module(name) is not None and leaf in self.leaves
        return known or self.file_parameter(key) is not None

    def diffusers_module(self, name: str) -> tuple[Module, int, str] | None:
        """The map entry that holds a diffusers module, which part of it that is, and the block number."""
        template, block = _template(name)
        hit = self._by_part.get(template)
        return None if hit is None else (*hit, block)


_BLOCK = re.compile(r"(blocks)\.(\d+)\.")


def _template(name: str) -> tuple[str, str]:
    match = _BLOCK.search(name)
    return (name, "") if match is None else (_BLOCK.sub(r"\1.{i}.", name, count=1), match.group(2))


def fill(template: str, block: str) -> str:
    """A module template with its block number put in."""
    return template.replace("{i}", block)


def swap_halves(rows: Tensor) -> Tensor:
    """The two halves of a tensor's rows exchanged (its own inverse)."""
    first, second = rows.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def part_rows(module: Module, total: int, hidden: int) -> list[int]:
    """How many of a fused module's rows belong to each part: `hidden` for q, k and v, the rest for an MLP.

    Raises:
        CheckpointError: if the rows cannot be divided so.
    """
    sizes = [hidden] * min(3, len(module.parts))
    if len(module.parts) > 3:
        sizes.append(total - 3 * hidden)
    if sum(sizes) != total or min(sizes) <= 0:
        raise CheckpointError(
            f"Module {module.file} has {total} rows, which do not divide into {len(module.parts)} parts at hidden "
            f"size {hidden}. The file is not of this family, or it is damaged."
        )
    return sizes


def listing(keys: list[str], limit: int = 8) -> str:
    """Keys as text for an error message, the first `limit` of them."""
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(sorted(keys)[:limit]) + rest


def diffusers_to_file(layout: LayoutMap, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full weights from diffusers names to file names; q, k, v (and an MLP) are fused.

    Raises:
        CheckpointError: listing the keys that the map does not know, or the parts that a fused module lacks.
    """
    groups: dict[tuple[str, str], dict[int, Tensor]] = {}
    owners: dict[tuple[str, str], tuple[Module, str]] = {}
    bare: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if key.endswith(layout.ignored) and layout.ignored:
            continue
        if (parameter := layout.diffusers_parameter(key)) is not None:
            bare[parameter] = tensor
            continue
        name, _, leaf = key.rpartition(".")
        hit = layout.diffusers_module(name)
        if hit is None or leaf not in layout.leaves:
            unknown.append(key)
            continue
        module, part, block = hit
        target = (fill(module.file, block), leaf)
        groups.setdefault(target, {})[part] = tensor
        owners[target] = (module, block)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have names that this family does not have: {listing(unknown)}. "
            f"Check that the weights are those of the family named in the recipe."
        )
    out = bare
    for (name, leaf), parts in groups.items():
        module, block = owners[name, leaf]
        lacking = [fill(part, block) for n, part in enumerate(module.parts) if n not in parts]
        if lacking:
            raise CheckpointError(f"{name}.{leaf} cannot be fused: missing {listing(lacking)}.")
        rows = torch.cat([parts[n] for n in range(len(module.parts))]) if len(parts) > 1 else parts[0]
        out[f"{name}.{leaf}"] = swap_halves(rows) if module.swap_halves else rows
    return out


def file_to_diffusers(layout: LayoutMap, state: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """Full weights from file names (canonical spelling) to diffusers names; fused modules are split into views.

    Args:
        hidden: the network's hidden size, which decides where fused rows are cut.

    Raises:
        CheckpointError: listing the keys that the map does not know.
    """
    out: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if (parameter := layout.file_parameter(key)) is not None:
            out[parameter] = tensor
            continue
        name, _, leaf = key.rpartition(".")
        hit = layout.file_module(name)
        if hit is None or leaf not in layout.leaves:
            unknown.append(key)
            continue
        module, block = hit
        rows = swap_halves(tensor) if module.swap_halves else tensor
        cuts = part_rows(module, rows.shape[0], hidden) if len(module.parts) > 1 else [rows.shape[0]]
        for part, piece in zip(module.parts, rows.split(cuts), strict=True):
            out[f"{fill(part, block)}.{leaf}"] = piece
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors have names that this family does not have: {listing(unknown)}. "
            f"Check that the file is a checkpoint of the family named in the recipe."
        )
    return out


def missing_keys(layout: LayoutMap, state: Mapping[str, Tensor]) -> list[str]:
    """File-layout keys that a complete checkpoint with as many blocks as `state` would have and `state` lacks."""
    blocks: dict[str, int] = {}
    for key in state:
        match = _BLOCK.search(key)
        if match:
            stem = key[: match.end(1)]
            blocks[stem] = max(blocks.get(stem, 0), int(match.group(2)) + 1)

    def numbers(template: str) -> list[str]:
        stem = template.partition(".{i}.")[0]
        return [str(i) for i in range(max(1, blocks.get(stem, 0)))] if "{i}" in template else [""]

    wanted = []
    for module in layout.modules:
        leaves = layout.leaves if module.bias else ("weight",)
        for number in numbers(module.file):
            keys = [f"{fill(module.file, number)}.{leaf}" for leaf in leaves]
            if module.file not in layout.optional or any(key in state for key in keys):
                wanted += keys
    wanted += [fill(file, number) for file, _ in layout.parameters for number in numbers(file)]
    return [key for key in wanted if key not in state]
