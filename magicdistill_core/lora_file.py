"""Read LoRA files of any known dialect, and write LoRA files with a recipe, a null prompt and captions.

A *dialect* is the way in which a trainer names the tensors of a LoRA file (see `layouts.dialects`). The recipe states
how to sample with the LoRA. The null prompt is the text conditioning for use without a prompt.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .branch import LowRank
from .captions import caption_tensors, pop_captions
from .errors import CheckpointError
from .families import all_architectures, architecture_knowing
from .families.base import Architecture, NullPrompt
from .layouts.dialects import is_lora_name
from .layouts.lora import known_modules, lora_state, place_lora, to_file_layout
from .layouts.lora_tensors import parse_lora, read_lora
from .layouts.modules import listing
from .null_prompt import null_prompt_tensors, pop_null_prompt
from .recipe import Recipe
from .safetensors_file import read_header, read_tensors, write_safetensors
from .wrappers import is_pickle_name, read_pickle


@dataclass(frozen=True)
class LoraFile:
    """A LoRA with the module names of the file layout.

    Attributes:
        branches: the low-rank branches by module name.
        recipe: the recipe in the file, or None.
        source: the file's name.
        differences: full-rank differences of single tensors, by key. Only some LoRAs for Wan have them.
        origins: for each key of `branches` and `differences`, the modules of the file that were converted to it.
        misses: modules and tensors of the file that do not fit the family.
        alpha_stated: False if the file states no alpha, so the rank was used as alpha.
        null_prompt: the text conditioning of the LoRA's training, or None. It serves a base whose file has none.
        captions: the text conditioning of captions of the LoRA's training, by caption.
    """

    branches: dict[str, LowRank]
    recipe: Recipe | None
    source: str
    differences: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    misses: tuple[str, ...] = ()
    alpha_stated: bool = True
    null_prompt: NullPrompt | None = None
    captions: dict[str, NullPrompt] = field(default_factory=dict)


def is_lora(path: str | Path) -> bool:
    """Return whether a safetensors file holds a LoRA or another adapter, judged by its tensor names.

    Args:
        path: the file; False for a pickle or a folder.

    Raises:
        CheckpointError: see `read_metadata`.
    """
    path = Path(path)
    if path.is_dir() or (is_pickle_name(path) and path.is_file()):
        return False
    return any(map(is_lora_name, read_header(path)))


def load_lora(path: str | Path, hidden: int) -> LoraFile:
    """Read a LoRA of any known dialect, and convert its branches to the (fused) modules of the file layout.

    Args:
        path: the LoRA file: safetensors, or a pickle with tensors only.
        hidden: hidden size of the network that the LoRA is for.

    Returns:
        The LoRA, with `branches`, `recipe`, `source`, `null_prompt` and `captions` set.

    Raises:
        CheckpointError: if the file is not a LoRA, is damaged, holds more than low-rank pairs, has modules that its
            family does not have, or has no module of any known family.
    """
    tensors, metadata = _lora_tensors(Path(path))
    recipe = Recipe.from_metadata(metadata, Path(path).name)
    prompt, captions = pop_null_prompt(tensors), pop_captions(tensors)
    parsed = parse_lora(tensors, metadata, Path(path).name)
    architecture = architecture_knowing(parsed.keys())
    _check_names(architecture, parsed, Path(path).name)
    branches = to_file_layout(architecture.layout, parsed, hidden)
    return LoraFile(branches, recipe, Path(path).name, null_prompt=prompt, captions=captions)


def load_lora_for(architecture: Architecture, path: str | Path, hidden: int) -> LoraFile:
    """Read the part of a LoRA of any known dialect that fits a transformer; `misses` lists the rest.

    Args:
        architecture: the transformer's architecture.
        path: the LoRA file: safetensors, or a pickle with tensors only.
        hidden: hidden size of the transformer.

    Raises:
        CheckpointError: if the file is not a LoRA, is damaged, or has no module that fits the transformer.
    """
    source = Path(path).name
    tensors, metadata = _lora_tensors(Path(path))
    recipe = Recipe.from_metadata(metadata, source)
    prompt, captions = pop_null_prompt(tensors), pop_captions(tensors)
    parsed = read_lora(tensors, metadata, source)
    placed = place_lora(architecture.layout, parsed, hidden)
    # A LoRA of which only differences of norms fit, and none of its pairs, belongs to another model.
    fitting, modules = (placed.branches, parsed.branches) if parsed.branches else (placed.differences, parsed.modules)
    if not fitting:
        names = [*placed.unknown, *placed.misfits]
        whose = architecture_knowing(modules)
        _check_names(whose, modules, source)
        raise CheckpointError(
            f"{source} matches 0/{len(modules)} modules of this {architecture.title} model of width {hidden}: "
            f"found {listing(names, 3)}. "
            + (f"It is a LoRA for {whose.title}. " if whose is not architecture else "It belongs to another model. ")
            + "Load the base that it was trained on."
        )
    misses = (*placed.unknown, *placed.misfits, *parsed.unknown)
    return LoraFile(
        placed.branches,
        recipe,
        source,
        placed.differences,
        placed.origins,
        misses,
        parsed.alpha_stated,
        prompt,
        captions,
    )


def _check_names(architecture: Architecture, modules: Collection[str], source: str) -> None:
    """Refuse a LoRA of which not one module name is known.

    Args:
        architecture: the architecture that knows most of the names.
        modules: the LoRA's module names.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if the architecture knows none of the names.
    """
    if not known_modules(architecture.layout, modules):
        titles = " or ".join(sorted(other.title for other in all_architectures()))
        raise CheckpointError(
            f"{source} matches 0/{len(modules)} modules, because its module names are unknown: found "
            f"{listing(list(modules), 3)}, expected modules of {titles} in the names of ComfyUI, diffusers, PEFT or "
            f"kohya's trainers. If it is a LoRA for one of these models, save it again with ComfyUI's or diffusers' "
            f"names. Otherwise choose another file."
        )


def _lora_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return (read_pickle(path), {}) if path.is_file() and is_pickle_name(path) else read_tensors(path)


def save_lora(
    path: str | Path,
    branches: Mapping[str, LowRank],
    recipe: Recipe,
    null_prompt: NullPrompt | None = None,
    captions: Mapping[str, NullPrompt] | None = None,
) -> None:
    """Write branches and a recipe as a LoRA file that ComfyUI's stock loader can read.

    Args:
        path: the file to write; an existing file is replaced.
        branches: the branches by the module names of the file layout.
        recipe: stored in the file's metadata.
        null_prompt: the text conditioning of the training, or None. With it, a base whose file has no null prompt
            needs no text encoder.
        captions: text conditioning by caption, or None.

    Raises:
        CheckpointError: if there are too many captions, or the file cannot be written.
    """
    texts = null_prompt_tensors(null_prompt) | caption_tensors(captions or {})
    write_safetensors(path, lora_state(branches) | texts, recipe.to_metadata())
