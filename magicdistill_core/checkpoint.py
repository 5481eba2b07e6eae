"""Model files: read a transformer from any supported format, and write it with its recipe and null prompt.

The recipe states how to sample from the weights. The null prompt is the text conditioning for use without a prompt.
Written files are single safetensors files in the file layout (the tensor names of Tencent or Wan, see
`layouts.modules`). Reading is safe: it accepts safetensors files, and pickles that hold only tensors and plain values.
Writing is atomic: a killed process leaves either the old or the new file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .captions import caption_tensors, pop_captions
from .dequantise import dequantised
from .diffusers_folder import folder_i2v_mode, weight_files
from .errors import CheckpointError
from .families import all_architectures, architecture_of, choose_family
from .families.base import Architecture, Family, NullPrompt
from .layouts.dialects import is_lora_name
from .layouts.modules import diffusers_to_file, listing, missing_keys
from .null_prompt import null_prompt_tensors, pop_null_prompt
from .recipe import Recipe
from .safetensors_file import explained_writing, read_tensors
from .streamed import Space, streamed_file
from .wrappers import is_pickle_name, read_pickle, refuse_quantised, unwrapped


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's weights in the file layout, with the recipe and the null prompt of its file.

    Attributes:
        state: the weights by their names in the file layout.
        shape: the sizes of the transformer, a `families.base.Shape` of the architecture's own class.
        recipe: how to sample from the weights; None if the file carries no recipe.
        null_prompt: the text conditioning for use without a prompt; None if the file holds none, or an incomplete one.
        source: the file's name for error messages.
        i2v_mode: how the start image enters the network, if a configuration next to the weights (diffusers'
            config.json) states it; else None.
        captions: the text conditioning of captions that the weights were trained with, by caption.
    """

    state: dict[str, Tensor]
    shape: Any
    recipe: Recipe | None
    null_prompt: NullPrompt | None
    source: str
    i2v_mode: str | None = None
    captions: dict[str, NullPrompt] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The architecture of the transformer."""
        found = architecture_of(self.state.keys())
        assert found is not None
        return found

    def family(self, asked: str | None = None) -> Family:
        """Return the family: the architecture and how the start image enters it.

        The weights, the recipe (or configuration) and the user's choice determine it together.

        Args:
            asked: the `i2v_mode` that the user chose: `concat`, `token_replace` or `none` (text-to-video). None means
                no choice. This is enough unless the weights fit several families and the file states no mode.

        Raises:
            CheckpointError: if several families fit and no mode is stated, or if a stated mode does not fit.
        """
        stated = self.recipe.i2v_mode if self.recipe is not None else self.i2v_mode
        return choose_family(self.architecture, self.shape.in_channels, stated, asked, self.source)

    def resolved(self, asked: str | None) -> "Checkpoint":
        """Return a copy that stores the mode, so `family()` needs no argument afterwards.

        Args:
            asked: see `family`.

        Raises:
            CheckpointError: see `family`.
        """
        return replace(self, i2v_mode=self.family(asked).i2v_mode)

    def teacher(self, asked: str | None = None) -> "Checkpoint":
        """Return `resolved(asked)` after checking that the network accepts a start image.

        Args:
            asked: see `family`.

        Raises:
            CheckpointError: see `family`; also if it is a text-to-video network.
        """
        resolved = self.resolved(asked)
        if not resolved.family().takes_image:
            raise CheckpointError(
                f"{self.source} is a text-to-video network, which takes no start image. Widen it by fine-tuning first "
                f"(method sft with widen), or use an image-to-video checkpoint."
            )
        return resolved


def transformer_tensors(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of transformer, null prompt and captions from a file's tensors, without prefixes and wrappers.

    Args:
        state: the tensors of the file, by name.
        source: the file's name for error messages.

    Raises:
        CheckpointError: see `unwrapped`.
    """
    marks = [mark for a in all_architectures() for mark in (a.file_mark, a.diffusers_mark)]
    return unwrapped(state, marks, source)


