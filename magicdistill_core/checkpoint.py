"""Checkpoints: single files in the file layout with the Recipe and the null prompt inside, and whatever else is read.

Reading is safe: safetensors, or pickles of nothing but tensors and plain values. Writing is atomic: a killed run leaves
either the old file or the new one.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .diffusers_folder import folder_i2v_mode, weight_files
from .errors import CheckpointError
from .families import all_architectures, architecture_of, choose_family
from .families.base import Architecture, Family, NullPrompt
from .files import atomic_file, enough_memory
from .layouts.modules import diffusers_to_file, listing, missing_keys
from .recipe import Recipe
from .streamed import DTYPE_NAMES, Space, streamed_file
from .wrappers import is_pickle_name, read_pickle, refuse_quantised, unwrapped

logger = logging.getLogger(__name__)

NULL_TEXT_KEY = "null_prompt.text_states"
NULL_POOLED_KEY = "null_prompt.pooled"
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


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


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes: how recipes name a teacher or a base."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(path: str | Path) -> str:
    """`file_sha256` of a file; of a diffusers folder, the sha256 over its files' names and hashes.

    These are the files of weights that are read (see `weight_files`) and the JSON files beside them, so that a
    pipeline's folder has the hash of its transformer's.

    Raises:
        CheckpointError: if there is nothing at the path, or the folder holds no weights.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Check the path.")
    if not path.is_dir():
        return file_sha256(path)
    files = weight_files(path)
    digest = hashlib.sha256()
    for file in sorted({*files, *files[0].parent.glob("*.json")}):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The safetensors metadata of a file, without reading its tensors.

    Raises:
        CheckpointError: if the file is absent, a pickle, truncated or otherwise no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file. Check the path.")
    try:
        with _opened_to_look(path) as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _opened_to_look(path: Path) -> Any:
    """A safetensors file without its tensors.

    Mapped to be read only, as NumPy has it: PyTorch's way reserves memory for the whole file, which may not be there.
    """
    return safe_open(path, framework="np")


def read_recipe(path: str | Path) -> Recipe | None:
    """The recipe of a file, or None if it has none. Errors as in `read_metadata`."""
    return Recipe.from_metadata(read_metadata(path), Path(path).name)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    with open(path, "rb") as file:
        head = file.read(4)
    # Judged only now: a safetensors file begins with a length, which may look like the start of a bare pickle.
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if is_pickle_name(path) or head == b"PK\x03\x04" or bare:
        return CheckpointError(
            f"{path.name} is a pickle, which can run any code when it is opened. Expected a .safetensors file: "
            f"convert it once in an environment that you trust, and use the result. (A whole transformer is read from "
            f".pt and .pth too, if the name says so and nothing but tensors is in it.)"
        )
    if path.suffix.lower() == ".gguf":
        return CheckpointError(
            f"{path.name} is a GGUF file, whose weights are quantised. Use the bf16, fp16 or fp32 release of the same "
            f"model here; ComfyUI's GGUF loaders run such files."
        )
    return CheckpointError(
        f"{path.name} ({path.stat().st_size:,} bytes) cannot be read as safetensors ({error}). It is truncated or "
        f"damaged: copy or download it again."
    )


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Args:
        device: `meta` for tensors without data, of which nothing is read.

    Raises:
        CheckpointError: as `read_metadata`, or if memory does not suffice.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if device == "meta":
        return {key: info.without_data() for key, info in read_header(path).items()}, metadata
    try:
        with enough_memory(path), safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class TensorInfo:
    """Dtype (in safetensors' spelling, such as BF16) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    def without_data(self) -> Tensor:
        """Such a tensor on the device `meta`; float32 if PyTorch has no such dtype."""
        return torch.empty(self.shape, dtype=_DTYPES.get(self.dtype, torch.float32), device="meta")


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The names, dtypes and shapes of a file's tensors, without reading them. Errors as in `read_metadata`."""
    path = Path(path)
    read_metadata(path)
    with _opened_to_look(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def is_lora(path: str | Path) -> bool:
    """Whether a safetensors file holds low-rank pairs, by its tensors' names; pickles and folders hold none.

    Raises:
        CheckpointError: as `read_metadata`.
    """
    path = Path(path)
    if path.is_dir() or (is_pickle_name(path) and path.is_file()):
        return False
    return any(".lora_" in key for key in read_header(path))


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


def load_null_prompt(path: str | Path) -> NullPrompt:
    """The null prompt of a checkpoint, or of a file that holds nothing else.

    Raises:
        CheckpointError: if the file is unreadable or has no `null_prompt.*` tensors.
    """
    tensors, _ = read_tensors(path)
    if NULL_TEXT_KEY not in tensors:
        raise CheckpointError(
            f"{Path(path).name} holds no null prompt. Expected the tensors {NULL_TEXT_KEY} and {NULL_POOLED_KEY} (the "
            f"latter not for Wan)."
        )
    return NullPrompt(tensors[NULL_TEXT_KEY], tensors.get(NULL_POOLED_KEY))


def pop_null_prompt(tensors: dict[str, Tensor]) -> NullPrompt | None:
    """Take the null prompt out of a file's tensors."""
    text, pooled = tensors.pop(NULL_TEXT_KEY, None), tensors.pop(NULL_POOLED_KEY, None)
    return None if text is None else NullPrompt(text, pooled)


def null_prompt_tensors(prompt: NullPrompt | None) -> dict[str, Tensor]:
    """A null prompt as the tensors by which a file carries it."""
    if prompt is None:
        return {}
    pooled = {} if prompt.pooled is None else {NULL_POOLED_KEY: prompt.pooled}
    return {NULL_TEXT_KEY: prompt.text_states} | pooled


@contextmanager
def explained_writing(path: str | Path) -> Iterator[None]:
    """Within, an error of writing `path` is said in a paragraph.

    Raises:
        CheckpointError: if the disk is full, read-only or otherwise refuses.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}). Make room on that disk, or write to another folder."
        ) from error


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it appears under its name only when it is complete and on disk.

    Raises:
        CheckpointError: if it cannot be written.
    """
    with explained_writing(path), atomic_file(path) as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)


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
