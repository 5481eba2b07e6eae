"""Single-file checkpoints: safetensors in the file layout, with the Recipe and the null prompt inside.

Reading is safe: safetensors only, never a pickle. Writing is atomic: a killed run leaves either the old file or the
new one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .branch import LowRank
from .errors import CheckpointError
from .families.hunyuan_video import NetworkShape, NullPrompt, network_shape
from .files import atomic_file
from .layouts.hunyuan_video import HUNYUAN_VIDEO
from .layouts.lora import lora_state, parse_lora, to_file_layout
from .layouts.modules import diffusers_to_file, listing, missing_keys
from .recipe import Recipe

NULL_TEXT_KEY = "null_prompt.text_states"
NULL_POOLED_KEY = "null_prompt.pooled"
_WRAPPERS = ("model.diffusion_model.", "diffusion_model.", "model.model.", "transformer.")
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
_DIFFUSERS_MARK = "x_embedder.proj.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's weights in the file layout, with what the file says of itself."""

    state: dict[str, Tensor]
    shape: NetworkShape
    recipe: Recipe | None
    null_prompt: NullPrompt | None
    source: str


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's branches by file-layout module name, with its recipe."""

    branches: dict[str, LowRank]
    recipe: Recipe | None
    source: str


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes: how recipes name a teacher or a base."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The safetensors metadata of a file, without reading its tensors.

    Raises:
        CheckpointError: if the file is absent, a pickle, truncated or otherwise no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_recipe(path: str | Path) -> Recipe | None:
    """The recipe of a file, or None if it has none. Errors as in `read_metadata`."""
    return Recipe.from_metadata(read_metadata(path), Path(path).name)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    with open(path, "rb") as file:
        head = file.read(4)
    # Judged only now: a safetensors file begins with a length, which may look like the start of a bare pickle.
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix in _PICKLE_SUFFIXES or head == b"PK\x03\x04" or bare:
        return CheckpointError(
            f"{path.name} is a pickle, which can run any code when it is opened. Expected a .safetensors file: "
            f"convert it once in an environment that you trust, and use the result."
        )
    return CheckpointError(
        f"{path.name} ({path.stat().st_size:,} bytes) cannot be read as safetensors ({error}). It is truncated or "
        f"damaged: copy or download it again."
    )


def read_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises:
        CheckpointError: as `read_metadata`.
    """
    path = Path(path)
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class TensorInfo:
    """Dtype (in safetensors' spelling, such as BF16) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """The names, dtypes and shapes of a file's tensors, without reading them. Errors as in `read_metadata`."""
    path = Path(path)
    read_metadata(path)
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}


def is_lora(path: str | Path) -> bool:
    """Whether a file holds low-rank pairs, judged by its tensors' names. Errors as in `read_metadata`."""
    return any(".lora_" in key for key in read_header(path))


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            return inner | {key: value for key, value in state.items() if key.startswith("null_prompt.")}
    return state


def parse_checkpoint(
    state: dict[str, Tensor], recipe: Recipe | None, source: str, *, allow_quantised: bool = False
) -> Checkpoint:
    """Tensors of a HunyuanVideo transformer under any known spelling, checked and brought to the file layout.

    Args:
        allow_quantised: take fp8 and int8 weights too, for a reader that can compute with them.

    Raises:
        CheckpointError: naming what is missing, unknown or of the wrong family.
    """
    state = _unwrap(state)
    text, pooled = state.pop(NULL_TEXT_KEY, None), state.pop(NULL_POOLED_KEY, None)
    if any(".lora_" in key for key in state):
        raise CheckpointError(
            f"{source} is a LoRA, expected a whole transformer. Load its base first and apply the LoRA to it."
        )
    quantised = [k for k, v in state.items() if v.dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn)]
    if quantised and not allow_quantised:
        raise CheckpointError(
            f"{source} holds quantised weights ({listing(quantised, 2)}). Expected bf16, fp16 or fp32: use the "
            f"unquantised checkpoint here."
        )
    if _DIFFUSERS_MARK in state:
        state = diffusers_to_file(HUNYUAN_VIDEO, state)
    else:
        state = {HUNYUAN_VIDEO.canonical(key): value for key, value in state.items()}
    try:
        shape = network_shape(state)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    unknown = [k for k in state if HUNYUAN_VIDEO.file_module(k.rpartition(".")[0]) is None]
    missing = missing_keys(HUNYUAN_VIDEO, state)
    if unknown or missing:
        raise CheckpointError(
            f"{source} is not a complete HunyuanVideo transformer: {len(missing)} tensors are missing"
            f"{f' ({listing(missing)})' if missing else ''} and {len(unknown)} are unknown"
            f"{f' ({listing(unknown)})' if unknown else ''}. Use a complete checkpoint of the first generation."
        )
    null_prompt = NullPrompt(text, pooled) if text is not None and pooled is not None else None
    return Checkpoint(state, shape, recipe, null_prompt, source)