def parse_checkpoint(
    state: dict[str, Tensor],
    recipe: Recipe | None,
    source: str,
    *,
    i2v_mode: str | None = None,
) -> Checkpoint:
    """Return the tensors of a known transformer as a `Checkpoint`, with their names in the file layout.

    The tensors are not changed: weights in 8 bits stay as they are, without their scales.

    Args:
        state: the tensors by name, in any known naming scheme, without the scales of quantised weights. Null
            prompt and captions may be among them.
        recipe: the recipe of the file; None if it has none.
        source: the file's name for error messages.
        i2v_mode: how the start image enters the network, if a configuration next to the weights states it; else None.

    Raises:
        CheckpointError: if tensors are missing or unknown, if the file is a LoRA, or if the recipe names another
            architecture.
    """
    architectures = all_architectures()
    state = transformer_tensors(state, source)
    prompt, captions = pop_null_prompt(state), pop_captions(state)
    if any(map(is_lora_name, state)):
        raise CheckpointError(
            f"{source} is a LoRA, expected a complete transformer. Load its base first and apply the LoRA to it."
        )
    architecture = architecture_of(state.keys())
    if architecture is None:
        raise CheckpointError(
            f"{source}: These are not the weights of a transformer that is known here "
            f"({', '.join(a.title for a in architectures)}): found {listing(list(state), 4) or 'nothing'}. Load a "
            f"complete model file of one of these, with the tensor names of its release, ComfyUI or diffusers."
        )
    if recipe is not None and recipe.family != architecture.name:
        raise CheckpointError(
            f"{source} holds a {architecture.title} transformer, but its recipe is for {recipe.family}. Export the "
            f"file again from its training run."
        )
    architecture.refuse_relatives(state.keys(), source)
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
            f"{f' ({listing(unknown)})' if unknown else ''}. Use a complete model file of the first generation."
        )
    if architecture.prompt_has_pooled:
        prompt = None if prompt is None or prompt.pooled is None else prompt
        captions = {caption: text for caption, text in captions.items() if text.pooled is not None}
    return Checkpoint(state, shape, recipe, prompt, source, i2v_mode, captions)


def read_weights(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], Recipe | None, dict[str, str]]:
    """Read the tensors, the recipe and the metadata of a safetensors file, a pickle or a diffusers folder.

    The tensors keep their names, and are not checked.

    Args:
        path: the file or folder.
        device: the device of the tensors; see `read_tensors`.

    Returns:
        The tensors by name; the recipe, None for a pickle or if no file has a recipe; and the text entries of all
        files.

    Raises:
        CheckpointError: if the file does not exist, cannot be read safely, or is damaged.
    """
    path = Path(path)
    if path.is_file() and is_pickle_name(path):
        return {key: tensor.to(device) for key, tensor in read_pickle(path).items()}, None, {}
    state: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    recipe = None
    for file in weight_files(path):
        tensors, metadata = read_tensors(file, device)
        state |= tensors
        texts |= metadata
        recipe = recipe or Recipe.from_metadata(metadata, file.name)
    return state, recipe, texts


def load_checkpoint(path: str | Path, device: str = "cpu", *, allow_quantised: bool = True) -> Checkpoint:
    """Read a transformer from a safetensors file, a `.pt` or `.pth` file with tensors only, or a diffusers folder.

    Args:
        path: the file or folder.
        device: the device of the tensors; see `read_tensors`.
        allow_quantised: True converts int8 and fp8 weights to floating point (`dequantised`); False refuses them.

    Raises:
        CheckpointError: if the file cannot be read safely, is damaged, is quantised in an unknown format, is a LoRA,
            or is not a complete transformer of a known family.
    """
    state, recipe, metadata = read_weights(path, device)
    source = Path(path).name
    state = transformer_tensors(state, source)
    if not allow_quantised:
        refuse_quantised(state, source)
    state = dequantised(state, metadata, source)
    return parse_checkpoint(state, recipe, source, i2v_mode=folder_i2v_mode(Path(path)))


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    null_prompt: NullPrompt | None,
    dtype: torch.dtype | None = None,
    captions: Mapping[str, NullPrompt] | None = None,
) -> None:
    """Write a transformer in the file layout with its recipe, null prompt and captions.

    Args:
        path: the file to write; an existing file is replaced.
        state: the weights by their names in the file layout (`diffusers_to_file` converts to it).
        recipe: stored in the file's metadata.
        null_prompt: stored as tensors, in their own dtypes; None stores none.
        dtype: dtype of the stored weights; None keeps the dtype of each tensor.
        captions: text conditioning by caption, stored like the null prompt; None stores none.

    Raises:
        CheckpointError: if the weights are incomplete, there are too many captions, or the file cannot be written.
    """
    architecture = architecture_of(state.keys())
    missing = ["every tensor"] if architecture is None else missing_keys(architecture.layout, state)
    if missing:
        raise CheckpointError(
            f"The weights for {Path(path).name} are incomplete: {len(missing)} tensors are missing "
            f"({listing(missing)}). Pass a complete transformer."
        )
    stored = {key: Space(dtype or value.dtype, tuple(value.shape)) for key, value in state.items()}
    texts = null_prompt_tensors(null_prompt) | caption_tensors(captions or {})
    spaces = stored | {key: Space.of(value) for key, value in texts.items()}
    with explained_writing(path), streamed_file(path, spaces, recipe.to_metadata()) as file:
        # Written one by one, so tensors that are views of one storage are stored separately.
        for key, value in ({**state, **texts}).items():
            file.write(key, value.to(spaces[key].dtype))
