"""LoRA files: the dialects that name a branch, and its way between diffusers' split and the file's fused modules."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..branch import LowRank, split, stack
from ..errors import CheckpointError
from .modules import LayoutMap, Module, fill, listing, part_rows, swap_halves

_PREFIX = re.compile(r"^(base_model\.model\.|diffusion_model\.|transformer\.)+")
_SUFFIXES = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}
_MLP_RATIO = 4


def lora_part(key: str) -> tuple[str, str, str] | None:
    """What a LoRA tensor's name says: prefix, module, and part (`down`, `up` or `alpha`); None for other names."""
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            name = key.removesuffix(suffix)
            prefix = match.group() if (match := _PREFIX.match(name)) else ""
            return prefix, name.removeprefix(prefix), part
    return None


def parse_lora(state: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The branches in a LoRA file by bare module name, whatever prefix and suffixes its dialect uses.

    The alpha of a module without an `.alpha` tensor is its rank (scale 1).

    Raises:
        CheckpointError: listing keys that are no part of a LoRA, or modules of which a half is missing.
    """
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        match lora_part(key):
            case (_, module, part):
                found.setdefault(module, {})[part] = tensor
            case None:
                unknown.append(key)
    if unknown or not found:
        raise CheckpointError(
            f"This is not a LoRA file that can be read: {len(unknown)} of {len(state)} tensors are no LoRA parts "
            f"({listing(unknown) or 'the file is empty'}). Expected pairs named lora_A/lora_B or lora_down/lora_up."
        )
    halves = [name for name, parts in found.items() if "down" not in parts or "up" not in parts]
    if halves:
        raise CheckpointError(f"The LoRA file has only one half of the pair for: {listing(halves)}. It is damaged.")
    branches = {}
    for name, parts in found.items():
        rank = parts["down"].shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
        branches[name] = LowRank(parts["down"], parts["up"], alpha)
    return branches


def known_modules(layout: LayoutMap, names: Iterable[str]) -> int:
    """How many of these module names the family has, in either layout."""
    return sum(file_name(layout, name) is not None or layout.diffusers_module(name) is not None for name in names)


def file_name(layout: LayoutMap, name: str) -> str | None:
    """A module's name in the file layout if it is one of its spellings; None for other names."""
    canonical = layout.canonical(f"{name}.weight").removesuffix(".weight")
    return canonical if layout.file_module(canonical) is not None else None


def to_file_layout(layout: LayoutMap, branches: Mapping[str, LowRank], hidden: int) -> dict[str, LowRank]:
    """Branches named in either layout to branches of the file layout's modules; split q, k, v are fused exactly.

    Args:
        hidden: hidden size of the network, which gives the rows of parts that have no branch.

    Raises:
        CheckpointError: listing modules that the family does not have.
    """
    out: dict[str, LowRank] = {}
    groups: dict[str, tuple[Module, dict[int, LowRank]]] = {}
    unknown = []
    for name, branch in branches.items():
        if (canonical := file_name(layout, name)) is not None:
            out[canonical] = branch
        elif (hit := layout.diffusers_module(name)) is not None:
            module, part, block = hit
            groups.setdefault(fill(module.file, block), (module, {}))[1][part] = branch
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(branches)} LoRA modules do not exist in this family: {listing(unknown)}. "
            f"The LoRA belongs to another model."
        )
    for name, (module, parts) in groups.items():
        if len(module.parts) == 1:
            branch = parts[0]
            out[name] = LowRank(branch.down, swap_halves(branch.up), branch.alpha) if module.swap_halves else branch
        else:
            rows = ([hidden] * 3 + [_MLP_RATIO * hidden])[: len(module.parts)]
            out[name] = stack([parts.get(n) for n in range(len(module.parts))], rows)
    return out


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
