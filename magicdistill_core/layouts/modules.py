"""Maps between two naming schemes as frozen data, and the functions that convert weights with them.

The *file* layout has the names of single model files (Tencent's or Wan's, which ComfyUI reads). The *diffusers* layout
splits modules that the file layout fuses. The tensors of a module are `<module>.weight` and `<module>.bias`; their rows
are output features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError


@dataclass(frozen=True)
class Module:
    """One module of the file layout and its parts, the modules of the diffusers layout. `{i}` is a block number.

    Attributes:
        file: name in the file layout.
        parts: names in the diffusers layout. The rows of the file module are the rows of its parts, stacked in order.
        swap_halves: whether the two layouts have the two halves of the rows in opposite order (AdaLN: [shift, scale] in
            the file, [scale, shift] in diffusers).
        bias: whether the module has a bias; RMS norms have none.
    """

    file: str
    parts: tuple[str, ...]
    swap_halves: bool = False
    bias: bool = True


@dataclass(frozen=True)
class LayoutMap:
    """All modules of a transformer in both layouts.

    Attributes:
        modules: the modules.
        aliases: pairs (regular expression, replacement) that turn other accepted names of the file layout into the
            canonical ones. They are applied to the full key, in order.
        optional: file modules that some models of the family do not have.
        parameters: single tensors that are not the weight or bias of a module, such as `scale_shift_table`, as pairs
            (file key, diffusers key).
        ignored: suffixes of diffusers keys of old releases that no network reads.
        leaves: the last part of the tensor names of a module.
    """

    modules: tuple[Module, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ("weight", "bias")
    _by_file: dict[str, Module] = field(init=False, repr=False, compare=False)
    _by_part: dict[str, tuple[Module, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_file", {m.file: m for m in self.modules})
        object.__setattr__(self, "_by_part", {p: (m, n) for m in self.modules for n, p in enumerate(m.parts)})

    def canonical(self, key: str) -> str:
        """Return the canonical name in the file layout of a tensor name that may be an alias."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def file_module(self, name: str) -> tuple[Module, str] | None:
        """Return the map entry and the block number of a module of the file layout; None if unknown.

        Args:
            name: the module's canonical name, such as `double_blocks.3.img_mod.linear`.

        Returns:
            The entry, and the block number as text, such as "3"; "" for a module outside the blocks.
        """
        template, block = _template(name)
        module = self._by_file.get(template)
        return None if module is None else (module, block)

    def file_parameter(self, key: str) -> str | None:
        """Return the diffusers key for the file key of a single tensor (see `parameters`); None for other keys."""
        template, block = _template(key)
        return next((fill(other, block) for file, other in self.parameters if file == template), None)

    def diffusers_parameter(self, key: str) -> str | None:
        """Return the file key for the diffusers key of a single tensor (see `parameters`); None for other keys."""
        template, block = _template(key)
        return next((fill(file, block) for file, other in self.parameters if other == template), None)

    def knows(self, key: str) -> bool:
        """Return whether the map contains this canonical tensor name of the file layout, such as `img_in.proj.bias`."""
        name, _, leaf = key.rpartition(".")
        known = self.file_module(name) is not None and leaf in self.leaves
        return known or self.file_parameter(key) is not None

    def diffusers_module(self, name: str) -> tuple[Module, int, str] | None:
        """Return the map entry, the part number and the block number of a diffusers module; None if unknown.

        Args:
            name: the module's name, such as `transformer_blocks.3.attn.to_q`.

        Returns:
            The entry of the file module, the place of the module among its parts (from 0), and the block number as text
            ("" for a module outside the blocks).
        """
        template, block = _template(name)
        hit = self._by_part.get(template)
        return None if hit is None else (*hit, block)


_BLOCK = re.compile(r"(blocks)\.(\d+)\.")


def _template(name: str) -> tuple[str, str]:
    match = _BLOCK.search(name)
    return (name, "") if match is None else (_BLOCK.sub(r"\1.{i}.", name, count=1), match.group(2))


def fill(template: str, block: str) -> str:
    """Return a module template with its `{i}` replaced by a block number.

    Args:
        template: a module's name, with or without `{i}`.
        block: the block number as text; unused (such as "") for a template without `{i}`.
    """
    return template.replace("{i}", block)


def swap_halves(rows: Tensor) -> Tensor:
    """Exchange the two halves of a tensor's rows; return a new tensor. Applied twice, it restores the tensor."""
    first, second = rows.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def part_rows(module: Module, total: int, hidden: int) -> list[int]:
    """Return the number of rows of each part of a fused module: `hidden` for q, k and v, the rest for an MLP.

    Args:
        module: the fused module.
        total: number of rows of the fused module.
        hidden: the network's hidden size.

    Raises:
        CheckpointError: if the rows cannot be divided like this.
    """
    sizes = [hidden] * min(3, len(module.parts))
    if len(module.parts) > 3:
        sizes.append(total - 3 * hidden)
    if sum(sizes) != total or min(sizes) <= 0:
        raise CheckpointError(
            f"Module {module.file} has {total} rows, which do not divide into {len(module.parts)} parts at hidden "
            f"size {hidden}. The file is of another family, or it is damaged. Download it again or choose another file."
        )
    return sizes


def listing(keys: list[str], limit: int = 8) -> str:
    """Format names for an error message: the first ones in alphabetical order, and the number of the others.

    Args:
        keys: the names.
        limit: how many are shown.
    """
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(sorted(keys)[:limit]) + rest


def diffusers_to_file(layout: LayoutMap, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename full weights from diffusers names to file names and fuse q, k, v (and an MLP).

    Args:
        layout: the family's map.
        state: the weights by diffusers' names.

    Returns:
        The weights by canonical names of the file layout. Tensors are copied only where they are fused or
        their halves are swapped.

    Raises:
        CheckpointError: if the map does not know some keys, or parts of a fused module are missing. It lists them.
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
            f"Check that the weights belong to the family that the recipe states."
        )
    out = bare
    for (name, leaf), parts in groups.items():
        module, block = owners[name, leaf]
        missing = [fill(part, block) for n, part in enumerate(module.parts) if n not in parts]
        if missing:
            raise CheckpointError(
                f"{name}.{leaf} cannot be fused: missing {listing(missing)}. Use the complete weights of the model."
            )
        rows = torch.cat([parts[n] for n in range(len(module.parts))]) if len(parts) > 1 else parts[0]
        out[f"{name}.{leaf}"] = swap_halves(rows) if module.swap_halves else rows
    return out


def file_to_diffusers(layout: LayoutMap, state: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """Rename full weights from canonical file names to diffusers names and split fused modules into views.

    Args:
        layout: the family's map.
        state: the weights by canonical names of the file layout.
        hidden: the network's hidden size, which determines where fused rows are split.

    Returns:
        The weights by diffusers' names.

    Raises:
        CheckpointError: if the map does not know some keys. It lists them.
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
            f"Check that the file belongs to the family that the recipe states."
        )
    return out


def missing_keys(layout: LayoutMap, state: Mapping[str, Tensor]) -> list[str]:
    """Return the file-layout keys that are missing in `state`, compared with a complete model of as many blocks.

    Args:
        layout: the family's map.
        state: the weights by canonical names of the file layout.
    """
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