def weight_files(path: Path) -> list[Path]:
    """A weights file itself, or the safetensors files of a diffusers folder.

    Raises:
        CheckpointError: if a folder holds none.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise CheckpointError(
            f"The folder {path} holds no .safetensors file. Expected a weights file or a diffusers transformer folder; "
            f"what a training run made is exported first (`magicdistill export RUN --out FILE.safetensors`)."
        )
    return files


def load_checkpoint(path: str | Path, device: str = "cpu") -> Checkpoint:
    """Read a transformer from a single file, or from a diffusers folder of safetensors files.

    Raises:
        CheckpointError: if the file is no safetensors, damaged, a LoRA, or not a complete HunyuanVideo transformer.
    """
    path = Path(path)
    state: dict[str, Tensor] = {}
    recipe = None
    for file in weight_files(path):
        tensors, metadata = read_tensors(file, device)
        state |= tensors
        recipe = recipe or Recipe.from_metadata(metadata, file.name)
    return parse_checkpoint(state, recipe, path.name)


def load_null_prompt(path: str | Path) -> NullPrompt:
    """The null prompt of a checkpoint, or of a file that holds nothing else.

    Raises:
        CheckpointError: if the file is unreadable or has no `null_prompt.*` tensors.
    """
    tensors, _ = read_tensors(path)
    if NULL_TEXT_KEY not in tensors or NULL_POOLED_KEY not in tensors:
        raise CheckpointError(
            f"{Path(path).name} holds no null prompt. Expected the tensors {NULL_TEXT_KEY} and {NULL_POOLED_KEY}."
        )
    return NullPrompt(tensors[NULL_TEXT_KEY], tensors[NULL_POOLED_KEY])


def load_lora(path: str | Path, hidden: int) -> LoraFile:
    """Read a LoRA of any known dialect, its branches brought to the file layout's (fused) modules.

    Args:
        hidden: hidden size of the network it is meant for.

    Raises:
        CheckpointError: if it is no LoRA, damaged, or has modules that the family does not have.
    """
    tensors, metadata = read_tensors(path)
    recipe = Recipe.from_metadata(metadata, Path(path).name)
    branches = to_file_layout(HUNYUAN_VIDEO, parse_lora(tensors), hidden)
    return LoraFile(branches, recipe, Path(path).name)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it appears under its name only when it is complete and on disk."""
    with atomic_file(path) as temporary:
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
        CheckpointError: if the weights are incomplete.
    """
    missing = missing_keys(HUNYUAN_VIDEO, state)
    if missing:
        raise CheckpointError(f"The weights to be written lack {len(missing)} tensors: {listing(missing)}.")
    tensors = {key: value.to(dtype) if dtype else value for key, value in state.items()}
    if null_prompt is not None:
        tensors |= {NULL_TEXT_KEY: null_prompt.text_states, NULL_POOLED_KEY: null_prompt.pooled}
    # Split or tied weights may be views of one storage, which safetensors refuses.
    write_safetensors(path, {key: value.clone() for key, value in tensors.items()}, recipe.to_metadata())


def save_lora(path: str | Path, branches: Mapping[str, LowRank], recipe: Recipe) -> None:
    """Write branches of file-layout modules as a LoRA that ComfyUI's stock loader reads, with its recipe."""
    write_safetensors(path, lora_state(branches), recipe.to_metadata())
