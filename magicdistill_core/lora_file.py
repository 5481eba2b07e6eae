"""LoRA files of any known dialect, with the Recipe and the null prompt that ours carry."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .branch import LowRank
from .errors import CheckpointError
from .families import all_architectures, architecture_knowing
from .families.base import Architecture, NullPrompt
from .layouts.lora import known_modules, lora_state, parse_lora, place_lora, read_lora, to_file_layout
from .layouts.modules import listing
from .null_prompt import null_prompt_tensors, pop_null_prompt
from .recipe import Recipe
from .safetensors_file import read_header, read_tensors, write_safetensors
from .wrappers import is_pickle_name, read_pickle


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in the names of the file layout.

    Attributes:
        branches: by module.
        recipe: what the file says of itself, or None.
        source: the file's name.
        differences: whole differences of single tensors, by key; only some files of Wan have them.
        origins: for each key of `branches` and `differences`, the modules of the file that it was made from.
        misses: modules and tensors of the file that have no place in the family.
        alpha_stated: False where alpha had to be taken as the rank.
        null_prompt: the text conditioning that it was trained with, for a base whose file carries none; or None.
    """

    branches: dict[str, LowRank]
    recipe: Recipe | None
    source: str
    differences: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    misses: tuple[str, ...] = ()
    alpha_stated: bool = True
    null_prompt: NullPrompt | None = None


def is_lora(path: str | Path) -> bool:
    """Whether a safetensors file holds low-rank pairs, by its tensors' names; pickles and folders hold none.

    Raises:
        CheckpointError: as `read_metadata`.
    """
    path = Path(path)
    if path.is_dir() or (is_pickle_name(path) and path.is_file()):
        return False
    return any(".lora_" in key for key in read_header(path))


def load_lora(path: str | Path, hidden: int) -> LoraFile:
    """Read a LoRA of any known dialect, its branches brought to the file layout's (fused) modules.

    Args:
        hidden: hidden size of the network it is meant for.

    Raises:
        CheckpointError: if it is no LoRA, damaged, holds more than pairs, has modules that the family does not have, or
            names none that any family has.
    """
    tensors, metadata = _lora_tensors(Path(path))
    recipe = Recipe.from_metadata(metadata, Path(path).name)
    prompt = pop_null_prompt(tensors)
    parsed = parse_lora(tensors, metadata, Path(path).name)
    architecture = architecture_knowing(parsed.keys())
    _check_names(architecture, parsed, Path(path).name)
    branches = to_file_layout(architecture.layout, parsed, hidden)
    return LoraFile(branches, recipe, Path(path).name, null_prompt=prompt)


def load_lora_for(architecture: Architecture, path: str | Path, hidden: int) -> LoraFile:
    """Read what a LoRA of any known dialect has for a transformer; what it has beside that is named in `misses`.

    Args:
        hidden: hidden size of the network it is meant for.

    Raises:
        CheckpointError: if it is no LoRA, damaged, or has nothing for the transformer.
    """
    source = Path(path).name
    tensors, metadata = _lora_tensors(Path(path))
    recipe = Recipe.from_metadata(metadata, source)
    prompt = pop_null_prompt(tensors)
    parsed = read_lora(tensors, metadata, source)
    placed = place_lora(architecture.layout, parsed, hidden)
    if not placed.branches:
        names = [*placed.unknown, *placed.misfits]
        whose = architecture_knowing(parsed.branches)
        _check_names(whose, parsed.branches, source)
        raise CheckpointError(
            f"{source} matches 0/{len(parsed.branches)} modules of this {architecture.title} model of width {hidden}: "
            f"found {listing(names, 3)}. "
            + (f"It is a LoRA for {whose.title}: " if whose is not architecture else "It belongs to another model: ")
            + "load the base that it was trained on."
        )
    misses = (*placed.unknown, *placed.misfits, *parsed.unknown)
    return LoraFile(
        placed.branches, recipe, source, placed.differences, placed.origins, misses, parsed.alpha_stated, prompt
    )


def _check_names(architecture: Architecture, modules: Collection[str], source: str) -> None:
    """Refuse a LoRA whose names say nothing even to the transformer that knows most of them.

    Raises:
        CheckpointError: if it knows none.
    """
    if not known_modules(architecture.layout, modules):
        titles = " or ".join(sorted(other.title for other in all_architectures()))
        raise CheckpointError(
            f"{source} matches 0/{len(modules)} modules, for its names are not understood: found "
            f"{listing(list(modules), 3)}, expected modules of {titles} as ComfyUI, diffusers, PEFT or kohya's "
            f"trainers write them. If it is a LoRA for one of these, save it again with ComfyUI's or diffusers' names; "
            f"if not, choose another file."
        )


def _lora_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return (read_pickle(path), {}) if path.is_file() and is_pickle_name(path) else read_tensors(path)


def save_lora(
    path: str | Path, branches: Mapping[str, LowRank], recipe: Recipe, null_prompt: NullPrompt | None = None
) -> None:
    """Write branches of file-layout modules as a LoRA that ComfyUI's stock loader reads, with its recipe.

    Args:
        null_prompt: what it was trained with, so that it needs no text encoder on a base whose file carries none.
    """
    write_safetensors(path, lora_state(branches) | null_prompt_tensors(null_prompt), recipe.to_metadata())
