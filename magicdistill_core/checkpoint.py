"""Checkpoints: single files in the file layout with the Recipe and the null prompt inside, and whatever else is read.

Reading is safe: safetensors, or pickles of nothing but tensors and plain values. Writing is atomic: a killed run leaves
either the old file or the new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .diffusers_folder import folder_i2v_mode, weight_files
from .errors import CheckpointError
from .families import all_architectures, architecture_of, choose_family
from .families.base import Architecture, Family, NullPrompt
from .layouts.modules import diffusers_to_file, listing, missing_keys
from .null_prompt import null_prompt_tensors, pop_null_prompt
from .recipe import Recipe
from .safetensors_file import explained_writing, read_tensors
from .streamed import Space, streamed_file
from .wrappers import is_pickle_name, read_pickle, refuse_quantised, unwrapped


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's weights in the file layout, with what the file says of itself."""

    state: dict[str, Tensor]
    shape: Any  # a `families.base.Shape`, of the architecture's own kind
    recipe: Recipe | None
    null_prompt: NullPrompt | None
    source: str
    # How the start image enters, where the source says it beside the weights (diffusers' config.json).
    i2v_mode: str | None = None

    @property
    def architecture(self) -> Architecture:
        """The transformer's."""
        found = architecture_of(self.state.keys())
        assert found is not None
        return found

    def family(self, asked: str | None = None) -> Family:
        """The family, by the weights and by what the source says of itself.

        Args:
            asked: how a user says that the start image enters, for weights that leave it open.

        Raises:
            CheckpointError: if it is open and nobody says it, or what is said does not fit.
        """
        said = self.recipe.i2v_mode if self.recipe is not None else self.i2v_mode
        return choose_family(self.architecture, self.shape.in_channels, said, asked, self.source)

    def resolved(self, asked: str | None) -> "Checkpoint":
        """The checkpoint with `asked` taken into account once and for all, so that `family()` needs no argument.

        Raises:
            CheckpointError: as `family`.
        """
        return replace(self, i2v_mode=self.family(asked).i2v_mode)

    def teacher(self, asked: str | None = None) -> "Checkpoint":
        """`resolved`, for a network that is to take a start image.

        Raises:
            CheckpointError: as `family`, or if it is a text-to-video network.
        """
        resolved = self.resolved(asked)
        if not resolved.family().takes_image:
            raise CheckpointError(
                f"{self.source} is a text-to-video network, which takes no start image. Widen it by fine-tuning first "
                f"(method sft with widen), or use an image-to-video checkpoint."
            )
        return resolved


def parse_checkpoint(
    state: dict[str, Tensor],
    recipe: Recipe | None,
    source: str,
    *,
    i2v_mode: str | None = None,
    allow_quantised: bool = False,
) -> Checkpoint:
    """Tensors of a known transformer under any known spelling, checked and brought to the file layout.

    Args:
        i2v_mode: how the start image enters, if something beside the weights says it.
        allow_quantised: take fp8 and int8 weights too, for a reader that can compute with them.

    Raises:
        CheckpointError: naming what is missing, unknown or of the wrong family.
    """
    architectures = all_architectures()
    state = unwrapped(state, [mark for a in architectures for mark in (a.file_mark, a.diffusers_mark)], source)
    prompt = pop_null_prompt(state)
    if any(".lora_" in key for key in state):
        raise CheckpointError(
            f"{source} is a LoRA, expected a whole transformer. Load its base first and apply the LoRA to it."
        )
    if not allow_quantised:
        refuse_quantised(state, source)
    architecture = architecture_of(state.keys())
    if architecture is None:
        raise CheckpointError(
            f"{source}: These are not the weights of a transformer that is known here "
            f"({', '.join(a.title for a in architectures)}): found {listing(list(state), 4) or 'nothing'}. Load a "
            f"whole checkpoint of one of these, in the names of its release, of ComfyUI or of diffusers."
        )
    if recipe is not None and recipe.family != architecture.name:
        raise CheckpointError(
            f"{source} holds a {architecture.title} transformer, but its recipe is for {recipe.family}. Export it "
            f"again from its training run."
        )
    layout = architecture.layout
    if architecture.diffusers_mark in state:
        state = diffusers_to_file(layout, state)
    else:
        state = {layout.canonical(key): value for key, value in state.items()}
    try:
        shape = architecture.shape(state)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    unknown = [key for key in state if not layout.knows(key)]
    missing = missing_keys(layout, state)
    if unknown or missing:
        raise CheckpointError(
            f"{source} is not a complete {architecture.title} transformer: {len(missing)} tensors are missing"
            f"{f' ({listing(missing)})' if missing else ''} and {len(unknown)} are unknown"
            f"{f' ({listing(unknown)})' if unknown else ''}. Use a complete checkpoint of the first generation."
        )
    whole = prompt is not None and (prompt.pooled is not None or not architecture.prompt_has_pooled)
    return Checkpoint(state, shape, recipe, prompt if whole else None, source, i2v_mode)


def read_weights(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], Recipe | None]:
    """The tensors, as they are named, and the recipe of a safetensors file, a pickle or a diffusers folder.

    Raises:
        CheckpointError: as `load_checkpoint`, but for what the tensors are.
    """
    path = Path(path)
    if path.is_file() and is_pickle_name(path):
        return {key: tensor.to(device) for key, tensor in read_pickle(path).items()}, None
    state: dict[str, Tensor] = {}
    recipe = None
    for file in weight_files(path):
        tensors, metadata = read_tensors(file, device)
        state |= tensors
        recipe = recipe or Recipe.from_metadata(metadata, file.name)
    return state, recipe


def load_checkpoint(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Read a transformer: a safetensors file, a `.pt` or `.pth` of nothing but tensors, or a diffusers folder.

    Args:
        device: as for `read_tensors`.

    Raises:
        CheckpointError: if it cannot be read safely, is damaged, quantised, a LoRA, or no complete transformer of a
            known family.
    """
    state, recipe = read_weights(path, device)
    return parse_checkpoint(state, recipe, Path(path).name, i2v_mode=folder_i2v_mode(Path(path)))


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    null_prompt: NullPrompt | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a transformer in the file layout with its recipe and null prompt.

    Args:
        state: weights in the file layout (`diffusers_to_file` makes them).
        dtype: dtype of the stored weights; None keeps each tensor's own.

    Raises:
        CheckpointError: if the weights are incomplete, or the file cannot be written.
    """
    architecture = architecture_of(state.keys())
    missing = ["every tensor"] if architecture is None else missing_keys(architecture.layout, state)
    if missing:
        raise CheckpointError(f"The weights to be written lack {len(missing)} tensors: {listing(missing)}.")
    stored = {key: Space(dtype or value.dtype, tuple(value.shape)) for key, value in state.items()}
    prompt = null_prompt_tensors(null_prompt)
    spaces = stored | {key: Space.of(value) for key, value in prompt.items()}
    with explained_writing(path), streamed_file(path, spaces, recipe.to_metadata()) as file:
        # One after the other, which also keeps apart what are views of one storage.
        for key, value in ({**state, **prompt}).items():
            file.write(key, value.to(spaces[key].dtype))
